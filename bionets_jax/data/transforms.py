"""Preparation and augmentation of single examples on the host.

The rules are torchvision's to the pixel (its PIL backend), since that is what the published
networks were trained and tested with; resizing is PIL's, which antialiases. The one exception has to be asked
for: `fast_bilinear` (fast_resize.py) takes less time and is a level off here and there.

A transform is called with an image, uint8 (h, w, c), and a `numpy.random.Generator` of that
example. Only `Generator.random()` is drawn from, whose stream follows from the bit generator's,
so that augmentations do not change with NumPy's version.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

from bionets_jax.data import fast_resize
from bionets_jax.data.decode import MAX_PIXELS
from bionets_jax.data.grammar import check_pixels
from bionets_jax.data.rand_augment import RandAugment

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FAST = "fast_bilinear"
NEAREST = "nearest"


def example_rng(seed, epoch, index):
  """Returns the generator of one example: the same for any batch, worker and process."""
  return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, index))))


def resize_to(image, height, width, interpolation):
  """Resizes uint8 (h, w, c) to (height, width, c) with an antialiased filter: PIL's, or nearly so if FAST.

  Raises:
    ValueError: more than MAX_PIXELS, as of a line of pixels that is enlarged.
  """
  check_area(height, width)
  if interpolation == FAST:
    return fast_resize.resize_to(image, height, width)
  gray = image.shape[-1] == 1
  # A crop is a view with gaps; PIL copies what is not contiguous.
  pil = Image.fromarray(image[..., 0] if gray else image)
  resized = np.asarray(pil.resize((width, height), _FILTERS[interpolation]))
  return resized[..., None] if gray else resized


def check_area(height, width):
  """Raises ValueError for an image of more than MAX_PIXELS."""
  if height * width > MAX_PIXELS:
    raise ValueError(f"the image would become {width} x {height} pixels; at most {MAX_PIXELS:,} are made")


def nearest_positions(old, new):
  """Where each of `new` pixels in a row comes from in a row of `old`: int (new,).

  The rule is OpenCV's INTER_NEAREST, floor(i * old / new), in its own float64 arithmetic. PIL takes
  the pixel under the centre instead, floor((i + 1/2) * old / new); where `new` is a multiple of
  `old`, both are the same.
  """
  return np.minimum(np.floor(np.arange(new) * (1 / (new / old))).astype(int), old - 1)


def check_interpolation(value, known=(*_FILTERS, FAST)):
  """Raises ValueError for a filter that is not among `known`, or whose package is not installed."""
  if value not in known:
    raise ValueError(f"interpolation must be one of {', '.join(known)}, got {value!r}.")
  if value == FAST:
    fast_resize.check_installed()  # now, and not in a worker


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
  """torchvision's RandomResizedCrop: a random part of the image, resized to a square.

  Its area is uniform in 8 % to 100 % of the image's and its aspect ratio log-uniform in 3/4 to
  4/3; after ten draws that do not fit, the largest central crop with a ratio in that range.
  """

  size: int
  interpolation: str = "bilinear"

  usage = "random_resized_crop(size[, bilinear|bicubic|fast_bilinear])"
  is_random = True
  scale = (0.08, 1.0)
  ratio = (3 / 4, 4 / 3)

  def __post_init__(self):
    check_pixels("size", self.size)
    check_interpolation(self.interpolation)

  def output_size(self, size):
    del size
    return self.size, self.size

  def box(self, height, width, rng):
    """Returns the crop (top, left, height, width)."""
    log_ratio = math.log(self.ratio[0]), math.log(self.ratio[1])
    for _ in range(10):
      area = height * width * uniform(rng, *self.scale)
      aspect = math.exp(uniform(rng, *log_ratio))
      w = round(math.sqrt(area * aspect))
      h = round(math.sqrt(area / aspect))
      if 0 < w <= width and 0 < h <= height:
        top = int(rng.random() * (height - h + 1))
        left = int(rng.random() * (width - w + 1))
        return top, left, h, w
    if width / height < self.ratio[0]:
      w, h = width, round(width / self.ratio[0])
    elif width / height > self.ratio[1]:
      w, h = round(height * self.ratio[1]), height
    else:
      w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w

  def cut(self, image, box):
    """Crops and resizes; rows of the image below the box may be missing."""
    top, left, h, w = box
    # Cropped first: resize(box=...) would let the filter see pixels outside the crop.
    return resize_to(image[top:top + h, left:left + w], self.size, self.size, self.interpolation)

  def __call__(self, image, rng):
    return self.cut(image, self.box(*image.shape[:2], rng))


@dataclasses.dataclass(frozen=True)
class Flip:
  """Mirrors left and right with probability 1/2."""

  usage = "flip"
  is_random = True

  def output_size(self, size):
    return size

  def __call__(self, image, rng):
    return mirror(image) if rng.random() < 0.5 else image


def mirror(image):
  """Returns a copy of (h, w, c) with left and right exchanged."""
  mirrored = np.empty_like(image)
  for channel in range(image.shape[-1]):  # 2.5 times as fast as NumPy's copy of pixels of three bytes
    mirrored[..., channel] = image[:, ::-1, channel]
  return mirrored


@dataclasses.dataclass(frozen=True)
class Resize:
  """torchvision's Resize(int): the shorter side becomes `size`, the aspect ratio stays."""

  size: int
  interpolation: str = "bilinear"

  usage = "resize(size[, bilinear|bicubic|fast_bilinear])"
  is_random = False

  def __post_init__(self):
    check_pixels("size", self.size)
    check_interpolation(self.interpolation)

  def output_size(self, size):
    height, width = size
    if height is None or width is None:
      return None, None
    if width <= height:
      return int(self.size * height / width), self.size
    return self.size, int(self.size * width / height)

  def __call__(self, image, rng):
    del rng
    height, width = self.output_size(image.shape[:2])
    if (height, width) == image.shape[:2]:
      return image
    return resize_to(image, height, width, self.interpolation)


