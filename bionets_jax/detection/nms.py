"""Non-maximum suppression with fixed shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bionets_jax.detection.boxes import iou


class Kept(NamedTuple):
  """index: (limit,) int32 into the boxes, by falling score; present: (limit,) bool, false behind the last."""

  index: jax.Array  # type: ignore[assignment]  # tuple's own is not used
  present: jax.Array


def nms(
    boxes: jax.Array, scores: jax.Array, labels: jax.Array | None = None, *, threshold: float, limit: int,
    most: int | None = None,
) -> Kept:
  """The boxes that overlap by more than `threshold` with no kept box of a higher score.

  Whether a box is kept depends on those before it alone, so that repeating that rule for all boxes at once, from any
  beginning, settles them one after the other: it ends with what the usual loop finds, after as many rounds as the
  longest chain of boxes of which each decides on the next, not after as many as there are boxes.

  Args:
    boxes: (N, 4).
    scores: (N,); boxes of -inf are not there.
    labels: (N,) int32; boxes of different labels do not suppress each other. None for all the same.
    threshold: of intersection over union.
    limit: how many are returned.
    most: how many boxes, the best, are looked at, since time and memory grow with their square; None for all. The
      result is that for all of them wherever `limit` boxes are found, as those behind decide on none before.
  """
  number = min(len(boxes), max(most or len(boxes), limit))
  order = jnp.argsort(-scores, stable=True)[:number]
  boxes, there = boxes[order], scores[order] > -jnp.inf
  # [i, j]: i, of the higher score, would suppress j.
  over = jnp.triu(iou(boxes, boxes) > threshold, k=1)
  if labels is not None:
    labels = labels[order]
    over &= labels[:, None] == labels

  def apply(kept):
    return there & ~(over & kept[:, None]).any(axis=0)

  def unsettled(state):
    before, kept = state
    return (before != kept).any()

  _, kept = jax.lax.while_loop(unsettled, lambda state: (state[1], apply(state[1])), (there, apply(there)))
  wanted = min(limit, number)
  first = jnp.argsort(~kept, stable=True)[:wanted]
  pad = [(0, limit - wanted)]
  return Kept(jnp.pad(order[first], pad).astype(jnp.int32), jnp.pad(kept[first], pad))
