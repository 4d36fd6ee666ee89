"""RoIAlign: the features under a box, on a fixed grid (Mask R-CNN, section 3)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def pyramid_level(boxes: jax.Array, *, levels: int, finest: float = 56.0) -> jax.Array:
  """The level, from 0, on which a box (..., 4) is looked at (FPN, Eq. 1): int32 (...).

  Args:
    boxes: in pixels.
    levels: their number.
    finest: twice this size belongs to level 1.
  """
  sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
  size = jnp.sqrt(sides[..., 0] * sides[..., 1])
  return jnp.clip(jnp.floor(jnp.log2(size / finest + 1e-6)), 0, levels - 1).astype(jnp.int32)


def roi_align(
    features: Sequence[jax.Array], boxes: jax.Array, level: jax.Array, *, strides: Sequence[int], size: int = 7,
    samples: int = 2, aligned: bool = True,
) -> jax.Array:
  """Means of bilinear samples in each cell of a grid over each box; of one image.

  Args:
    features: of each level (H, W, C).
    boxes: (R, 4) in pixels of the image.
    level: (R,) int32, which of the features belongs to a box.
    strides: of each level, pixels of the image per cell.
    size: rows and columns of the grid.
    samples: in each cell, in each direction.
    aligned: the centre of the features' first cell lies at half a stride, as in mmdetection; if not it lies at 0 and
      boxes are at least a cell large, as in torchvision's detectors.

  Returns:
    (R, size, size, C) in the dtype of the features. Samples outside of the features' first and last cell by more than
    a cell are 0, others take the nearest.
  """
  shapes = [f.shape[:2] for f in features]
  flat = jnp.concatenate([f.reshape(-1, f.shape[-1]) for f in features])
  starts = [0]
  for height, width in shapes[:-1]:
    starts.append(starts[-1] + height * width)
  stride, start = (jnp.asarray(v)[level] for v in (strides, starts))
  shape = jnp.asarray(shapes)[level]  # (R, 2) of rows and columns

  dtype = flat.dtype
  wide = jnp.promote_types(dtype, jnp.float32)
  scaled = boxes.astype(wide) / stride[:, None] - (0.5 if aligned else 0.0)
  low, extent = scaled[:, 1::-1], (scaled[:, 2:] - scaled[:, :2])[:, ::-1]  # (R, 2) of y and x
  if not aligned:
    extent = jnp.maximum(extent, 1.0)
  steps = (jnp.arange(size * samples) + 0.5) / samples / size
  at = low[..., None] + extent[..., None] * steps  # (R, 2, size * samples)
  inside = (at >= -1.0) & (at <= shape[..., None])
  at = jnp.clip(at, 0.0, shape[..., None] - 1.0)
  first = jnp.floor(at).astype(jnp.int32)
  share = at - first
  # Of each sample the two cells around it, (R, 2, size, 2 * samples), and their weights.
  cells = jnp.stack([first, jnp.minimum(first + 1, shape[..., None] - 1)], axis=-1)
  weight = jnp.stack([1 - share, share], axis=-1) * inside[..., None] / samples
  (rows, columns), (row_weight, column_weight) = (
      jnp.moveaxis(x.reshape(len(boxes), 2, size, 2 * samples), 1, 0) for x in (cells, weight.astype(dtype)))
  columns = columns.reshape(len(boxes), -1) + start[:, None]

  def grid_row(part):
    rows, weight = part  # (R, 2 * samples)
    found = flat[(rows * shape[:, 1:])[:, :, None] + columns[:, None]]
    found = found.reshape(*found.shape[:2], size, 2 * samples, -1)
    return jnp.einsum("ry,ryqxc,rqx->rqc", weight, found, column_weight, preferred_element_type=wide).astype(dtype)

  # What is gathered is `4 * samples ** 2` times the result: of one row of the grid after the other, to save memory.
  made = jax.lax.map(grid_row, (jnp.moveaxis(rows, 1, 0), jnp.moveaxis(row_weight, 1, 0)))
  return jnp.moveaxis(made, 0, 1)