@dataclasses.dataclass(frozen=True)
class CenterCrop:
  """torchvision's CenterCrop: the central square; a smaller image is padded with black."""

  size: int

  usage = "center_crop(size)"
  is_random = False

  def __post_init__(self):
    check_pixels("size", self.size)

  def output_size(self, size):
    del size
    return self.size, self.size

  def __call__(self, image, rng):
    del rng
    missing = [max(self.size - n, 0) for n in image.shape[:2]]
    if any(missing):
      image = np.pad(image, [(m // 2, m - m // 2) for m in missing] + [(0, 0)])
    top, left = (round((n - self.size) / 2) for n in image.shape[:2])
    return image[top:top + self.size, left:left + self.size]


@dataclasses.dataclass(frozen=True)
class ResizeTo:
  """Resizes to a square, whatever the aspect ratio. 'nearest' is `nearest_positions`' rule."""

  size: int
  interpolation: str = "bilinear"

  usage = "resize_to(size[, bilinear|bicubic|fast_bilinear|nearest])"
  is_random = False

  def __post_init__(self):
    check_pixels("size", self.size)
    check_interpolation(self.interpolation, (*_FILTERS, FAST, NEAREST))

  def output_size(self, size):
    del size
    return self.size, self.size

  def __call__(self, image, rng):
    del rng
    if image.shape[:2] == (self.size, self.size):
      return image
    if self.interpolation == NEAREST:
      rows, columns = (nearest_positions(n, self.size) for n in image.shape[:2])
      return image[rows[:, None], columns]
    return resize_to(image, self.size, self.size, self.interpolation)


@dataclasses.dataclass(frozen=True)
class PadSquare:
  """Pads the shorter side with black to a square, the image in the middle.

  If the two sides differ by an odd number, the row more is below or to the right.
  """

  usage = "pad_square"
  is_random = False

  def output_size(self, size):
    return (None, None) if None in size else (max(size), max(size))

  def __call__(self, image, rng):
    del rng
    check_area(*[max(image.shape[:2])] * 2)
    missing = [max(image.shape[:2]) - n for n in image.shape[:2]]
    return np.pad(image, [(m // 2, m - m // 2) for m in missing] + [(0, 0)])


@dataclasses.dataclass(frozen=True)
class TenCrop:
  """torchvision's TenCrop: uint8 (10, size, size, c).

  Corners (top left, top right, bottom left, bottom right) and centre of the image, then the same
  five of its mirror image. It must come last; networks' outputs are averaged over the ten.
  """

  size: int

  usage = "ten_crop(size)"
  is_random = False
  crops = 10

  def __post_init__(self):
    check_pixels("size", self.size)

  def output_size(self, size):
    if min((n for n in size if n is not None), default=self.size) < self.size:
      raise ValueError(f"an image of {size[0]} x {size[1]} pixels is too small for {self.size} x {self.size}"
                       " crops.")
    return self.size, self.size

  def __call__(self, image, rng):
    height, width = image.shape[:2]
    self.output_size((height, width))
    top, left, n = height - self.size, width - self.size, self.size
    centre = CenterCrop(n)
    return np.stack([
        crop for view in (image, image[:, ::-1]) for crop in (
            view[:n, :n], view[:n, left:], view[top:, :n], view[top:, left:], centre(view, rng))
    ])


HOST_TRANSFORMS = {
    "center_crop": CenterCrop,
    "flip": Flip,
    "pad_square": PadSquare,
    "rand_augment": RandAugment,
    "random_resized_crop": RandomResizedCrop,
    "resize": Resize,
    "resize_to": ResizeTo,
    "ten_crop": TenCrop,
}


def apply_all(transforms, image, rng):
  """Applies host transforms from left to right."""
  for transform in transforms:
    image = transform(image, rng)
  return image


def output_size(transforms, size):
  """Returns (height, width) after `transforms`; None where it varies with the image."""
  for transform in transforms:
    size = transform.output_size(size)
  return size


def uniform(rng, low, high):
  """Returns a float drawn from [low, high)."""
  return low + (high - low) * rng.random()
