"""PASCAL VOC 2007 and 2012, as TensorFlow Datasets stores them (`voc/2007`, `voc/2012`), for detection.

  open_source("voc", "2007/train+2007/validation+2012/train+2012/validation", dir)     16,551 images
  open_source("voc", "2007/test", dir)                                                  4,952

The annotation files have whole pixels counted from 1, the last one belonging to the box. TFDS stores them as parts
of the image's sides in float32, from which they are found again; boxes here are (xmin - 1, ymin - 1, xmax, ymax):
with pixels as unit squares, the same area. (mmdetection takes 1 from all four, which makes boxes a pixel smaller.)
"""

import re
import zlib

import numpy as np

from bionets_jax.data.decode import size_of
from bionets_jax.data.objects import Annotation, ObjectsSource
from bionets_jax.data.split_syntax import years_of
from bionets_jax.data.tfds_records import TfdsRecords, features_of

SPLITS = {"2007": ("train", "validation", "test"), "2012": ("train", "validation")}
_AT_ONCE = 64  # records that are read together when the set is opened
_ROUNDED = 1e-3  # pixels; float32 is off by less, and the few files of 2012 that have fractions of pixels by more


class VocSource(ObjectsSource):
  """Splits of VOC in ArrayRecord form.

  Opening it reads every record once, for the images' sizes and numbers of objects.

  Args:
    name: 'voc'.
    split: e.g. '2007/train[:10%]+2012/train', each part as TFDS writes it, after its year.
    data_dir: see `open_source`.

  Raises:
    FileNotFoundError: a year is not prepared; says how.
    ValueError: another name or split than there is; the test split of 2012, whose annotations are not
      published; no image can be read.
  """

  name = "voc"

  def __init__(self, name, split, data_dir=""):
    if name != self.name:
      raise ValueError(f"The data set {name!r} is opened as 'voc', with the year in the split: '2007/train'.")
    self.split = split
    self._parts = []
    for year, part in years_of(name, split, SPLITS):
      if year == "2012" and re.match(r"\s*(test|all)\b", part):  # 'all' is TFDS's word for all splits
        raise ValueError("The test images of VOC 2012 have no published annotations; 2007/test has.")
      self._parts.append(TfdsRecords(f"voc/{year}", part, data_dir))
    self._starts = np.cumsum([0] + [len(part) for part in self._parts])
    self.location = " and ".join(dict.fromkeys(part.location for part in self._parts))
    names = {tuple(_objects(part).feature["label"].names) for part in self._parts}
    if len(names) > 1:
      raise ValueError(f"{self.location} have different classes: prepare both again.")
    self.class_names = names.pop()
    self.sizes, counts = self._survey()
    self.most_objects = int(counts.max())
    if not self.most_objects:
      raise ValueError(f"{self.location}: no image of {split!r} has an object, or none can be read.")

  def __len__(self):
    return int(self._starts[-1])

  def fingerprint(self):
    return zlib.crc32(" ".join(str(part.crc32) for part in self._parts).encode())

  def key(self, index):
    part, position = self._at(index)
    return f"{part.name} {part.split}[{position}]"

  def read(self, index):
    part, position = self._at(index)
    return self._parse(index, part[position])

  def _at(self, index):
    """Returns the part that an example is in, and its position there."""
    number = int(np.searchsorted(self._starts, index, side="right")) - 1
    return self._parts[number], index - int(self._starts[number])

  def _parse(self, index, record):
    key = self.key(index)
    try:
      feature = features_of(record)
      image = feature["image"].bytes_list.value[0]
      labels = np.array(feature["objects/label"].int64_list.value, np.int32)
      difficult = np.array(feature["objects/is_difficult"].int64_list.value, bool)
      boxes = np.array(feature["objects/bbox"].float_list.value, np.float64).reshape(len(labels), 4)
    except (ValueError, IndexError) as error:
      raise ValueError(f"the record of {key} is damaged: it holds no image with objects") from error
    names = feature["image/filename"].bytes_list.value
    key += " " + names[0].decode(errors="replace") if names else ""
    return image, Annotation(_pixels(boxes, *size_of(image)), labels, difficult), key

  def _survey(self):
    """Returns the images' sizes int32 (n, 2) and numbers of objects int (n,); 0 of a record that is bad."""
    sizes, counts = np.zeros((len(self), 2), np.int32), np.zeros(len(self), int)

    def note(index, record):
      try:
        image, annotation, _ = self._parse(index, record)
        sizes[index], counts[index] = size_of(image), len(annotation.labels)
      except ValueError:
        pass  # whoever reads it for a batch learns of it

    for first, part in zip(self._starts, self._parts, strict=False):
      for start in range(0, len(part), _AT_ONCE):
        positions = range(start, min(start + _AT_ONCE, len(part)))
        for position, record in zip(positions, _records(part, positions), strict=True):
          note(first + position, record)
    return sizes, counts


def _objects(part):
  """Returns TFDS's feature of the objects; ValueError if it is not VOC's."""
  feature = part.features["objects"] if "objects" in part.features else None
  if not {"label", "bbox", "is_difficult"} <= set(getattr(feature, "feature", ())):
    raise ValueError(
        f"{part.location} is not PASCAL VOC as TFDS has it: no objects with label, bbox, is_difficult.")
  return feature


def _records(part, positions):
  """Returns the bytes of some records; of what cannot be read none."""
  try:
    return part.many(list(positions))
  except Exception:  # noqa: BLE001 (as `read_records`: it depends on the storage which)
    pass
  found = []
  for position in positions:
    try:
      found.append(part[position])
    except Exception:  # noqa: BLE001
      found.append(b"")
  return found


def _pixels(boxes, height, width):
  """Returns float32 (n, 4), (x1, y1, x2, y2), of TFDS's (ymin, xmin, ymax, xmax) in parts of the sides."""
  pixels = boxes[:, [1, 0, 3, 2]] * [width, height, width, height]
  whole = np.round(pixels)
  pixels = np.where(np.abs(pixels - whole) < _ROUNDED, whole, pixels) - [1, 1, 0, 0]
  return np.clip(pixels, 0, [width, height, width, height]).astype(np.float32)
