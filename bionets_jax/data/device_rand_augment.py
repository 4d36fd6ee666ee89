"""RandAugment on the device: the operations of rand_augment.py for sets that live there.

Equal to the host's, and so to PIL's, but for the rounding of a few: AutoContrast and the blended ones
(Brightness, Color, Contrast, Sharpness) truncate numbers that may be whole, and may be one level off.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from bionets_jax.data import rand_augment
from bionets_jax.data.levels import as_uint8
from bionets_jax.data.rand_augment import BLENDED, GEOMETRIC, OPERATIONS, source_matrix, strength


class RandAugment(rand_augment.RandAugment):
  """As on the host, with a key for the generator."""

  def __call__(self, image, key):
    which, direction = jax.random.split(key)
    operations = jax.random.randint(which, (self.count,), 0, len(OPERATIONS))
    backwards = jax.random.bernoulli(direction, shape=(self.count,))
    image = as_uint8(image)
    for i in range(self.count):
      image = apply_operation(image, operations[i], self.magnitude, backwards[i])
    return image


def apply_operation(image, operation, magnitude, backwards):
  """Applies one operation.

  Args:
    image: uint8 (h, w, c), c 1 or 3.
    operation: int array (), a position in OPERATIONS.
    magnitude: int from 0 to 30, static.
    backwards: bool array (); the direction, where the operation has one.

  Returns:
    uint8 (h, w, c).
  """
  height, width, _ = image.shape
  amount = {name: strength(name, magnitude, height, width) for name in OPERATIONS}
  signs = (1.0, -1.0)
  backwards = backwards.astype(jnp.int32)
  # Over a batch all operations are computed, and one is taken. So those that move pixels are one
  # gather, with a matrix that may be the identity, and those that blend are one blend.
  matrices = np.array([
      [_fixed(source_matrix(name, sign * amount[name], height, width) if name in GEOMETRIC
              else (1, 0, 0, 0, 1, 0)) for sign in signs]
      for name in OPERATIONS
  ], np.int32)
  image = _move(image, jnp.asarray(matrices)[operation, backwards])
  gray = _gray(image)
  starts = {"Brightness": jnp.zeros_like(image), "Color": gray, "Contrast": _mean(gray),
            "Sharpness": _smooth(image)}
  start = _take(operation, starts, image)
  factor = jnp.asarray([1.0 + sign * amount["Brightness"] for sign in signs], jnp.float32)[backwards]
  return _take(operation, dict.fromkeys(BLENDED, _blend(start, image, factor)) | {
      "Posterize": image & np.uint8(256 - 2 ** (8 - int(amount["Posterize"]))),
      "Solarize": jnp.where(image < math.ceil(amount["Solarize"]), image, 255 - image),
      "AutoContrast": _autocontrast(image),
      "Equalize": _equalize(image),
  }, image)


def _take(operation, results, otherwise):
  """The result of the operation that was drawn, `otherwise` if it has none here."""
  names = list(results)
  which = np.array([names.index(name) if name in results else len(names) for name in OPERATIONS])
  return jax.lax.select_n(
      jnp.asarray(which, jnp.int32)[operation], *results.values(), otherwise)


def _fixed(matrix):
  """PIL's fixed-point form of a matrix: int (6,) in units of 2**-16, pixels' centres at whole numbers."""
  a, b, c, d, e, f = matrix
  whole = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
  return [math.floor(value * 65536.0 + 0.5) for value in whole]


def _move(image, matrix):
  """Takes pixels from where a fixed-point matrix says; black where that is outside."""
  height, width, _ = image.shape
  y, x = jnp.arange(height)[:, None], jnp.arange(width)
  a, b, c, d, e, f = matrix
  column, row = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
  inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
  taken = image[row.clip(0, height - 1), column.clip(0, width - 1)]
  return jnp.where(inside[..., None], taken, 0)


def _blend(start, image, factor):
  """start + factor (image - start), cut to 0..255 and truncated."""
  start = start.astype(jnp.float32)
  return jnp.clip(start + factor * (image.astype(jnp.float32) - start), 0, 255).astype(jnp.uint8)


def _gray(image):
  """PIL's luminance, (h, w, c) with equal channels."""
  if image.shape[-1] == 1:
    return image
  luminance = (image.astype(jnp.int32) * np.array([19595, 38470, 7471], np.int32)).sum(-1, keepdims=True)
  return jnp.broadcast_to((luminance + 0x8000) >> 16, image.shape).astype(jnp.uint8)


def _mean(gray):
  """The rounded mean of an image with equal channels, of its shape."""
  pixels = gray.shape[0] * gray.shape[1]
  total = gray[..., 0].astype(jnp.int32).sum()
  return jnp.broadcast_to((2 * total + pixels) // (2 * pixels), gray.shape).astype(jnp.uint8)


def _smooth(image):
  """PIL's SMOOTH: 3 x 3 means with five times the weight on the centre; the border stays."""
  height, width, _ = image.shape
  if min(height, width) < 3:
    return image
  x = image.astype(jnp.int32)
  rows = x[:-2] + x[1:-1] + x[2:]
  sums = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * x[1:-1, 1:-1]
  return image.at[1:-1, 1:-1].set(((2 * sums + 13) // 26).astype(jnp.uint8))


def _autocontrast(image):
  """Stretches each channel to 0..255."""
  x = image.astype(jnp.int32)
  low, high = x.min((0, 1)), x.max((0, 1))
  stretched = (x - low) * 255 // jnp.maximum(high - low, 1)
  return jnp.where(high > low, stretched, x).astype(jnp.uint8)


def _equalize(image):
  """Spreads each channel's levels so that all are about equally frequent."""
  return jax.vmap(_equalize_channel, in_axes=-1, out_axes=-1)(image)


def _equalize_channel(image):
  flat = image.reshape(-1).astype(jnp.int32)
  counts = jnp.zeros(256, jnp.int32).at[flat].add(1)
  step = (flat.size - counts[flat.max()]) // 255
  below = jnp.cumsum(counts) - counts
  table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
  # Below 255 pixels beside the lightest ones there is nothing to spread; this holds too for one level.
  return jnp.where(step > 0, table[flat], flat).astype(jnp.uint8).reshape(image.shape)
