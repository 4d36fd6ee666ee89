"""Non-maximum suppression with fixed shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bionets_jax.detection.boxes import iou


class Kept(NamedTuple):
  """index: (limit,) int32 into the boxes, by falling score; present: (limit,) bool, false behind the last."""

  index: jax.Array
  present: jax.Array


def nms(boxes: jax.Array, scores: jax.Array, *, threshold: float, limit: int) -> Kept:
  """The boxes that overlap by more than `threshold` with no kept box of a higher score.

  Whether a box is kept depends on those before it alone, so that repeating that rule for all boxes at once, from any
  beginning, settles them one after the other: it ends with what the usual loop finds, after as many rounds as the
  longest chain of boxes of which each decides on the next, not after as many as there are boxes.

  Args:
    boxes: (N, 4).
    scores: (N,); boxes of -inf are not there.
    threshold: of intersection over union.
    limit: how many are returned.
  """
  order = jnp.argsort(-scores, stable=True)
  boxes, there = boxes[order], scores[order] > -jnp.inf
  # [i, j]: i, of the higher score, would suppress j.
  over = jnp.triu(iou(boxes, boxes) > threshold, k=1)

  def apply(kept):
    return there & ~(over & kept[:, None]).any(axis=0)

  def unsettled(state):
    before, kept = state
    return (before != kept).any()

  _, kept = jax.lax.while_loop(unsettled, lambda state: (state[1], apply(state[1])), (there, apply(there)))
  wanted = min(limit, len(order))
  first = jnp.argsort(~kept, stable=True)[:wanted]
  pad = [(0, limit - wanted)]
  return Kept(jnp.pad(order[first], pad).astype(jnp.int32), jnp.pad(kept[first], pad))


def nms_by_class(
    boxes: jax.Array, scores: jax.Array, *, threshold: float, limit: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """`nms` within each class, and of all that is kept the best.

  Args:
    boxes: (N, K, 4) for each class, or (N, 1, 4) for all.
    scores: (N, K); -inf where there is none.
    threshold, limit: as in `nms`.

  Returns:
    boxes (limit, 4), scores (limit,), classes (limit,) int32, present (limit,) bool.
  """
  classes = scores.shape[1]
  boxes = jnp.broadcast_to(boxes, (*scores.shape, 4))
  kept = jax.vmap(lambda b, s: nms(b, s, threshold=threshold, limit=scores.shape[0]), in_axes=1)(boxes, scores)
  of = jnp.arange(classes)[:, None]
  found = jnp.where(kept.present, scores[kept.index, of], -jnp.inf).ravel()
  wanted = min(limit, found.size)
  best, at = jax.lax.top_k(found, wanted)
  index = kept.index.ravel()[at]
  label = (at // scores.shape[0]).astype(jnp.int32)
  pad = limit - wanted
  return (jnp.pad(boxes[index, label], [(0, pad), (0, 0)]), jnp.pad(best, [(0, pad)], constant_values=-jnp.inf),
          jnp.pad(label, [(0, pad)]), jnp.pad(best > -jnp.inf, [(0, pad)]))


def nms_of_labels(
    boxes: jax.Array, scores: jax.Array, labels: jax.Array, *, threshold: float, limit: int
) -> Kept:
  """`nms` among boxes of the same label only: (N, 4), (N,), (N,) int32."""
  # Far apart, boxes of different labels do not overlap.
  apart = jnp.where(jnp.isfinite(boxes), boxes, 0.0).max() + 1.0
  return nms(boxes + (labels * apart)[:, None], scores, threshold=threshold, limit=limit)
