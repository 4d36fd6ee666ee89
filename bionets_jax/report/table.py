"""Runs side by side, as text."""

from collections.abc import Mapping
from typing import Any

from bionets_jax.training.clock import readable


def run_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
  """One line a run: parameters, multiply-adds, error after the last step and the lowest, time.

  Args:
    summaries: name -> what summary.json holds.
  """
  header = ("run", "model", "parameters", "MACs", "epochs", "error %", "lowest %", "time")
  rows = [header]
  for name, s in summaries.items():
    rows.append((
        name, s["model"], f"{s['parameters']:,}", f"{s['macs']:,}", f"{s['epochs']:g}",
        f"{s['last']['top1_error']:.2f}", f"{s['best']['top1_error']:.2f}",
        readable(s["total_seconds"])))
  widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
  lines = ["  ".join(cell.ljust(w) if i < 2 else cell.rjust(w)
                     for i, (cell, w) in enumerate(zip(row, widths, strict=True))) for row in rows]
  lines.insert(1, "-" * len(lines[0]))
  return "\n".join(line.rstrip() for line in lines)
