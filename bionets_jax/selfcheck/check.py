"""What one comparison found, and the table of all."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Check:
  """One comparison.

  Attributes:
    name: of the check.
    compared: what with what.
    difference: the largest one found, relative unless `unit` says otherwise; None if it was not made.
    allowed: the largest one that is right; 0 stands for equal to the bit.
    unit: of both numbers; '' for relative ones.
    note: why it was not made, or what else there is to say.
  """

  name: str
  compared: str
  difference: float | None
  allowed: float
  unit: str = ""
  note: str = ""

  @property
  def ok(self) -> bool:
    """Whether nothing speaks against it: a check that could not be made here is not one that failed."""
    return self.difference is None or self.difference <= self.allowed

  def to_json(self) -> dict[str, Any]:
    """As JSON values; a difference that is not finite is text."""
    found = dataclasses.asdict(self) | {"ok": self.ok}
    if self.difference is not None and not math.isfinite(self.difference):
      found["difference"] = str(self.difference)
    return found


@dataclasses.dataclass(frozen=True)
class Context:
  """Where checks are made.

  Attributes:
    folder: for their runs; exists.
    say: where progress goes.
    devices: those that runs are split over, one at least.
    deterministic: config.deterministic of the runs.
    compile_cache: config.compile_cache of the runs.
  """

  folder: str
  say: Callable[[str], None]
  devices: Sequence[Any]
  deterministic: bool
  compile_cache: str


def table(checks: Sequence[Check]) -> str:
  """One line for each check."""
  rows = [("check", "compared", "largest difference", "allowed", "")]
  for check in checks:
    difference = "not made" if check.difference is None else _number(check.difference, check.unit)
    verdict = "-" if check.difference is None else "ok" if check.ok else "NOT OK"
    rows.append((check.name, check.compared, difference, _number(check.allowed, check.unit),
                 f"{verdict}  {check.note}".rstrip()))
  widths = [max(len(row[i]) for row in rows) for i in range(4)]
  lines = ["  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2].rjust(widths[2]),
                      row[3].rjust(widths[3]), row[4]]).rstrip() for row in rows]
  return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _number(value: float, unit: str) -> str:
  if unit:
    return f"{value:,.0f} {unit}"
  return "0" if value == 0 else f"{value:.1e}"
