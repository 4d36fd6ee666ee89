"""Text for a terminal."""


def printable(text: str) -> str:
  """The text with what steers a terminal written out: names in files are their authors' to choose.

  Line ends and tabs stay; an escape character becomes '\\x1b', a lone surrogate of a file name '\\udcff'.
  """
  return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
