"""Mean and deviation over seeds."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
  """Mean, sample standard deviation (n - 1; None for one value) and number of some values."""

  mean: float
  std: float | None
  n: int

  def __str__(self) -> str:
    """'8.01 ± 0.20 (5)'; '8.01' for one value."""
    return f"{self.mean:.2f}" + (f" ± {self.std:.2f} ({self.n})" if self.std is not None else "")

  @classmethod
  def of(cls, values: Sequence[float]) -> "Spread | None":
    """None for no values."""
    if not values:
      return None
    return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))
