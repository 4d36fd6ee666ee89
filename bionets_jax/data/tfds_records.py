"""The records of sets in the form of TensorFlow Datasets, stored as ArrayRecord, read without TensorFlow.

TFDS supplies the metadata, the split syntax and the record reader. What of a record is used is taken out of the
raw tf.train.Example: that is 10 times faster on small images than letting TFDS deserialise, and other
features (masks, texts) are never decoded.
"""

import json
import os
import re
import zlib

from bionets_jax.data import catalog, naming

_NAME = re.compile(r"[\w+.-]+(/[\w+.-]+)*(:[\w+.-]+)?")


def default_data_dir():
  """Returns $TFDS_DATA_DIR, or TFDS's default directory."""
  return os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")


def _path(directory):
  from etils import epath  # understands gs:// and s3:// where fsspec does

  return epath.Path(directory).expanduser()


def _subdirectories(path):
  return sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _versions(path):
  """Returns the version directories under `path` that hold a data set, oldest first."""
  found = []
  for name in _subdirectories(path):
    parts = name.split(".")
    if len(parts) == 3 and all(part.isdigit() for part in parts):
      if (path / name / "dataset_info.json").exists():
        found.append((tuple(map(int, parts)), name))
  return [name for _, name in sorted(found)]


def prepared_sets(data_dir):
  """Returns the sets that are prepared under `data_dir`: ['cifar10', 'glue/cola', ...]."""
  root = _path(data_dir)
  found = []
  for name in _subdirectories(root):
    if _versions(root / name):
      found.append(name)
    found.extend(
        f"{name}/{config}" for config in _subdirectories(root / name)
        if _versions(root / name / config)
    )
  return found


def find_prepared(name, data_dir=""):
  """Returns the directory of a prepared TFDS set, its newest version unless one is named.

  Args:
    name: 'name', 'name/config' or either with ':1.2.3'.
    data_dir: '' means `default_data_dir()`.

  Raises:
    FileNotFoundError: not there.
    ValueError: a name that would lead out of the directory.
  """
  if not _NAME.fullmatch(name) or ".." in name:
    raise ValueError(f"{name!r} is no name of a data set: those are 'name', 'name/config', 'name:1.2.3'.")
  data_dir = data_dir or default_data_dir()
  base, _, version = name.partition(":")
  root = _path(data_dir)
  versions = _versions(root / base) if base else []
  if version in versions:
    return root / base / version
  if versions and not version:
    return root / base / versions[-1]
  there = prepared_sets(data_dir)
  if versions:
    problem = f"{base} has the versions {', '.join(versions)}."
  else:
    problem = (f"That directory holds {', '.join(sorted(there)) or 'no data set'}."
               + ("" if catalog.find(name) else catalog.nearest(base, there)))
  raise FileNotFoundError(
      f"The data set {name!r} is not prepared in {root}. {problem}\n{catalog.how_to(name, root)}"
  )


class TfdsRecords:
  """The serialised examples of one split of a set that is prepared. Cheap to pickle; files are re-opened.

  Attributes:
    name, split: as they were asked for.
    location: the set's directory.
    features: TFDS's features of an example; None in a copy that was pickled.
    crc32: of what the files hold and how they are cut, from which the order follows.

  Raises:
    FileNotFoundError: the set is not prepared.
    ValueError: not stored as ArrayRecord, unknown split, empty split, or damaged metadata.
  """

  def __init__(self, name, split, data_dir=""):
    self.name = name
    self.split = split
    self.location = os.fspath(find_prepared(name, data_dir))
    self._data = None
    try:
      builder = self._builder()
    except OSError:  # a file that is missing or may not be read; it is named
      raise
    except Exception as error:  # noqa: BLE001 (TFDS trusts these files: protobuf's, KeyError, AttributeError, ...)
      raise ValueError(
          f"{self.location}: dataset_info.json or features.json is damaged ({type(error).__name__}: {error});"
          " delete the directory and prepare the set again, or restore the two files."
      ) from error
    formats = sorted(f.value for f in builder.info.available_file_formats())
    if "array_record" not in formats:
      raise ValueError(
          f"{self.location} is stored as {' and '.join(formats) or 'an unknown format'}, which has"
          " no random access. Convert it to ArrayRecord (once, without TensorFlow):\n"
          f"  python -m bionets_jax.data.prepare --convert {self.location}"
      )
    self.features = builder.info.features
    splits = builder.info.splits
    try:
      self._length = splits[split].num_examples
    except (ValueError, KeyError) as error:
      raise ValueError(naming.unknown_split(name, split, splits)) from error
    if not self._length:
      raise ValueError(f"The split {split!r} of {self.location} is empty.")
    self.crc32 = zlib.crc32(json.dumps([name, split, self._length] + [
        [each, list(splits[each].shard_lengths), splits[each].num_bytes] for each in sorted(splits)]).encode())

  def _builder(self):
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(self.location)

  def _opened(self):
    """Returns the sequence of serialised examples, opened on first use in this process."""
    if self._data is None:
      import tensorflow_datasets as tfds

      self._data = self._builder().as_data_source(
          self.split,
          deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
          file_format="array_record",
      )
    return self._data

  def __len__(self):
    return self._length

  def __getitem__(self, index):
    """Returns the bytes of one example."""
    return self._opened()[index]

  def many(self, indices):
    """Returns the bytes of several examples, read by up to 64 threads."""
    return self._opened().__getitems__(indices)

  def __getstate__(self):
    return {**self.__dict__, "_data": None, "features": None}  # open files stay in the process that opened them


def features_of(record):
  """Returns the map of name -> Feature of a serialised example; it makes what it is asked for and has not.

  Raises:
    ValueError: it is no tf.train.Example.
  """
  from google.protobuf.message import DecodeError
  from tensorflow_datasets.proto import tf_example_pb2

  try:
    return tf_example_pb2.Example.FromString(record).features.feature
  except DecodeError as error:
    raise ValueError("it is no tf.train.Example") from error
