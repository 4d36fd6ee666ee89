"""Made-up images in the form of a real set: its image shape, its splits, its number of classes.

  open_source("generated/cifar10", "train[:90%]")

For trying a configuration out where the real set is not at hand. Nothing is read or written: an
image is a pure function of (set, split, index). Eight classes occur, spread over the labels; each
is a grating of its own direction and colour, in a random phase and under noise, which a network
learns in a few steps. Accuracies on them say nothing about the real set.
"""

import dataclasses
import math
import zlib

import numpy as np

from bionets_jax.data import class_names, naming, shapes
from bionets_jax.data.sources import Source
from bionets_jax.data.split_syntax import examples_of

PREFIX = "generated/"
_MAX_CLASSES = 8
_SIZES = 40, 90  # pixels, of images whose real ones vary


@dataclasses.dataclass(frozen=True)
class Shape:
  """What is taken over from the real set.

  Attributes:
    class_names: names of all classes.
    size: height and width; None where they vary.
    splits: split name -> number of made-up examples.
  """

  class_names: tuple
  size: int | None
  splits: dict


def _placeholders(count):
  return tuple(f"n{number:08d}" for number in range(count))  # in the form of WordNet ids


_TRAIN_TEST = {"train": 64, "test": 32}
_THREE = {"train": 64, "validation": 32, "test": 32}
SETS = {
    "cifar10": Shape(class_names.CIFAR10, 32, _TRAIN_TEST),
    "cifar100": Shape(class_names.CIFAR100, 32, _TRAIN_TEST),
    "cropped_plantdoc": Shape(class_names.PLANTDOC, None, _THREE),
    "imagenet2012": Shape(_placeholders(1000), None, {"train": 64, "validation": 32}),
    "imagenet_v2/matched-frequency": Shape(_placeholders(1000), None, {"test": 32}),
    "oxford_iiit_pet": Shape(class_names.PETS, None, _THREE),
    "oxford_iiit_pet_files": Shape(class_names.PETS, None, _THREE),
}


class GeneratedSource(Source):
  """One split of a made-up set; images are uint8 arrays.

  Args:
    name: 'generated/NAME', NAME one of `SETS`.
    split: a split of NAME, or a slice or sum of splits as in TFDS.

  Raises:
    ValueError: unknown NAME or split (says the nearest), or an empty slice.
  """

  location = "made up"

  def __init__(self, name, split):
    self._set = name.removeprefix(PREFIX)
    if self._set not in SETS:
      raise ValueError(naming.unknown(f"set after {PREFIX!r}", self._set, [*SETS, *shapes.SETS]))
    self.name = name
    self.split = split
    shape = SETS[self._set]
    self.class_names = shape.class_names
    self.image_shape = (shape.size, shape.size, 3)
    self._examples = examples_of(shape.splits, split, name)

  def __len__(self):
    return len(self._examples)

  def key(self, index):
    split, position = self._examples[index]
    return f"{self.name} {split}[{position}]"

  def read(self, index):
    split, position = self._examples[index]
    occurring = min(_MAX_CLASSES, self.num_classes)
    kind = position % occurring
    # Seeds are hashes of the texts, not Python's, which differ from process to process.
    rng = np.random.RandomState([zlib.crc32(f"{self._set}/{split}".encode()), position])
    height, width = self.image_shape[:2]
    if height is None:
      height, width = rng.randint(_SIZES[0], _SIZES[1] + 1, 2)
    label = kind * self.num_classes // occurring
    return _grating(height, width, kind / occurring, rng), label, self.key(index)


def _grating(height, width, kind, rng):
  """Returns a noisy grating, uint8 (height, width, 3), of the class at `kind` in [0, 1)."""
  angle = math.pi * kind
  y, x = np.mgrid[:height, :width]
  wave = np.sin(
      2 * math.pi * (4 * (x * math.cos(angle) + y * math.sin(angle)) / 32 + rng.uniform())
  )
  colour = np.cos(2 * math.pi * (kind + np.arange(3) / 3))
  image = 128 + 50 * wave[..., None] * colour + 20 * colour + rng.normal(0, 20, (height, width, 3))
  return np.clip(image, 0, 255).astype(np.uint8)
