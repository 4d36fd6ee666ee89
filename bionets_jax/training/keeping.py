"""Which checkpoints of a run are kept."""

import dataclasses
import math
from collections.abc import Mapping

import ml_collections

from bionets_jax.training.config import duration_in_steps


@dataclasses.dataclass(frozen=True)
class Keep:
  """A checkpoint that any of these asks for is kept.

  last: that many of the newest, 1 at least.
  best: that many of those with the lowest error.
  every: steps; of each such period behind the first one the checkpoint that was saved first. 0 for none.
  """

  last: int = 1
  best: int = 0
  every: int = 0


def keep_of(config: ml_collections.ConfigDict, steps_per_epoch: int) -> Keep:
  """What `keep_checkpoints`, `keep_best` and `keep_every` of a config ask for.

  Raises:
    ValueError: naming the key and what would be right.
  """
  for key, least in (("keep_checkpoints", 1), ("keep_best", 0)):
    if getattr(config, key) < least:
      raise ValueError(f"config.{key}={getattr(config, key)}: give {least} or more")
  every = config.keep_every and duration_in_steps(config.keep_every, steps_per_epoch, "keep_every")
  if every == 0:
    raise ValueError(f"config.keep_every={config.keep_every!r} is less than a step; for none give ''")
  return Keep(config.keep_checkpoints, config.keep_best, every or 0)


def kept(errors: Mapping[int, float | None], keep: Keep) -> set[int]:
  """The steps that are kept.

  Args:
    errors: saved step -> error of the last evaluation at or before it, None for none. Of equal errors the
      earlier step counts as the better: it is nearer to the weights that were evaluated. What is not finite is no error.
    keep: what is asked for.
  """
  steps = sorted(errors)
  rated = sorted((error, step) for step, error in errors.items() if error is not None and math.isfinite(error))
  out = set(steps[-keep.last:]) | {step for _, step in rated[:keep.best]}
  if keep.every:
    first = {step // keep.every: step for step in reversed(steps)}
    out |= {step for period, step in first.items() if period}
  return out
