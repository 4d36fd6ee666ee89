"""Made-up pictures for detection: discs, squares, triangles, rings and crosses before a mottled background.

  open_source("generated/shapes", "train")         2,000 and 200 pictures, mostly 96 x 128, of 5 classes
  open_source("generated/voc", "2007/train")       a few, with the splits and the 20 classes of PASCAL VOC

Nothing is read or written: a picture is a pure function of (set, split, index). Objects have any colour, one of
four textures and sides of a sixth to two thirds of the picture's shorter one, and may hide one another; one of which
more than 60 % is hidden is marked as difficult. What a detector reaches on them says nothing about photographs.
"""

import dataclasses
import math
import zlib

import numpy as np

from bionets_jax.data import class_names
from bionets_jax.data.objects import Annotation, ObjectsSource
from bionets_jax.data.split_syntax import examples_of, years_of

KINDS = ("disc", "square", "triangle", "ring", "cross")
_TEXTURES = 4
_COUNTS = 2, 6  # objects in a picture
_SIDES = 1 / 6, 2 / 3  # of an object, as parts of the picture's shorter side
_HIDDEN = 0.6  # an object of which more is hidden is difficult
_PLACES = 10  # that are tried for an object
_CROWDED = 0.5  # how much of the smaller one of two objects may be common to both, if there is such a place


@dataclasses.dataclass(frozen=True)
class ShapesSet:
  """A made-up set.

  Attributes:
    class_names: label l is of the kind l modulo 5; with more classes than kinds, texture tells those of a kind apart.
    sizes: (height, width) of its pictures, each as frequent as it is listed.
    splits: name of a split -> number of pictures; of a set of several years year -> these.
  """

  class_names: tuple
  sizes: tuple
  splits: dict


_YEAR = {"train": 24, "validation": 16, "test": 24}
SETS = {
    "shapes": ShapesSet(KINDS, ((96, 128), (96, 128), (96, 128), (128, 96), (96, 96), (90, 124)),
                        {"train": 2000, "test": 200}),
    # The test images of 2012 have no published annotations.
    "voc": ShapesSet(class_names.VOC, ((75, 100), (100, 75), (66, 100), (100, 100)),
                     {"2007": _YEAR, "2012": {k: _YEAR[k] for k in ("train", "validation")}}),
}


class ShapesSource(ObjectsSource):
  """One split of a made-up set; images are uint8 arrays.

  Args:
    name: 'generated/NAME', NAME one of `SETS`.
    split: of NAME, or a slice or sum of splits as in TFDS.

  Raises:
    ValueError: unknown split (says the nearest), or an empty slice.
  """

  location = "made up"
  most_objects = _COUNTS[1]

  def __init__(self, name, split):
    self.name = name
    self.split = split
    self._set = name.removeprefix("generated/")
    made = SETS[self._set]
    self.class_names = made.class_names
    if all(isinstance(count, int) for count in made.splits.values()):
      self._examples = examples_of(made.splits, split, name)
    else:
      self._examples = [
          (f"{year}/{of_year}", position) for year, part in years_of(name, split, made.splits)
          for of_year, position in examples_of(made.splits[year], part, f"{name} {year}")]
    self.sizes = np.array([self._size(self._rng(i)) for i in range(len(self))], np.int32)

  def __len__(self):
    return len(self._examples)

  def key(self, index):
    split, position = self._examples[index]
    return f"{self.name} {split}[{position}]"

  def read(self, index):
    rng = self._rng(index)
    height, width = self._size(rng)
    return *picture(height, width, self.num_classes, rng), self.key(index)

  def _rng(self, index):
    split, position = self._examples[index]
    # Seeds are hashes of the texts, not Python's, which differ from process to process.
    return np.random.RandomState([zlib.crc32(f"{self._set}/{split}".encode()), position])

  def _size(self, rng):
    sizes = SETS[self._set].sizes
    return sizes[rng.randint(len(sizes))]


