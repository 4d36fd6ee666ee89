"""Streaming from the host: whole batches as a pure function of the step.

The unit that is distributed over threads and worker processes (workers.py) is the batch, so what a batch
holds cannot depend on their number. Nothing here imports jax; workers unpickle `BatchReader`.
"""

import dataclasses
import json
import math
import sys

import numpy as np

from bionets_jax.data import workers
from bionets_jax.data.decode import decode, size_of_baseline_jpeg
from bionets_jax.data.faults import NO_BAD_RECORDS, Fault
from bionets_jax.data.order import EvalPlan
from bionets_jax.data.transforms import RandomResizedCrop, apply_all, example_rng


def shard_rows(batch_size, shard, num_shards):
  """Returns the slice of a global batch's rows that shard `shard` of `num_shards` holds."""
  rows = batch_size // num_shards
  return slice(shard * rows, (shard + 1) * rows)


class BatchReader:
  """`reader[step]` is this process's part of the global batch of `step`.

  A batch is cut into `num_shards` equal runs of rows, one per device of the mesh; this process
  reads the runs in `shards`, one after the other.

  In training a record that cannot be used is stood in for by the next good example of its epoch's order,
  prepared as it is at its own place; in evaluation its row is empty and its mask 0. Both follow from the step
  and the data alone.
  """

  def __init__(self, source, plan, transforms, image_shape, seed, shards, num_shards, limit=NO_BAD_RECORDS):
    """Makes the reader.

    Args:
      source: a `Source`.
      plan: a `BatchPlan` or `EvalPlan` over it; batch sizes are multiples of num_shards.
      transforms: host transforms that end in `image_shape`.
      image_shape: (h, w, c) of every image after the transforms; (10, h, w, c) for ten crops.
      seed: int, of the augmentation.
      shards: the shards that this process holds, ascending ints below num_shards.
      num_shards: int.
      limit: how many records may be bad; here, of those that one batch needs.
    """
    self._source = source
    self._plan = plan
    self._transforms = transforms
    self._image_shape = tuple(image_shape)
    self._seed = seed
    self._shards = tuple(shards)
    self._num_shards = num_shards
    self._limit = limit

  def key(self, index):
    """Returns the key of an example, without reading it."""
    return self._source.key(index)

  @property
  def batch_bytes(self):
    """Bytes of the images of this process's part of a full batch."""
    return self._rows * math.prod(self._image_shape)

  @property
  def fields(self):
    """Names of what a batch consists of."""
    return ("image", "label", "mask") if isinstance(self._plan, EvalPlan) else ("image", "label")

  @property
  def _rows(self):
    """Of this process's part of a full batch."""
    return self._plan.batch_size // self._num_shards * len(self._shards)

  def __len__(self):
    # Without end, evaluation too: its consumer stops, and the batches behind are empty.
    return sys.maxsize

  def __getitem__(self, step):
    """Returns {'image': uint8 (n, *image_shape), 'label': int32 (n,), 'mask': float32 (n,)}.

    Rows without an example (index -1) are zero in all three. With 'faults', text for `read_faults`, where
    records of the batch cannot be used.

    Raises:
      TooManyBadRecords (a ValueError): an image cannot be read, is undecodable or has the wrong shape, or a
        label is out of range, and `limit` does not let it pass; the message holds the examples' keys.
    """
    epoch, planned = self._plan.indices(step)
    places = np.concatenate([
        np.arange(len(planned))[shard_rows(len(planned), shard, self._num_shards)] for shard in self._shards
    ])
    indices = planned[places]
    batch = self._empty(step, len(indices))
    mask = (indices >= 0).astype(np.float32)
    rows = np.flatnonzero(indices >= 0)
    bad = {}  # row -> Fault
    for row, found in zip(rows, self._examples(step, epoch, indices[rows]), strict=True):
      if isinstance(found, Fault):
        bad[row] = found
        self._limit.check(list(bad.values()))
      else:
        _put(batch, row, found)
    for row, fault in bad.items():
      if isinstance(self._plan, EvalPlan):
        mask[row] = 0.0
      else:
        bad[row], found = self._stand_in(step, epoch, places[row], fault)
        _put(batch, row, found)
    batch["mask"] = mask
    if bad:
      batch["faults"] = json.dumps([dataclasses.asdict(fault) for fault in bad.values()])
    return batch

  def _empty(self, step, rows):
    """Returns a batch without examples: name -> array (rows, ...) of what an example consists of."""
    del step
    return {"image": np.zeros((rows, *self._image_shape), np.uint8), "label": np.zeros(rows, np.int32)}

  def _examples(self, step, epoch, indices):
    """Yields for each index a `Fault`, or what an example consists of, in the order of `_empty`."""
    return read_examples(
        self._source, indices, self._transforms, self._image_shape,
        lambda index: example_rng(self._seed, epoch, index), step)

  def _stand_in(self, step, epoch, place, fault):
    """Returns the fault with what stands in for it, and that."""
    met = [fault]
    for index in self._plan.following(step, place):
      found, = self._examples(step, epoch, [index])
      if not isinstance(found, Fault):
        return dataclasses.replace(fault, stand_in=self.key(index)), found
      met.append(found)
      self._limit.check(met)
    raise ValueError(f"{fault}. No other example of {self._source.name} {self._source.split} can be used either.")


