"""Images with annotated objects: what a source gives, and the augmentation that moves the boxes as well.

Boxes are in pixels (x1, y1, x2, y2), a pixel being a unit square. A transform is called with (image, annotation,
generator of the example) and returns an image and an annotation; as in transforms.py only `Generator.random()` is
drawn from.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from bionets_jax.data.grammar import check_number
from bionets_jax.data.letterbox import Letterbox
from bionets_jax.data.sources import Source
from bionets_jax.data.transforms import check_area, mirror, uniform


class Annotation(NamedTuple):
  """The objects of one image.

  boxes: float32 (n, 4), inside the image; labels: int32 (n,); difficult: bool (n,), of those that count neither
  as found nor as missed.
  """

  boxes: np.ndarray
  labels: np.ndarray
  difficult: np.ndarray


class ObjectsSource(Source):
  """A split for detection: `read` returns (image, `Annotation`, key), and all sizes are known beforehand.

  Attributes:
    sizes: int32 (len, 2), height and width of each image; 0 of one whose record cannot be read.
    most_objects: int, the most that an image has.
  """

  sizes: np.ndarray
  most_objects: int
  image_shape = (None, None, 3)


def check_annotation(annotation, size, num_classes):
  """Raises ValueError for labels out of range, and boxes that are empty or outside of an image of `size`."""
  boxes, labels, difficult = annotation
  if boxes.shape != (len(labels), 4) or difficult.shape != labels.shape:
    raise ValueError(f"boxes {boxes.shape}, labels {labels.shape} and difficult {difficult.shape} do not agree.")
  for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
    if not 0 <= label < num_classes:
      raise ValueError(f"label {label} is not in [0, {num_classes}).")
    if not (0 <= box[0] < box[2] <= size[1] and 0 <= box[1] < box[3] <= size[0]):  # nor is NaN
      raise ValueError(f"the box {box} is empty or outside of the image, {size[1]} x {size[0]} pixels.")


@dataclasses.dataclass(frozen=True)
class FlipObjects:
  """Mirrors left and right, boxes too, with probability 1/2."""

  usage = "flip"
  is_random = True

  def __call__(self, image, annotation, rng):
    if rng.random() >= 0.5:
      return image, annotation
    width = np.float32(image.shape[1])
    x1, y1, x2, y2 = annotation.boxes.T
    return mirror(image), annotation._replace(boxes=np.stack([width - x2, y1, width - x1, y2], axis=-1))


@dataclasses.dataclass(frozen=True)
class ScaleJitter:
  """Enlarges or shrinks what is seen: a random window of the image, or the image somewhere in a larger black one.

  The zoom is log-uniform in [low, high]. Nothing is resampled here: the letterbox that follows gives the window
  the size that the image would have had. Boxes are cut at the window's border, and what keeps less than `least` of
  its area is left out.
  """

  low: float
  high: float
  least: float = 0.25

  usage = "scale_jitter(low, high[, least share of an object that is kept])"
  is_random = True

  def __post_init__(self):
    check_number("low", self.low, 0.25, 4)  # the memory of a zoom of 1/4 is 16 times the image's
    check_number("high", self.high, 0.25, 4)
    check_number("least", self.least, 0, 1)
    if self.low > self.high:
      raise ValueError(f"low must not be more than high, got {self.low} and {self.high}.")

  def __call__(self, image, annotation, rng):
    zoom = math.exp(uniform(rng, math.log(self.low), math.log(self.high)))
    old = image.shape[:2]
    height, width = new = [max(round(n / zoom), 1) for n in old]
    check_area(height, width)
    # Where the window begins, in the image; negative if it is the larger one.
    top, left = (_begin(a, b, rng) for a, b in zip(old, new, strict=True))
    window = np.zeros((height, width, image.shape[-1]), np.uint8)
    part = image[max(top, 0):top + height, max(left, 0):left + width]
    y, x = max(-top, 0), max(-left, 0)
    window[y:y + part.shape[0], x:x + part.shape[1]] = part
    return window, self._cut(annotation, top, left, height, width)

  def _cut(self, annotation, top, left, height, width):
    moved = annotation.boxes - np.float32([left, top, left, top])
    boxes = np.clip(moved, 0, np.float32([width, height, width, height]))
    before, after = (np.prod(b[:, 2:] - b[:, :2], axis=-1) for b in (moved, boxes))
    kept = (after > 0) & (after >= self.least * before)
    return Annotation(boxes[kept], annotation.labels[kept], annotation.difficult[kept])


def _begin(old, new, rng):
  """Returns where a window of `new` pixels begins in a side of `old`, or the negative of where that begins in it."""
  begin = int(rng.random() * (abs(old - new) + 1))
  return begin if old > new else -begin


OBJECT_TRANSFORMS = {"flip": FlipObjects, "letterbox": Letterbox, "scale_jitter": ScaleJitter}
