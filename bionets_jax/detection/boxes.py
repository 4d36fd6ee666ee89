"""Boxes: float arrays (..., 4) of left, top, right and bottom, in pixels from the image's upper left corner.

A pixel is a unit square, so that a box of one pixel is (x, y, x + 1, y + 1), as in torchvision and mmdetection 2.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Of a predicted size in units of its anchor's: exp of more is of no use, and overflows.
LARGEST_SCALE = 1000.0 / 16.0
# Of sides that are divided by: padding has none.
_LEAST_SIDE = 1e-6


def area(boxes: jax.Array) -> jax.Array:
  """(...): of boxes (..., 4)."""
  return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
  """Intersection over union of each of a (M, 4) with each of b (N, 4): (M, N). 0 where both are empty."""
  low = jnp.maximum(a[:, None, :2], b[None, :, :2])
  high = jnp.minimum(a[:, None, 2:], b[None, :, 2:])
  sides = jnp.maximum(high - low, 0.0)
  common = sides[..., 0] * sides[..., 1]
  union = area(a)[:, None] + area(b)[None, :] - common
  return jnp.where(union > 0, common / jnp.where(union > 0, union, 1.0), 0.0)


def encode(boxes: jax.Array, anchors: jax.Array, std: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> jax.Array:
  """What a network is to predict so that `decode` gives these boxes (Fast R-CNN's parametrisation).

  Args:
    boxes, anchors: (..., 4).
    std: the differences of centre and of the logarithm of the size are divided by it.

  Returns:
    (..., 4): of the centre in units of the anchor's size, and of the size in logarithms.
  """
  centre, size = _centre_and_size(boxes)
  at, of = _centre_and_size(anchors)
  delta = jnp.concatenate([(centre - at) / of, jnp.log(size / of)], axis=-1)
  return delta / jnp.asarray(std, delta.dtype)


def decode(deltas: jax.Array, anchors: jax.Array, std: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> jax.Array:
  """The boxes (..., 4) that predictions (..., 4) stand for; the inverse of `encode` below `LARGEST_SCALE`."""
  deltas = deltas * jnp.asarray(std, deltas.dtype)
  at, of = _centre_and_size(anchors)
  centre = deltas[..., :2] * of + at
  half = jnp.exp(jnp.minimum(deltas[..., 2:], math.log(LARGEST_SCALE))) * of / 2
  return jnp.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes: jax.Array, size: jax.Array) -> jax.Array:
  """What of boxes (..., 4) lies in an image of `size` (height, width)."""
  height, width = size[..., 0], size[..., 1]
  return jnp.clip(boxes, 0.0, jnp.stack([width, height, width, height], axis=-1).astype(boxes.dtype))


def flip(boxes: jax.Array, width: jax.Array | float) -> jax.Array:
  """Boxes (..., 4) of the mirror image of an image of this width."""
  return jnp.stack([width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], axis=-1)


def _centre_and_size(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
  low, high = boxes[..., :2], boxes[..., 2:]
  return (low + high) / 2, jnp.maximum(high - low, _LEAST_SIDE)