def picture(height, width, classes, rng):
  """Makes a picture.

  Args:
    height, width: pixels.
    classes: int, labels are below it.
    rng: `numpy.random.RandomState`.

  Returns:
    image: uint8 (height, width, 3).
    annotation: `Annotation`; boxes are of the whole outline, also where it is hidden.
  """
  background = rng.uniform(60, 196, 3)
  image = background + 18 * _mottle(height, width, rng)
  owner = np.full((height, width), -1)
  boxes, labels, areas = [], [], []
  for number in range(rng.randint(_COUNTS[0], _COUNTS[1] + 1)):
    label = rng.randint(classes)
    texture = label // len(KINDS) if classes > len(KINDS) else rng.randint(_TEXTURES)
    x1, y1, x2, y2 = box = _place(height, width, boxes, rng)
    mask = outline(KINDS[label % len(KINDS)], y2 - y1, x2 - x1)
    image[y1:y2, x1:x2][mask] = (_colour(background, rng) + _texture(texture, *mask.shape)[..., None])[mask]
    owner[y1:y2, x1:x2][mask] = number
    boxes.append(box)
    labels.append(label)
    areas.append(mask.sum())
  visible = np.bincount(owner[owner >= 0], minlength=len(boxes)) / areas
  image += rng.normal(0, 8, image.shape)
  return np.clip(image, 0, 255).astype(np.uint8), Annotation(
      np.float32(boxes), np.int32(labels), visible < 1 - _HIDDEN)


def outline(kind, height, width):
  """Returns bool (height, width), where an object of a kind is within its box; it touches all four sides."""
  v, u = np.ogrid[:height, :width]
  v, u = (2 * v + 1) / height - 1, (2 * u + 1) / width - 1  # of the pixels' centres, in [-1, 1]
  radius = u ** 2 + v ** 2
  if kind == "disc":
    return radius <= 1
  if kind == "ring":
    return (radius <= 1) & (radius > 0.3)
  if kind == "triangle":
    return np.abs(u) <= (v + 1) / 2
  if kind == "cross":
    return (np.abs(u) < 0.34) | (np.abs(v) < 0.34)
  return np.ones((height, width), bool)


def _place(height, width, boxes, rng):
  """Returns a box (x1, y1, x2, y2) of whole pixels, where there is room if that is found soon."""
  shorter = min(height, width)
  side = shorter * math.exp(rng.uniform(*map(math.log, _SIDES)))
  ratio = math.exp(rng.uniform(-0.2, 0.2))
  h, w = (min(round(n), shorter) for n in (side * ratio, side / ratio))
  for _ in range(_PLACES):
    y, x = rng.randint(height - h + 1), rng.randint(width - w + 1)
    box = x, y, x + w, y + h
    if all(_common(box, other) <= _CROWDED for other in boxes):
      break
  return box


def _common(a, b):
  """Returns the share of the smaller box that the other one covers."""
  sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
  areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
  return max(sides[0], 0) * max(sides[1], 0) / min(areas)


def _colour(background, rng):
  """Returns a colour that can be told from the background: float (3,)."""
  while True:
    colour = rng.uniform(20, 236, 3)
    if np.abs(colour - background).max() > 70:
      return colour


def _texture(number, height, width):
  """Returns what is added to the colour: float (height, width); plain, rows, columns or a chequerboard."""
  rows, columns = ((np.arange(n) // 3 % 2 * 2 - 1) for n in (height, width))
  return 28.0 * (np.zeros((height, width)), rows[:, None] + 0 * columns, columns + 0 * rows[:, None],
                 rows[:, None] * columns)[number]


def _mottle(height, width, rng):
  """Returns slow waves in each channel: float (height, width, 3), about in [-2, 2]."""
  y, x = (2 * math.pi * np.arange(n)[:, None] / min(height, width) for n in (height, width))
  waves = np.zeros((height, width, 3))
  for _ in range(4):
    down, across = y * rng.uniform(-3, 3, 3), x * rng.uniform(-3, 3, 3) + rng.uniform(0, 2 * math.pi, 3)
    # The cosine of the sum; the functions are of one side's pixels only.
    waves += np.cos(down)[:, None] * np.cos(across) - np.sin(down)[:, None] * np.sin(across)
  return waves / 2
