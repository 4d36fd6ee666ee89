"""1,797 real handwritten digits, 8 x 8 grey, in the package: a data set without a download.

Source: the test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, as distributed with
scikit-learn (`sklearn.datasets.load_digits`). Licence: CC BY 4.0. `make_digits.py` wrote
digits.npz.

The split is ours (scikit-learn has none): of each class every fifth example in stored order
(position in its class modulo 5 equal to 4) is for testing. That gives 1,442 train and 355 test
examples, stratified.
"""

import functools
import pathlib

import numpy as np

from bionets_jax.data import naming
from bionets_jax.data.sources import Source

SPLITS = ("train", "test")


@functools.cache
def _load():
  """Returns images uint8 (1797, 8, 8, 1) scaled to 0..255 and labels int32 (1797,)."""
  with np.load(pathlib.Path(__file__).with_name("digits.npz")) as stored:
    grey, labels = stored["images"], stored["labels"]
  images = np.round(grey * (255 / 16)).astype(np.uint8)[..., None]
  return images, labels.astype(np.int32)


def split_indices(split):
  """Returns the stored positions, ascending, of the examples of 'train' or 'test'."""
  if split not in SPLITS:
    raise ValueError(
        naming.unknown("split of digits", split, SPLITS)
        + " (Slices such as 'train[:90%]' work on TFDS sets only.)"
    )
  _, labels = _load()
  is_test = np.zeros(len(labels), bool)
  for label in range(10):
    is_test[np.flatnonzero(labels == label)[4::5]] = True
  return np.flatnonzero(is_test == (split == "test"))


class DigitsSource(Source):
  """The digits as a `Source`; images are uint8 arrays (8, 8, 1)."""

  name = "digits"
  location = "in the package"
  class_names = tuple("0123456789")
  image_shape = (8, 8, 1)

  def __init__(self, split):
    self.split = split
    self._indices = split_indices(split)

  def __len__(self):
    return len(self._indices)

  def key(self, index):
    return f"digits[{int(self._indices[index])}]"

  def read(self, index):
    images, labels = _load()
    stored = int(self._indices[index])
    return images[stored], int(labels[stored]), self.key(index)
