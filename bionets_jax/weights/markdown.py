"""Markdown of whatever text there is."""

from collections.abc import Sequence
from typing import Any


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A table; its cells may be anything, see `cell`."""
  lines = [columns, ["---"] * len(columns), *rows]
  return "\n".join("| " + " | ".join(map(cell, row)) + " |" for row in lines)


def cell(value: Any) -> str:
  """As one line of a table, whatever is in it."""
  if value is None:
    return ""
  if isinstance(value, int | float) and not isinstance(value, bool):
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
  return line(str(value)).replace("|", "\\|")


def line(text: str) -> str:
  """As one line, without HTML."""
  return " ".join(text.split()).replace("<", "&lt;")


def fenced(text: str, language: str = "") -> str:
  """As a block of code, fenced by more backticks than there are in a row inside."""
  fence = "```"
  while fence in text:
    fence += "`"
  return f"{fence}{language}\n{text}\n{fence}"
