"""Checks a site that Sphinx has built: links and anchors within it lead somewhere, and no page loads anything from elsewhere.

    python docs/check_site.py docs/_build/html

Exit status 1, with a line for each that does not.
"""

import html.parser
import pathlib
import re
import sys


class Page(html.parser.HTMLParser):
  """Attributes:
    ids: anchors.
    links: where it leads.
    loads: what a browser fetches to show it.
  """

  def __init__(self, path: pathlib.Path):
    super().__init__()
    self.ids: set[str] = set()
    self.links: list[str] = []
    self.loads: list[str] = []
    self.feed(path.read_text(encoding="utf-8"))

  def handle_starttag(self, tag, attributes):
    found = dict(attributes)
    self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
    if found.get("href"):
      (self.loads if tag == "link" else self.links).append(found["href"])
    if found.get("src"):
      self.loads.append(found["src"])


def faults(root: pathlib.Path) -> list[str]:
  pages = {path.resolve(): Page(path) for path in root.rglob("*.html")}
  out = []
  for path, page in pages.items():
    for target in page.links + page.loads:
      where = f"{path.relative_to(root)}: {target}"
      if re.match(r"[a-z]+:|//", target):
        out += [f"{where}: is loaded from elsewhere"] * (target in page.loads and not target.startswith("data:"))
        continue
      file, _, anchor = target.partition("#")
      there = (path.parent / file.partition("?")[0]).resolve() if file else path
      if not there.exists():
        out.append(f"{where}: no such file")
      elif anchor and there in pages and anchor not in pages[there].ids:
        out.append(f"{where}: no such anchor")
  return sorted(set(out))


def main() -> int:
  root = pathlib.Path(sys.argv[1]).resolve()
  found = faults(root)
  print("\n".join(found) or f"{root}: every link leads somewhere")
  return int(bool(found))


if __name__ == "__main__":
  sys.exit(main())
