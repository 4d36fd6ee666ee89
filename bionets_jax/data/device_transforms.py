"""Augmentation of single examples on the device, for sets that live there.

A transform is called with one image (h, w, c), uint8 or float32 in 0..255, and a key; what it
returns is again one of the two. Rounding to uint8 comes once, at the end.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bionets_jax.data.device_rand_augment import RandAugment
from bionets_jax.data.grammar import check_number, check_pixels
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
    # Taking columns: a choice between the image and its mirror would compute what comes before twice.
    columns = jnp.arange(image.shape[1])
    return image[:, jnp.where(jax.random.bernoulli(key), columns[::-1], columns)]


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


@dataclasses.dataclass(frozen=True)
class Affine:
  """One random affine map of Keras' ImageDataGenerator: rotation, shift, shear and zoom together.

  Bilinear, pixels from outside are the nearest ones of the border, `affine_map` has the geometry.
  All are uniform: the rotation in +-`rotation` degrees, both shifts in +-`shift` of the width and
  of the height, both zooms each in `zoom_low`..`zoom_high` (below 1 enlarges), the shear in +-`shear`
  degrees.
  """

  rotation: float
  shift: float = 0.0
  zoom_low: float = 1.0
  zoom_high: float = 1.0
  shear: float = 0.0

  usage = "affine(rotation[, shift, zoom_low, zoom_high, shear])"
  is_random = True

  def __post_init__(self):
    check_number("rotation", self.rotation, 0, 180)
    check_number("shift", self.shift, 0, 1)
    check_number("zoom_low", self.zoom_low, 0.01, 100)
    check_number("zoom_high", self.zoom_high, self.zoom_low, 100)
    check_number("shear", self.shear, 0, 89)

  def output_size(self, size):
    return size

  def __call__(self, image, key):
    limits = np.array([self.rotation, self.shift, self.shift, self.shear], np.float32)
    around, within = jax.random.split(key)
    rotation, shift_x, shift_y, shear = limits * jax.random.uniform(
        around, (4,), minval=-1.0, maxval=1.0)
    zoom_x, zoom_y = jax.random.uniform(
        within, (2,), minval=self.zoom_low, maxval=self.zoom_high)
    return affine_map(image, rotation, shift_x, shift_y, shear, zoom_x, zoom_y)


@dataclasses.dataclass(frozen=True)
class ChannelShift:
  """Keras' channel shift: adds one random number to all channels.

  Uniform in +-`limit` of the full range 0..255; the result is cut to the range that the image's own
  levels span.
  """

  limit: float

  usage = "channel_shift(limit)"
  is_random = True

  def __post_init__(self):
    check_number("limit", self.limit, 0, 1)

  def output_size(self, size):
    return size

  def __call__(self, image, key):
    limit = 255.0 * self.limit
    return channel_shift(image, jax.random.uniform(key, minval=-limit, maxval=limit))


def affine_map(image, rotation, shift_x, shift_y, shear, zoom_x, zoom_y):
  """Keras' `apply_affine_transform`, bilinear and with the border's pixels outside.

  A pixel at p = (x, y) from the image's centre comes from R S H Z p: zoomed first, then sheared,
  shifted and rotated. Keras measures the centre and shifts of images that are not square along the
  wrong axes; here each is along its own.

  Args:
    image: (h, w, c), uint8 or float32.
    rotation, shear: degrees.
    shift_x, shift_y: parts of the width and of the height.
    zoom_x, zoom_y: factors; below 1 enlarges.

  Returns:
    float32 (h, w, c).
  """
  height, width, _ = image.shape
  rotation, shear = jnp.deg2rad(rotation), jnp.deg2rad(shear)
  cos, sin = jnp.cos(rotation), jnp.sin(rotation)
  x = zoom_x * (jnp.arange(width) - (width - 1) / 2)
  y = zoom_y * (jnp.arange(height) - (height - 1) / 2)[:, None]
  x, y = x - jnp.sin(shear) * y + shift_x * width, jnp.cos(shear) * y + shift_y * height
  x, y = cos * x - sin * y, sin * x + cos * y
  x = jnp.clip(x + (width - 1) / 2, 0, width - 1)
  y = jnp.clip(y + (height - 1) / 2, 0, height - 1)

  left, top = jnp.floor(x).astype(jnp.int32), jnp.floor(y).astype(jnp.int32)
  right, bottom = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)
  x, y = (x - left)[..., None], (y - top)[..., None]

  def pixels(rows, columns):
    return image.at[rows, columns].get(mode="promise_in_bounds").astype(jnp.float32)

  # Four gathers that XLA fuses with the rest into one loop: 3 to 4 times as fast, on CPU, as one gather
  # of patches, which would have to be written to memory.
  above = (1 - x) * pixels(top, left) + x * pixels(top, right)
  below = (1 - x) * pixels(bottom, left) + x * pixels(bottom, right)
  return (1 - y) * above + y * below


def channel_shift(image, shift):
  """Adds `shift`, in levels, and cuts to the image's own range; (h, w, c) to float32 (h, w, c)."""
  image = image.astype(jnp.float32)
  # In two steps and both at once: one reduction over everything would recompute all that comes before,
  # twice and on CPU in one thread.
  ends = jnp.stack([image.min(0), -image.max(0)]).min((1, 2))
  return jnp.clip(image + shift, ends[0], -ends[1])


DEVICE_TRANSFORMS = {
    "affine": Affine,
    "channel_shift": ChannelShift,
    "flip": Flip,
    "pad_crop": PadCrop,
    "rand_augment": RandAugment,
    "resize_to": ResizeTo,
}
