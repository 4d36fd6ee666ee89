"""A `Source` is one split of a data set with random access; `open_source` finds it by name.

Names: 'digits' (inside the package), 'folder' (DIR/train/CLASS/*.jpg), 'generated/NAME' (made-up
images in the form of the set NAME); 'voc' (PASCAL VOC 2007 and 2012) and 'generated/shapes', which are for
detection; anything else is a TensorFlow Datasets name, 'name', 'name/config' or 'name:1.2.3'.
"""

import abc
import re
import zlib


class Source(abc.ABC):
  """One split. Subclasses are picklable, and cheap to pickle: workers re-open the files.

  Attributes:
    name: the data set's name, for messages.
    split: the split as it was asked for.
    location: where the examples are read from, for messages.
    class_names: tuple of str; a label is an index into it.
    image_shape: (height, width, channels); (None, None, channels) if the size varies.
  """

  name: str
  split: str
  location: str
  class_names: tuple
  image_shape: tuple

  @property
  def num_classes(self):
    return len(self.class_names)

  @abc.abstractmethod
  def __len__(self):
    """Returns the number of examples."""

  def key(self, index):
    """Returns the str that finds an example again, for messages; nothing is read for it."""
    return f"{self.name} {self.split}[{index}]"

  def fingerprint(self):
    """Returns a CRC-32 that is another if the examples or their order are, as far as names and sizes tell."""
    return zlib.crc32(f"{self.name} {self.split} {len(self)}".encode())

  @abc.abstractmethod
  def read(self, index):
    """Returns (image, label, key) of one example.

    Args:
      index: int in [0, len(self)).

    Returns:
      image: the encoded bytes, or a uint8 array (h, w, c).
      label: int.
      key: `self.key(index)`, with what else the record says of where it is from.
    """

  def read_many(self, indices):
    """Iterates over read(i) for i in indices; sources that read faster in bulk override it."""
    # One at a time: memory that is used again is there already, and a batch of photographs would need more.
    return (self.read(int(index)) for index in indices)


def open_source(name, split, data_dir=""):
  """Opens one split of a data set.

  Args:
    name: 'digits', 'folder', 'voc', 'generated/NAME' or a TFDS name.
    split: the split's name; TFDS and generated sets take TFDS split syntax ('train[:90%]'), VOC's begin
      with the year ('2007/train+2012/train').
    data_dir: for 'folder' the directory that holds the splits; for TFDS the directory that
      holds the sets ('' means $TFDS_DATA_DIR or ~/tensorflow_datasets). The others need none.

  Returns:
    A `Source`; of a set for detection an `ObjectsSource`.

  Raises:
    FileNotFoundError: the set is not there; says where it looked and how to prepare it.
    ValueError: unknown split, or a set that is not for image classification.
  """
  # Imported on use: a worker that reads a folder has no need for TFDS.
  if name == "digits":
    from bionets_jax.data.digits import DigitsSource
    return DigitsSource(split)
  if name == "folder":
    from bionets_jax.data.folder import FolderSource
    return FolderSource(data_dir, split)
  if re.match(r"voc\b", name):
    from bionets_jax.data.voc import VocSource
    return VocSource(name, split, data_dir)
  if name.startswith("generated/"):
    from bionets_jax.data import shapes
    if name.removeprefix("generated/") in shapes.SETS:
      return shapes.ShapesSource(name, split)
    from bionets_jax.data.generated import GeneratedSource
    return GeneratedSource(name, split)
  from bionets_jax.data.tfds_source import TfdsSource
  return TfdsSource(name, split, data_dir)