def _put(batch, row, example):
  """Writes what an example consists of into its row."""
  for array, value in zip(batch.values(), example, strict=True):
    array[row] = value


def read_faults(batch):
  """Returns the list of `Fault`s of a batch of `BatchReader`, in the order of its rows."""
  return [Fault(**fault) for fault in json.loads(batch.get("faults", "[]"))]


def read_examples(source, indices, transforms, image_shape, rng_of, step=0):
  """Reads and prepares examples.

  Args:
    source: a `Source`.
    indices: ints.
    transforms, image_shape: see `prepare`.
    rng_of: from an index to the generator of that example.
    step: what they are read for, for who asks what was read last.

  Yields:
    For each index (image, label), or a `Fault` if the record cannot be used.
  """
  def prepared(index, image, label, key):
    return (prepare(image, transforms, image_shape, rng_of(index), key),
            checked_label(label, source.num_classes, key))

  return read_prepared(source, indices, prepared, step)


def read_prepared(source, indices, prepared, step=0):
  """Yields for each index what `prepared(index, image, label, key)` returns, or a `Fault`.

  Args:
    source: a `Source`.
    indices: ints.
    prepared: called with the index and what `Source.read` returns; raises ValueError, "Example KEY: ..." or
      without these words, where an example cannot be used.
    step: as in `read_examples`.
  """
  read = read_records(source, indices)
  for index in map(int, indices):
    workers.note(step, index)
    found = next(read)
    if not isinstance(found, Fault):
      key = found[-1]
      try:
        found = prepared(index, *found)
      except ValueError as error:
        found = Fault(index, key, str(error).removeprefix(f"Example {key}: "))
    yield found


def read_records(source, indices):
  """Yields what `Source.read` returns for each index, or a `Fault` where it raises."""
  done = 0
  try:
    for example in source.read_many(indices):
      yield example
      done += 1
  # Which errors there are depends on the storage and the format: OSError, ValueError, protobuf's DecodeError, ...
  except Exception:  # noqa: BLE001
    pass
  # One of those that are left is at fault; which one is found by reading each by itself.
  for index in map(int, indices[done:]):
    try:
      example = source.read(index)
    except MemoryError:  # not of this record
      raise
    except Exception as error:  # noqa: BLE001
      example = Fault(index, source.key(index), _why(error))
    yield example


def _why(error):
  """An exception in words, without the path that the key has already."""
  if isinstance(error, OSError) and error.strerror:
    return f"cannot be read: {error.strerror}"
  if type(error) is ValueError:
    return str(error)
  kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
  return f"cannot be read: {kind}{error}"


def prepare(image, transforms, image_shape, rng, key):
  """Decodes and transforms one example.

  Args:
    image: as `Source.read` gives it.
    transforms: host transforms.
    image_shape: what they are to end in.
    rng: of the example; None where nothing is random.
    key: of the example, for messages.

  Returns:
    uint8 image_shape.

  Raises:
    ValueError: undecodable, too small for a transform, or of another shape; holds the key.
  """
  image, transforms = _decode_and_crop(image, transforms, image_shape[-1], rng, key)
  try:
    image = apply_all(transforms, image, rng)
  except ValueError as error:
    raise ValueError(f"Example {key}: {error}") from error
  if image.shape != image_shape:
    raise ValueError(f"Example {key}: the image is {image.shape}, expected {image_shape}.")
  return image


def _decode_and_crop(image, transforms, channels, rng, key):
  """Decodes, and applies the first transform too if it needs but a part of the image.

  Returns:
    The image and the transforms that are left.
  """
  size = None
  if transforms and isinstance(transforms[0], RandomResizedCrop) and isinstance(image, bytes):
    size = size_of_baseline_jpeg(image)
  if size is None:
    return decode(image, channels, key), transforms
  box = transforms[0].box(*size, rng)
  top, _, height, _ = box
  return transforms[0].cut(decode(image, channels, key, top + height), box), transforms[1:]


def checked_label(label, num_classes, key):
  """Returns the label, or raises ValueError if it is none (unlabelled test sets have -1)."""
  if not 0 <= label < num_classes:
    raise ValueError(f"Example {key}: label {label} is not in [0, {num_classes}).")
  return label
