"""Folders of images: DIR/SPLIT/CLASS/*.jpg, the layout of torchvision's ImageFolder, or DIR/CLASS/*.jpg."""

import array
import hashlib
import os
import re
import zlib

from bionets_jax.data import naming, split_syntax
from bionets_jax.data.image_file import read_image_file
from bionets_jax.data.sources import Source

WHOLE = "all"  # as a split: the folder itself, without folders for splits in it
_SLICE = re.compile(r"(.+?)(\[[^\]]*\])")
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


def _shuffled(files):
  """The files in an order that their names alone decide, but not by the alphabet: dates are often in names."""
  return sorted(files, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())


class FolderSource(Source):
  """The images under DIR/SPLIT, one sub-directory a class.

  Classes and files are sorted by name, so that labels and order do not depend on the file
  system. Hidden files and other extensions are skipped.

  'train[:90%]' is a part of each class, 'train[90%:]' the rest of it, in an order that the files' names decide.
  Where DIR holds the classes themselves the split is 'all': 'all[:80%]' and 'all[80%:]'.

  Raises:
    FileNotFoundError: no such directory; says which splits are there.
    ValueError: no directory given, no classes, a class without images, or nothing in the part.
  """

  name = "folder"
  image_shape = (None, None, 3)

  def __init__(self, data_dir, split):
    if not data_dir:
      raise ValueError(
          "The data set 'folder' needs a directory that holds CLASS/*.jpg or SPLIT/CLASS/*.jpg; got dir='' "
          "(config.data.dir, or --data-dir)."
      )
    data_dir = os.path.expanduser(data_dir)  # as of TFDS sets: the shell leaves --config.data.dir=~/x as it is
    if not os.path.isdir(data_dir):
      raise FileNotFoundError(f"The data set 'folder' needs a directory: {data_dir} is not one.")
    part = _SLICE.fullmatch(split)
    whole = part[1] if part else split
    if whole in (".", "..") or os.path.basename(whole) != whole:
      raise ValueError(f"The split {split!r} of the folder {data_dir} must be the name of a directory in it.")
    self.split = split
    self.location = os.path.join(os.path.abspath(data_dir), whole)
    if whole == WHOLE and not os.path.isdir(self.location):
      self.location = os.path.abspath(data_dir)
    if not whole or not os.path.isdir(self.location):
      raise FileNotFoundError(
          naming.unknown(f"split of the folder {data_dir}", whole, _subdirectories(data_dir), most=12)
          + f" (A folder that holds the classes themselves is {WHOLE!r}.)"
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
      elif part:
        try:
          files = sorted(_shuffled(files)[split_syntax.part_of(part[2], len(files))])
        except ValueError as error:
          raise ValueError(f"{os.path.join(self.location, class_name)}: {error}") from error
      self._files.extend(files)
      self._labels.extend([label] * len(files))
    if empty:
      raise ValueError(
          f"{self.location}: no images in {len(empty)} of {len(self.class_names)} class"
          f" directories, e.g. {empty[0]!r}. Images end in {', '.join(EXTENSIONS)}."
          + self._looks_like_splits(empty)
      )
    if not self._files:
      raise ValueError(f"The split {split!r} of the folder {data_dir} is empty.")

  def _looks_like_splits(self, empty):
    """A hint, if what should be classes are folders of classes."""
    within = {name: _subdirectories(os.path.join(self.location, name)) for name in empty}
    splits = [name for name, inside in within.items() if inside]
    return f" {splits[0]!r} holds folders: is it a split, with classes in it?" if splits else ""

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
    return read_image_file(path), self._labels[index], path

  def __getstate__(self):
    # One string pickles a hundred times faster than a million small ones. '/' cannot be in a
    # file's name.
    return {**self.__dict__, "_files": "/".join(self._files)}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._files = state["_files"].split("/")
