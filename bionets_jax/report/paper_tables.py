"""Every count in the tables of the three papers beside ours: `python -m bionets_jax.report paper-tables`."""

import gc
import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TextIO

import flax
import jax

from bionets_jax.report.paper_rows import PAPERS, Row
from bionets_jax.report.table import aligned

UNITS = {"": 1, "%": 1, "K": 10**3, "M": 10**6, "G": 10**9}
RULES = ("rounded", "truncated", "rounded to tens")
_QUIET_SECONDS = 5.0


class Result(NamedTuple):
  """A row and what came out.

  Attributes:
    row: what was compared.
    ours: the exact count.
    residual: ours minus printed, in ones.
    difference: 'ok' if ours has the printed digits, else the difference with as many: '+0.1 M'.
  """

  row: Row
  ours: int | Fraction
  residual: Fraction
  difference: str

  @property
  def ok(self) -> bool:
    return self.difference == "ok"


def compare(row: Row) -> Result:
  """Counts what a row asks for and compares it with what the paper prints.

  Raises:
    ValueError: for a printed number or a rule that cannot be read.
  """
  match = re.fullmatch(r"([\d,]+)(?:\.(\d+))? ?([KMG%]?)", row.printed)
  if not match or row.rule not in RULES:
    raise ValueError(f"{row.table}, {row.network}: cannot read {row.printed!r}, {row.rule!r}")
  whole, decimals, unit = match.groups(default="")
  printed = Fraction(f"{whole.replace(',', '')}.{decimals or 0}")
  step = Fraction(10 if row.rule == "rounded to tens" else 1, 10 ** len(decimals))
  ours = row.count()
  half = 0 if row.rule == "truncated" else Fraction(1, 2)
  as_printed = math.floor(Fraction(ours) / UNITS[unit] / step + half) * step
  gap = as_printed - printed
  difference = f"{float(gap):+,.{len(decimals)}f} {unit}".rstrip() if gap else "ok"
  return Result(row, ours, ours - printed * UNITS[unit], difference)


def compare_all(
    rows: Mapping[str, Sequence[Row]], progress: TextIO | None = None
) -> dict[str, list[Result]]:
  """`compare` for the rows of each paper; tells `progress` where it is if that takes a while."""
  total, done, last = sum(map(len, rows.values())), 0, time.monotonic()
  results: dict[str, list[Result]] = {}
  for paper, its_rows in rows.items():
    results[paper] = []
    for row in its_rows:
      if progress and time.monotonic() - last > _QUIET_SECONDS:
        print(f"{done} of {total} numbers; now {row.network}", file=progress, flush=True)
        last = time.monotonic()
      results[paper].append(compare(row))
      done += 1
  return results


def as_text(results: Mapping[str, Sequence[Result]]) -> str:
  """An aligned table, with a heading for each paper."""
  header = ("table", "network", "quantity", "paper", "ours", "difference", "note")
  lines = {paper: [(r.row.table, r.row.network, r.row.quantity, r.row.printed, _show(r.ours), r.difference,
                    r.row.note) for r in its_results] for paper, its_results in results.items()}
  cells = aligned([header, *(line for its_lines in lines.values() for line in its_lines)], left=(0, 1, 2, 6))
  # Notes are long; the rule ends where they begin.
  text, below = [cells[0], "-" * cells[0].index("note")], iter(cells[1:])
  for paper, its_lines in lines.items():
    text += ["", paper, *(next(below) for _ in its_lines)]
  return "\n".join(text)


def as_json(results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
  """The same for programs: `rows`, how many are `off`, and the `versions` that counted."""
  def number(value):
    return int(value) if value == int(value) else float(value)
  rows = [
      {"paper": paper, "table": r.row.table, "network": r.row.network, "quantity": r.row.quantity,
       "printed": r.row.printed, "rule": r.row.rule, "ours": number(r.ours),
       "residual": number(r.residual), "difference": r.difference, "ok": r.ok, "note": r.row.note}
      for paper, its_results in results.items() for r in its_results]
  return {"rows": rows, "off": sum(not row["ok"] for row in rows),
          "versions": {"jax": jax.__version__, "flax": flax.__version__}}


def verdict(results: Mapping[str, Sequence[Result]]) -> tuple[str, int]:
  """The outcome in a line, and the exit status: 1 if a number is off."""
  flat = [r for its_results in results.values() for r in its_results]
  recomputed = sum(r.row.table == "recomputed" for r in flat)
  off = [r for r in flat if not r.ok]
  text = f"{len(flat) - recomputed} numbers that the papers print and {recomputed} recomputed ones: "
  if not off:
    return f"{text}all agree", 0
  names = ", ".join(f"{r.row.network} ({r.row.quantity})" for r in off[:3])
  return f"{text}{len(off)} off: {names}{', ...' if len(off) > 3 else ''}", 1


def run(
    only: Sequence[str] = (), json_path: str | None = None,
    papers: Mapping[str, tuple[str, Callable[[], list[Row]]]] = PAPERS,
) -> int:
  """Prints the table and the verdict, writes the JSON file, returns the exit status.

  Args:
    only: keys of `papers`; none for all.
    json_path: of the JSON file, if one is wanted.
    papers: key -> (name, function that lists the rows).
  """
  rows = {name: list_rows() for key, (name, list_rows) in papers.items() if key in (only or papers)}
  gc.disable()  # tracing makes millions of small objects: a fifth of the time would go into looking at them
  try:
    results = compare_all(rows, sys.stderr)
  finally:
    gc.enable()
  text, status = verdict(results)
  print(f"{as_text(results)}\n\n{text}")
  if json_path:
    with open(json_path, "w", encoding="utf-8") as file:
      json.dump(as_json(results), file, indent=2)
      file.write("\n")
  return status


def _show(value: int | Fraction) -> str:
  return f"{value:,}" if isinstance(value, int) else f"{float(value):.4f} %"
