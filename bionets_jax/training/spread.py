"""Mean and deviation over seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
  """Mean, sample standard deviation (n - 1; None for one value, or one that is not finite) and number."""

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
    spread = len(values) > 1 and all(map(math.isfinite, values))
    return cls(statistics.fmean(values), statistics.stdev(values) if spread else None, len(values))
