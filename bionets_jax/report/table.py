"""Aligned text, and runs side by side."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bionets_jax.training.clock import readable
from bionets_jax.training.spread import Spread
from bionets_jax.weights.run_metric import Metric, metric_of, network_of


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> list[str]:
  """The rows as lines of text with the same columns; those named in `left` are flush left."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return ["  ".join(cell.ljust(w) if i in left else cell.rjust(w)
                    for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]


def run_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
  """One line a run or sweep: parameters, multiply-adds, errors, time. Detectors have a table of their own.

  Args:
    summaries: name -> what summary.json holds. Of a sweep's errors the mean, the sample standard deviation
      and the number of seeds are shown, '8.01 ± 0.20 (5)'; its time is that of all seeds.
  """
  groups: dict[Metric, dict[str, Mapping[str, Any]]] = {}
  for name, summary in summaries.items():
    groups.setdefault(metric_of(summary), {})[name] = summary
  return "\n\n".join(_table(group, metric) for metric, group in groups.items())


def _table(summaries: Mapping[str, Mapping[str, Any]], metric: Metric) -> str:
  tested = any("test" in s for s in summaries.values())
  header = ("run", "model", "parameters", "MACs", "epochs", metric.column, f"{metric.extreme} %",
            *(("test %",) if tested else ()), "time")
  rows = [header]
  for name, s in summaries.items():
    runs = list(s["seeds"].values()) if "seeds" in s else [s]
    rows.append((
        name, network_of(s), f"{s['parameters']:,}", f"{s['macs']:,}", f"{runs[0]['epochs']:g}",
        *(_show(s, part, metric.key) for part in ("last", "best", "test")[:2 + tested]),
        readable(sum(run["total_seconds"] for run in runs))))
  lines = aligned(rows, left=(0, 1))
  return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _show(summary: Mapping[str, Any], statistic: str, key: str) -> str:
  value = summary.get(statistic, {}).get(key)
  if value is None:
    return "-"
  return str(Spread(**value)) if isinstance(value, Mapping) else f"{value:.2f}"
