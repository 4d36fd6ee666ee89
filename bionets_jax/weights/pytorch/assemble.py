"""Puts together the definitions in `sources` that one network needs."""

import ast
import builtins
import dataclasses
import functools
import operator
import pathlib
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any

_FOLDER = pathlib.Path(__file__).with_name("sources")
# In the order of the generated file, so that a class stands behind its base.
MODULES = ("norm", "ic", "fp", "grouped_pointwise", "squeeze_excite", "resnet", "vgg", "mobilenet",
           "efficientnet", "weights")
_COMPARISONS = {ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Gt: operator.gt}


@dataclasses.dataclass(frozen=True)
class Module:
  """One file of `sources`.

  Attributes:
    text: of the file.
    definitions: name of a function or class -> its text.
    flags: the names that it takes from `.generated`.
    relative: imported name -> the module of `sources` that has it.
    outside: imported name -> the line that imports it.
  """

  text: str
  definitions: Mapping[str, str]
  flags: frozenset[str]
  relative: Mapping[str, str]
  outside: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a network needs.

  Attributes:
    definitions: (module, text), in the order of `MODULES`.
    imports: groups of lines, of the standard library and of others, sorted as isort does.
    names: every name that the definitions use.
  """

  definitions: tuple[tuple[str, str], ...]
  imports: tuple[tuple[str, ...], ...]
  names: frozenset[str]


def collect(text: str, roots: Collection[str], flags: Mapping[str, Any]) -> Parts:
  """The definitions that `text` and the functions named in `roots` need, and those that they need.

  Args:
    text: code that uses definitions of `sources` and what these import, by their names.
    roots: names of further functions of `sources`.
    flags: values of the names in capitals.
  """
  modules = {name: _read(name) for name in MODULES}
  home = {definition: name for name, module in modules.items() for definition in module.definitions}
  outside = {name: line for module in modules.values() for name, line in module.outside.items()}
  used = set(_names(text))
  needed: dict[str, str] = {}
  lines = {outside[name] for name in used & outside.keys()}
  queue = sorted((used | set(roots)) & home.keys())
  while queue:
    name = queue.pop()
    if name in needed:
      continue
    whole = modules[home[name]]
    module = _decided(home[name], tuple((key, flags[key]) for key in sorted(whole.flags & flags.keys())))
    needed[name] = module.definitions[name]
    for other in _names(needed[name]):
      used.add(other)
      if other in module.definitions or module.relative.get(other) in modules:
        queue.append(other)
      elif other in module.outside:
        lines.add(module.outside[other])
  definitions = tuple((name, needed[one]) for name, module in modules.items()
                      for one in module.definitions if one in needed)
  groups = (tuple(sorted((line for line in lines if _is_standard(line) == standard),
                         key=lambda line: (line.startswith("from"), line))) for standard in (True, False))
  return Parts(definitions, tuple(filter(None, groups)), frozenset(used))


def fold(source: str, flags: Mapping[str, Any]) -> str:
  """Decides every `if` that asks for flags alone: the branch that holds is left, one level further out."""
  while (node := _decidable(source, flags)) is not None:
    lines = source.splitlines()
    if _holds(node.test, flags):
      kept = _dedent(lines[node.test.end_lineno:node.body[-1].end_lineno], node.body[0], node)
    elif not node.orelse:
      kept = []
    else:
      first, last = node.orelse[0], node.orelse[-1]
      if lines[first.lineno - 1].lstrip().startswith("elif "):
        kept = lines[first.lineno - 1:last.end_lineno]
        kept[0] = kept[0].replace("elif ", "if ", 1)
      else:
        header = next(i for i in range(node.body[-1].end_lineno or 0, first.lineno)
                      if lines[i].lstrip().startswith("else:"))
        kept = _dedent(lines[header + 1:last.end_lineno], first, node)
    source = "\n".join(lines[:node.lineno - 1] + kept + lines[node.end_lineno:]) + "\n"
  return source


def _holds(test: ast.expr, flags: Mapping[str, Any]) -> Any:
  """The value of a condition on flags. Nothing but what the sources use is known: no code is run."""
  match test:
    case ast.Name(id=name):
      return flags[name]
    case ast.Constant(value=value):
      return value
    case ast.UnaryOp(op=ast.Not(), operand=operand):
      return not _holds(operand, flags)
    case ast.BoolOp(op=ast.And() | ast.Or() as op, values=values):
      return (all if isinstance(op, ast.And) else any)(_holds(value, flags) for value in values)
    case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
      return _COMPARISONS[type(op)](_holds(left, flags), _holds(right, flags))
  raise ValueError(f"{ast.unparse(test)}: only names, 'not', 'and', 'or', ==, != and > are decided")


def _decidable(source: str, flags: Mapping[str, Any]) -> ast.If | None:
  for node in ast.walk(ast.parse(source)):  # outer ones first
    if isinstance(node, ast.If):
      names = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
      if names and names <= flags.keys():
        return node
  return None


def _dedent(lines: Iterable[str], inner: ast.stmt, outer: ast.stmt) -> list[str]:
  return [line[inner.col_offset - outer.col_offset:] if line.strip() else line for line in lines]


@functools.cache
def _read(name: str) -> Module:
  return _parse((_FOLDER / f"{name}.py").read_text(encoding="utf-8"))


@functools.lru_cache
def _decided(name: str, flags: tuple[tuple[str, Any], ...]) -> Module:
  """A module without the branches that do not hold."""
  return _parse(fold(_read(name).text, dict(flags)))


def _parse(source: str) -> Module:
  definitions, relative, outside = {}, {}, {}
  node: Any
  for node in ast.parse(source).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      text = "\n".join(source.splitlines()[node.lineno - 1:node.end_lineno])
      definitions[node.name] = re.sub(r"\n{3,}", "\n\n", text)
      continue
    for alias in node.names:
      bound = alias.asname or alias.name
      if isinstance(node, ast.ImportFrom) and node.level:
        relative[bound] = node.module or ""
      else:
        outside[bound] = ast.unparse(
            ast.Import([alias]) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, [alias], 0))
  flags = frozenset(name for name, module in relative.items() if module == "generated")
  return Module(source, definitions, flags, relative, outside)


def _names(text: str) -> set[str]:
  return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)} - set(dir(builtins))


def _is_standard(line: str) -> bool:
  return line.split()[1].split(".")[0] in sys.stdlib_module_names
