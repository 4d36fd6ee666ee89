"""The examples of one split, prepared for a network, in the split's own order."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bionets_jax.data.bad_records import BadRecords
from bionets_jax.data.batches import ResidentBatches, resolve_workers, stream_batches
from bionets_jax.data.faults import Limit
from bionets_jax.data.order import EvalPlan
from bionets_jax.data.placement import place
from bionets_jax.data.resident import ResidentSet, load
from bionets_jax.data.sources import Source, open_source


class Examples:
  """A split, or its first images, as batches on the devices.

  Attributes:
    source: what the examples are read from.
    image_shape: (H, W, C) of the network's input.
    crops: of each image; 1 for the image itself.
    batch_size: of every batch; the last one is filled up with rows of mask 0.
  """

  def __init__(
      self, name: str, split: str, data_dir: str, transform: str, *, limit: int, batch_size: int,
      workers: int, mesh: Mesh, max_bad_records: int = 0,
  ):
    """
    Args:
      name, split, data_dir: see `open_source`.
      transform: e.g. 'resize(256)|center_crop(224)'; nothing random.
      limit: the first images only; 0 for all.
      batch_size: images at a time, a multiple of the number of devices.
      workers: reading processes; 0 for threads, -1 by the cores.
      mesh: all devices on the axis 'data'.
      max_bad_records: how many images may be unreadable; they are left out.

    Raises:
      FileNotFoundError, ValueError: saying what is wrong with which option.
    """
    source = open_source(name, split, data_dir)
    self.source = First(source, limit) if limit else source
    if batch_size < 1 or batch_size % mesh.size:
      raise ValueError(f"--batch-size={batch_size}: give a multiple of the {mesh.size} devices")
    if workers < -1:
      raise ValueError(f"--workers={workers}: give -1 (by the cores), 0 (threads) or more")
    (self._placement,) = place([("--transform", transform, self.source)])
    for step in self._placement.transforms:
      if step.is_random:
        raise ValueError(f"--transform={transform!r}: {step.usage} is random, and evaluation must not be; "
                         "give the --transform of clean images")
    *crops, height, width, channels = self._placement.image_shape
    self.image_shape = height, width, channels
    self.crops = crops[0] if crops else 1
    self.batch_size = batch_size
    self._workers = resolve_workers(workers)
    self._mesh = mesh
    self._bad = BadRecords(Limit(max_bad_records, "--max-bad-records"), {"eval": self.source})

  def __len__(self) -> int:
    return len(self.source)

  def batches(self) -> Iterator[Mapping[str, jax.Array]]:
    """As `Pipeline.eval_batches`; with `close()`."""
    plan = EvalPlan(len(self), self.batch_size)
    if self._placement.resident:
      images, labels, faults = load(
          self.source, self._placement.host, self._placement.host_shape, self._bad.limit)
      self._bad.note("eval", faults)
      resident = ResidentSet(images, labels, self._mesh, self._placement.device, faults)
      return ResidentBatches(resident, plan, 0, 0)
    return stream_batches(
        self.source, plan, self._placement, 0, 0, self._workers, self._mesh, self._bad.limit,
        lambda step, faults: self._bad.note("eval", faults))

  def rows(self, step: int) -> np.ndarray:
    """The examples of a batch by their number in the split, -1 where a row has none: int (batch_size,)."""
    return EvalPlan(len(self), self.batch_size).indices(step)[1]


class First(Source):
  """The first examples of a source."""

  def __init__(self, source: Source, count: int):
    if count < 1:
      raise ValueError(f"--limit={count}: give 1 or more")
    self._source = source
    self._count = min(count, len(source))
    self.name, self.split, self.location = source.name, source.split, source.location
    self.class_names, self.image_shape = source.class_names, source.image_shape

  def __len__(self):
    return self._count

  def key(self, index):
    return self._source.key(index)

  def read(self, index):
    return self._source.read(index)

  def read_many(self, indices):
    return self._source.read_many(indices)


class Annotated:
  """Batches with further fields, which a function makes from the number of the batch."""

  def __init__(self, batches: Iterator, fields: Callable[[int], Mapping[str, np.ndarray]]):
    """
    Args:
      batches: with `close()`.
      fields: number of the batch -> name -> array (B, ...), laid over the devices as the labels are.
    """
    self._batches, self._fields, self._step = batches, fields, 0

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, Any]:
    batch = dict(next(self._batches))
    for name, array in self._fields(self._step).items():
      batch[name] = jax.device_put(array, batch["label"].sharding)
    self._step += 1
    return batch

  def skipped(self) -> int:
    """See `StreamBatches`."""
    return self._batches.skipped()

  def close(self) -> None:
    self._batches.close()


def check_classes(have: tuple[str, ...], source: Source, path: str) -> None:
  """Refuses data whose labels mean something else than the network's outputs.

  Args:
    have: the names that the weights have; () if they have none, then nothing is checked.
    source: the data.
    path: of the weights, for the message.

  Raises:
    ValueError: with the names that differ.
  """
  want = tuple(source.class_names)
  if not have or have == want:
    return
  if set(have) == set(want):
    i = next(i for i, (a, b) in enumerate(zip(have, want, strict=True)) if a != b)
    what = f"in another order: class {i} is {have[i]!r} in the weights and {want[i]!r} in the data"
  else:
    only = [f"only in the {where}: {', '.join(repr(n) for n in sorted(set(a) - set(b))[:5])}"
            for where, a, b in (("weights", have, want), ("data", want, have)) if set(a) - set(b)]
    what = f"{len(have)} and {len(want)} of them; {'; '.join(only)}"
  raise ValueError(f"the classes of {path} are not those of {source.name}: {what}. An evaluation needs data "
                   "with the classes that the network was trained for")


def file_stem(text: str) -> str:
  """A part of a file's name from any text: 'test[:90%]' -> 'test-to-90', 'test[90%:]' -> 'test-from-90'."""
  text = re.sub(r"\[:([^\]:]+)\]", r"[to \1]", re.sub(r"\[([^\]:]+):\]", r"[from \1]", text))
  return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")
