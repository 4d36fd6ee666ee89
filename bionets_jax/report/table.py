"""Aligned text, and runs side by side."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bionets_jax.training.clock import readable
from bionets_jax.training.spread import Spread


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> list[str]:
  """The rows as lines of text with the same columns; those named in `left` are flush left."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return ["  ".join(cell.ljust(w) if i in left else cell.rjust(w)
                    for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]


def run_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
  """One line a run or sweep: parameters, multiply-adds, errors, time.

  Args:
    summaries: name -> what summary.json holds. Of a sweep's errors the mean, the sample standard deviation
      and the number of seeds are shown, '8.01 ± 0.20 (5)'; its time is that of all seeds.
  """
  tested = any("test" in s for s in summaries.values())
  header = ("run", "model", "parameters", "MACs", "epochs", "error %", "lowest %",
            *(("test %",) if tested else ()), "time")
  rows = [header]
  for name, s in summaries.items():
    runs = list(s["seeds"].values()) if "seeds" in s else [s]
    rows.append((
        name, s["model"], f"{s['parameters']:,}", f"{s['macs']:,}", f"{runs[0]['epochs']:g}",
        _error(s, "last"), _error(s, "best"), *((_error(s, "test"),) if tested else ()),
        readable(sum(run["total_seconds"] for run in runs))))
  lines = aligned(rows, left=(0, 1))
  return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _error(summary: Mapping[str, Any], statistic: str) -> str:
  if statistic not in summary:
    return "-"
  error = summary[statistic]["top1_error"]
  return str(Spread(**error)) if isinstance(error, Mapping) else f"{error:.2f}"
