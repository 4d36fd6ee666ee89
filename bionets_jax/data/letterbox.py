"""Images of any size in a few static shapes: resized with their ratio kept, then padded below and to the right.

A detector is compiled once for each shape of its input, so that images of all sizes have to share a few. Resized
as mmdetection does it (`Resize(img_scale=(long, short), keep_ratio=True)`), most photographs are of the ratio
4 : 3 or nearer to a square; the others go into a longer shape, and each of the two is there upright as well.
"""

import dataclasses
import functools

import numpy as np

from bionets_jax.data.grammar import check_pixels
from bionets_jax.data.transforms import check_interpolation, resize_to

_MULTIPLE = 32  # the stride of a backbone's last stage, as mmdetection pads


@dataclasses.dataclass(frozen=True)
class Letterbox:
  """Resizes so that the shorter side is `short`, unless the longer one would exceed `long`; then pads with zero.

  Attributes:
    short, long: pixels, short <= long.
    interpolation: of `resize_to`; all of them antialias.
  """

  short: int
  long: int
  interpolation: str = "bilinear"

  usage = "letterbox(short, long[, bilinear|bicubic|fast_bilinear])"
  is_random = False

  def __post_init__(self):
    check_pixels("short", self.short)
    check_pixels("long", self.long)
    if self.short > self.long:
      raise ValueError(f"short must not be more than long, got {self.short} and {self.long}.")
    check_interpolation(self.interpolation)

  @functools.cached_property
  def shapes(self):
    """The (height, width) that images end in, multiples of 32, without repetition.

    With S, M and L for short, 4/3 short + 1 (to have room for a side that was rounded up) and long: (S, M),
    (S, L), (M, S), (L, S).
    """
    short, long = _up(self.short), _up(self.long)
    middle = min(_up(-(-(4 * self.short + 3) // 3)), long)
    return tuple(dict.fromkeys([(short, middle), (short, long), (middle, short), (long, short)]))

  def resized(self, height, width):
    """Returns the (height, width) that an image of this size is resized to, before it is padded."""
    scale = min(self.long / max(height, width), self.short / min(height, width))
    return tuple(max(int(n * scale + 0.5), 1) for n in (height, width))  # int(x + 0.5) is mmdetection's rounding

  def shape_of(self, height, width):
    """Returns which of `shapes` an image of this size ends in: the smallest that holds it, the first of equals."""
    new = self.resized(height, width)
    fitting = [i for i, shape in enumerate(self.shapes) if new[0] <= shape[0] and new[1] <= shape[1]]
    return min(fitting, key=lambda i: self.shapes[i][0] * self.shapes[i][1])

  def fit(self, image, shape=None):
    """Resizes and pads an image.

    Args:
      image: uint8 (h, w, c).
      shape: one of `shapes`; None for that of `shape_of`.

    Returns:
      padded: uint8 (*shape, c).
      size: float32 (2,), height and width of what is no padding.
      scale: float32 (2,), what y and x are multiplied by from the image to `padded`.
    """
    old = image.shape[:2]
    shape = shape or self.shapes[self.shape_of(*old)]
    # The least is the image's own size, except for one whose ratio is off by a rounded pixel (ScaleJitter's).
    new = np.minimum(self.resized(*old), shape)
    if tuple(new) != old:
      image = resize_to(image, int(new[0]), int(new[1]), self.interpolation)
    padded = np.zeros((*shape, image.shape[-1]), np.uint8)
    padded[:new[0], :new[1]] = image
    return padded, new.astype(np.float32), (new / old).astype(np.float32)


def _up(pixels):
  return -(-pixels // _MULTIPLE) * _MULTIPLE
