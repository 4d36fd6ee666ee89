"""Folders of images: DIR/SPLIT/CLASS/*.jpg, the layout of torchvision's ImageFolder."""

import array
import os
import zlib

from bionets_jax.data import naming
from bionets_jax.data.sources import Source

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def _subdirectories(path):
  with os.scandir(path) as entries:
    return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _images(path):
  with os.scandir(path) as entries:
    return sorted(
        e.name for e in entries
        if e.name.lower().endswith(EXTENSIONS) and not e.name.startswith(".")
    )


class FolderSource(Source):
  """The images under DIR/SPLIT, one sub-directory a class.

  Classes and files are sorted by name, so that labels and order do not depend on the file
  system. Hidden files and other extensions are skipped.

  Raises:
    FileNotFoundError: no such directory; says which splits are there.
    ValueError: no directory given, no classes, or a class without images.
  """

  name = "folder"
  image_shape = (None, None, 3)

  def __init__(self, data_dir, split):
    if not data_dir:
      raise ValueError(
          "The data set 'folder' needs a directory that holds SPLIT/CLASS/*.jpg; got dir=''."
      )
    data_dir = os.path.expanduser(data_dir)  # as of TFDS sets: the shell leaves --config.data.dir=~/x as it is
    if not os.path.isdir(data_dir):
      raise FileNotFoundError(f"The data set 'folder' needs a directory: {data_dir} is not one.")
    if split in (".", "..") or os.path.basename(split) != split:
      raise ValueError(f"The split {split!r} of the folder {data_dir} must be the name of a directory in it.")
    self.split = split
    self.location = os.path.join(os.path.abspath(data_dir), split)
    if not split or not os.path.isdir(self.location):
      raise FileNotFoundError(
          naming.unknown(f"split of the folder {data_dir}", split, _subdirectories(data_dir))
          + " (Slices such as 'train[:90%]' work on TFDS sets only.)"
      )
    self.class_names = tuple(_subdirectories(self.location))
    if not self.class_names:
      raise ValueError(f"{self.location} has no sub-directories; expected one per class.")
    self._files, self._labels = [], array.array("l")
    empty = []
    for label, class_name in enumerate(self.class_names):
      files = _images(os.path.join(self.location, class_name))
      if not files:
        empty.append(class_name)
      self._files.extend(files)
      self._labels.extend([label] * len(files))
    if empty:
      raise ValueError(
          f"{self.location}: no images in {len(empty)} of {len(self.class_names)} class"
          f" directories, e.g. {empty[0]!r}. Images end in {', '.join(EXTENSIONS)}."
      )

  def __len__(self):
    return len(self._files)

  def key(self, index):
    return os.path.join(self.location, self.class_names[self._labels[index]], self._files[index])

  def fingerprint(self):
    # The names alone: the sizes of a million files would take minutes over a network.
    names = "\0".join([*self.class_names, *self._files]).encode("utf-8", "surrogateescape")
    return zlib.crc32(self._labels.tobytes(), zlib.crc32(names))

  def read(self, index):
    path = self.key(index)
    with open(path, "rb") as file:
      return file.read(), self._labels[index], path

  def __getstate__(self):
    # One string pickles a hundred times faster than a million small ones. '/' cannot be in a
    # file's name.
    return {**self.__dict__, "_files": "/".join(self._files)}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._files = state["_files"].split("/")
