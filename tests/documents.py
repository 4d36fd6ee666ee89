"""README.md and docs/ as text, their blocks of code, and the commands in them."""

import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (
    *ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("**/*.md")), ROOT / "results" / "README.md")
    if not {"_build", "copied"} & set(path.parts)}  # which Sphinx makes
FENCE = re.compile(r"^( *)```(\w*).*?\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(text, *languages):
  return [code.replace("\n" + indent, "\n").removeprefix(indent)
          for indent, language, code in FENCE.findall(text) if language in languages]


def commands():
  """(page, words) of each command in a block of shell, and of those within the text that begin as one."""
  for page, text in PAGES.items():
    inline = [re.sub(r"\s+", " ", code) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", FENCE.sub("", text))]
    lines = [line for code in blocks(text, "bash") for line in code.replace("\\\n", " ").splitlines()]
    lines += [line for line in inline if re.match(r"(python|make) ", line)]
    for line in lines:
      for part in re.split(r"\s(?:&&|\|)\s", line):
        words = shlex.split(part, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
          words = words[1:]
        if words:
          yield page, words


COMMANDS = list(commands())
OF_LAUNCH = [(page, words[words.index("launch.py") + 1:]) for page, words in COMMANDS if "launch.py" in words]
OF_MODULES = [(page, words[2], words[3:]) for page, words in COMMANDS
              if words[0].endswith("python") and words[1] == "-m" and words[2].startswith("bionets_jax")]
