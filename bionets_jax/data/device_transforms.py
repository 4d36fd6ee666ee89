"""Augmentation of single examples on the device, for sets that live there.

A transform is called with one image (h, w, c), uint8 or float32 in 0..255, and a key; what it
returns is again one of the two. Rounding to uint8 comes once, at the end (`finish`).
"""

import dataclasses

import jax
import jax.numpy as jnp

from bionets_jax.data.grammar import check_pixels
from bionets_jax.data.transforms import NEAREST, nearest_positions


@dataclasses.dataclass(frozen=True)
class PadCrop:
  """Pads with `pixels` of black on all sides and crops the original size at random."""

  pixels: int

  usage = "pad_crop(pixels)"
  is_random = True

  def __post_init__(self):
    check_pixels("pixels", self.pixels)

  def output_size(self, size):
    return size

  def __call__(self, image, key):
    height, width, channels = image.shape
    n = self.pixels
    padded = jnp.pad(image, ((n, n), (n, n), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * n + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), (height, width, channels))


@dataclasses.dataclass(frozen=True)
class Flip:
  """Mirrors left and right with probability 1/2."""

  usage = "flip"
  is_random = True

  def output_size(self, size):
    return size

  def __call__(self, image, key):
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


@dataclasses.dataclass(frozen=True)
class ResizeTo:
  """Resizes to a square by the same 'nearest' rule as the host, so that a small set stays small."""

  size: int
  interpolation: str

  usage = "resize_to(size, nearest)"
  is_random = False

  def __post_init__(self):
    check_pixels("size", self.size)
    if self.interpolation != NEAREST:
      raise ValueError(f"On the device interpolation must be {NEAREST}, got {self.interpolation!r}.")

  def output_size(self, size):
    del size
    return self.size, self.size

  def __call__(self, image, key):
    del key
    rows, columns = (nearest_positions(n, self.size) for n in image.shape[:2])
    return image[rows][:, columns]


DEVICE_TRANSFORMS = {"flip": Flip, "pad_crop": PadCrop, "resize_to": ResizeTo}


def finish(image):
  """Returns the image as uint8: float32 is rounded to the nearest level, 1/2 at most away."""
  if image.dtype == jnp.uint8:
    return image
  return jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)
