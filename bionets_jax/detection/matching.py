"""Which anchor or proposal answers for which object, and which of them a loss looks at."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Match(NamedTuple):
  """What each of N boxes stands for.

  index: (N,) int32, the object that it is compared with; of those without one the nearest.
  positive: (N,) bool, it stands for that object.
  negative: (N,) bool, it stands for the background. Boxes that are neither are in no loss.
  """

  index: jax.Array  # type: ignore[assignment]  # tuple's own is not used
  positive: jax.Array
  negative: jax.Array


def match(
    overlap: jax.Array, present: jax.Array, *, high: float, low: float, rescue: str = "", least: float = 0.0,
    usable: jax.Array | None = None,
) -> Match:
  """Assigns boxes to objects by their overlap.

  A box whose largest overlap is `high` or more is positive, below `low` negative, in between neither.

  Args:
    overlap: (G, N) of each of the objects with each of the boxes.
    present: (G,) bool; the other rows are padding. If none is, all boxes are negative.
    high, low: see above.
    rescue: what becomes of boxes whose overlap with an object is the largest that the object has with any, but
      less than `high`: '' nothing; 'nearest', they stand for the object that they overlap most (torchvision);
      'own', they stand for that object, the last of several, even if they overlap another more (mmdetection).
    least: an object that overlaps with no box by as much is not rescued (mmdetection's `min_pos_iou`).
    usable: (N,) bool; the other boxes are neither positive nor negative. None for all.

  Raises:
    ValueError: for another `rescue`, or high < low.
  """
  if rescue not in ("", "nearest", "own"):
    raise ValueError(f"rescue={rescue!r}: give '', 'nearest' or 'own'")
  if high < low:
    raise ValueError(f"high={high} is less than low={low}")
  usable = jnp.ones(overlap.shape[1], bool) if usable is None else usable
  overlap = jnp.where(present[:, None] & usable, overlap, -1.0)
  best = overlap.max(axis=0)
  index = overlap.argmax(axis=0).astype(jnp.int32)
  positive = best >= high
  if rescue:
    most = overlap.max(axis=1, keepdims=True)
    # An object that nothing overlaps has no best box; torchvision takes all boxes for it then, which is no use.
    owns = (overlap == most) & (most >= least) & (most > 0)
    positive |= owns.any(axis=0)
    if rescue == "own":
      last = overlap.shape[0] - 1 - owns[::-1].argmax(axis=0).astype(jnp.int32)
      index = jnp.where(owns.any(axis=0), last, index)
  return Match(index, positive, usable & (best < low) & ~positive)


class Sample(NamedTuple):
  """Some of N boxes, S of them.

  index: (S,) int32.
  positive: (S,) bool.
  present: (S,) bool; there were no more boxes for the others.
  """

  index: jax.Array  # type: ignore[assignment]  # tuple's own is not used
  positive: jax.Array
  present: jax.Array


def sample(rng: jax.Array, found: Match, number: int, share: float) -> Sample:
  """At random at most `number` boxes, of which at most the given share positive, the others negative.

  Args:
    rng: a key.
    found: of N boxes.
    number: of the result, which is S = min(number, N) long.
    share: 0 to 1, the most positive ones; where there are fewer, negative ones take their place.
  """
  size = found.positive.shape[0]
  drawn = jax.random.uniform(rng, (size,))
  most = min(int(number * share), size)
  wanted = min(number, size)
  if most:
    value, index = jax.lax.top_k(jnp.where(found.positive, drawn, -1.0), most)
    chosen = jnp.zeros(size, bool).at[index].set(value >= 0)
  else:
    chosen = jnp.zeros(size, bool)
  value, index = jax.lax.top_k(jnp.where(chosen, 2.0 + drawn, jnp.where(found.negative, drawn, -1.0)), wanted)
  return Sample(index, value >= 2, value >= 0)
