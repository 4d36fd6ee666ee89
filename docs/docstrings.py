"""Docstrings as they stand in the code, made into what Sphinx reads.

They are written to be read as text: `single quotes` around code, (*batch, C) for shapes, indented blocks for layouts
and formulas, `name: what it is` for items. reStructuredText wants stars escaped, blocks announced and lists marked.
"""

import dataclasses
import re

import flax.linen as nn

SECTIONS = ("args", "arguments", "attributes", "returns", "raises", "yields", "example", "examples", "note")
_ITEM = re.compile(r"(\s+)((?:\*{0,2}[\w'.\[\], ]|`)+?): (.*)")
_NAMED = re.compile(r"(\s+\*{0,2}\w[\w, ]*:)(.*)")
_HEADER = re.compile(r"\s*(\w+):\s*$")


def escape(line: str) -> str:
  """Stars, bars and trailing underscores outside of backticks are characters, not markup."""
  parts = re.split(r"(`[^`]*`)", line)
  for i in range(0, len(parts), 2):
    parts[i] = re.sub(r"(\*|\||\b\w*_(?=\W|$))", lambda m: m[0][:-1] + "\\" + m[0][-1], parts[i].replace("\\", "\\\\"))
  return "".join(parts)


def _indent(line: str) -> int:
  return len(line) - len(line.lstrip())


def convert(lines: list[str]) -> list[str]:
  """reStructuredText with Google's sections, for napoleon."""
  out: list[str] = []
  base, i = 0, 0
  while i < len(lines):
    line = lines[i]
    header = _HEADER.match(line)
    if not line.strip():
      out.append("")
    elif _indent(line) <= base and not (header and header[1].lower() in SECTIONS):
      out.append(re.sub(r"^(\s*)\\\* ", r"\1* ", escape(line)))
    else:
      end = i + 1
      while end < len(lines) and (_indent(lines[end]) > base or not lines[end].strip()):
        end += 1
      inside = lines[i + 1:end]
      out += (_block(lines[i:end]) if _indent(line) > base else
              _returns(inside) if line.startswith("Returns") else _section(line, inside))
      i = end
      continue
    i += 1
  return out


def _section(header: str, lines: list[str]) -> list[str]:
  """A section with its items, `name: text`, whose text may be a list of items itself."""
  out: list[str] = []
  while header.startswith("Raises") and lines and not _NAMED.match(lines[0]):  # "As `train`."
    out.append(f"{'' if out else 'Raises: '}{escape(lines.pop(0).strip())}")
  out += ["", header] if lines else []
  depth = min((_indent(line) for line in lines if line.strip()), default=0)
  inner = 0
  for line in lines:
    head = _NAMED.match(line)
    if not line.strip():
      out.append("")
    elif _indent(line) == depth:
      inner = 0
      out.append(head[1] + escape(head[2]) if head else escape(line))
    else:
      inner = inner or _indent(line)
      starts = _indent(line) == inner and re.match(r"\s+(`[^`]+`|'[^']+'): ", line)
      if starts and not out[-1].lstrip().startswith("* ") and not out[-1].startswith(" " * (inner + 2)):
        out.append("")
      in_list = next((text for text in reversed(out) if not text.startswith(" " * (inner + 1))), "")
      listed = _indent(line) > inner and in_list.startswith(" " * inner + "* ")
      if not starts and not listed and in_list.startswith(" " * inner + "* "):
        out.append("")
      out.append(" " * inner + ("* " if starts else "  " if listed else "") + escape(line.strip()))
  return out


def _returns(lines: list[str]) -> list[str]:
  """What is returned: text, in which a colon is one, or several things by name."""
  lines = [line for line in lines if line.strip()]
  depth = _indent(lines[0])
  first = [line for line in lines if _indent(line) == depth]
  if len(first) < 2 or not all(map(_NAMED.match, first)):
    return ["", ":returns: " + escape(lines[0].strip()), *("  " + escape(line.strip()) for line in lines[1:]), ""]
  items = ["  * " + escape(line.strip()) if _indent(line) == depth else "    " + escape(line.strip()) for line in lines]
  return ["", ":returns:", *items, ""]


def _block(lines: list[str]) -> list[str]:
  """An indented block: a list if it begins with an item, else as it is."""
  depth = _indent(lines[0])
  if not _ITEM.match(lines[0]):
    return ["", "::", "", *lines, ""]
  out = [""]
  for line in lines:
    item = _ITEM.match(line)
    if item and _indent(line) == depth:
      out.append(f"* **{item[2]}**: {escape(item[3])}")
    else:
      out.append("  " + escape(line.strip()) if line.strip() else "")
  return [*out, ""]


def _process(app, what, name, obj, options, lines):
  lines[:] = convert(lines)


def _short(value):
  """A default as a reader would write it."""
  if isinstance(value, type):
    return value.__name__
  if callable(value):
    name = getattr(value, "__qualname__", type(value).__name__)
    return "..." if "<" in name else name
  return repr(value)


def _signature(app, what, name, obj, options, signature, returns):
  """Of a module of Flax and of a dataclass its own fields by name; their types stand in the text."""
  if what != "class" or not dataclasses.is_dataclass(obj):
    return signature, returns
  shown = []
  for field in dataclasses.fields(obj):
    if not field.init or field.name in ("parent", "name") and issubclass(obj, nn.Module) or field.name.startswith("_"):
      continue
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
      default = field.default_factory()
    shown.append(field.name if default is dataclasses.MISSING else f"{field.name}={_short(default)}")
  return f"({', '.join(shown)})", None


def _skip(app, what, name, obj, skip, options):
  """Members of a class are what this package wrote: methods and properties, not fields and what Flax adds."""
  if what != "class" or skip:
    return skip
  function = obj.fget if isinstance(obj, property) else getattr(obj, "func", getattr(obj, "__func__", obj))
  return not (getattr(function, "__module__", "") or "").startswith("bionets_jax") or isinstance(obj, type)


def setup(app):
  app.connect("autodoc-process-docstring", _process, priority=100)  # before napoleon
  app.connect("autodoc-process-signature", _signature)
  app.connect("autodoc-skip-member", _skip)
