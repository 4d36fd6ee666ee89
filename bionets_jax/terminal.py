"""Text for a terminal, and how a command line ends."""

import sys
from collections.abc import Callable


def printable(text: str) -> str:
  """The text with what steers a terminal written out: names in files are their authors' to choose.

  Line ends and tabs stay; an escape character becomes '\\x1b', a lone surrogate of a file name '\\udcff'.
  """
  return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def run_command(work: Callable[[Callable[[str], None]], int], *, stopped: str) -> int:
  """What a command does, as its exit status: bad input is one line on the standard error, and 1.

  Args:
    work: is given what prints a text, and returns the status.
    stopped: what is said after Ctrl-C.

  Raises:
    What else `work` raises; XLA's own errors, which are a kind of RuntimeError, keep their traceback.
  """
  try:
    return work(lambda text: print(printable(text), flush=True))
  except (ValueError, OSError, RuntimeError) as error:
    if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
      raise
    print(printable(f"error: {error}"), file=sys.stderr)
  except KeyboardInterrupt:
    print(stopped, file=sys.stderr)
  return 1
