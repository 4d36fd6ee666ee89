"""Iterators over the batches of one split, as global arrays sharded over the devices."""

import itertools
import os

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bionets_jax.data.faults import NO_BAD_RECORDS, TooManyBadRecords
from bionets_jax.data.order import EvalPlan
from bionets_jax.data.prefetch import Prefetcher
from bionets_jax.data.stream import read_faults
from bionets_jax.data.workers import read_ahead

_DEVICE_BATCHES_AHEAD = 2
_MAX_WORKERS = 16


class ResidentBatches:
  """The batches of a plan from a `ResidentSet`; dispatch is asynchronous, nothing to prefetch.

  Bad records are stood in for and masked as `BatchReader` does it.
  """

  def __init__(self, resident_set, plan, start_step, seed, on_batch=lambda step, faults: None):
    self._set, self._plan, self._step, self._seed = resident_set, plan, start_step, seed
    self._on_batch = on_batch
    self._end = getattr(plan, "num_steps", None)
    self._skipped = 0

  def __iter__(self):
    return self

  def __next__(self):
    if self._step == self._end:
      raise StopIteration
    epoch, indices = self._plan.indices(self._step)
    if self._set.faults:
      indices = self._without_faults(indices)
    batch = self._set.batch(self._seed, epoch, indices)
    self._on_batch(self._step, [])
    self._step += 1
    return batch if isinstance(self._plan, EvalPlan) else {f: batch[f] for f in batch if f != "mask"}

  def _without_faults(self, indices):
    indices = indices.copy()
    for row in np.flatnonzero(np.isin(indices, list(self._set.faults))):
      if isinstance(self._plan, EvalPlan):
        indices[row] = -1
        self._skipped += 1
      else:
        indices[row] = next(
            i for i in self._plan.following(self._step, row) if i not in self._set.faults)
    return indices

  def skipped(self):
    """Returns how many examples of the batches so far were left out, in all processes."""
    return self._skipped

  def close(self):
    """Ends the iteration."""
    self._end = self._step


class StreamBatches:
  """Batches that a `Prefetcher` lays on the devices, with their faults."""

  def __init__(self, batches, start_step, on_batch):
    self._batches, self._step, self._on_batch = batches, start_step, on_batch
    self._skipped = 0

  def __iter__(self):
    return self

  def __next__(self):
    try:
      batch, faults = next(self._batches)
    except TooManyBadRecords as error:
      self._on_batch(self._step, error.faults)  # they are listed too; it raises the same or more
      raise
    self._on_batch(self._step, faults)
    self._step += 1
    self._skipped += sum(not fault.stand_in for fault in faults)
    return batch

  def skipped(self):
    """Returns how many examples of the batches so far were left out, in all processes, which all call this."""
    if jax.process_count() == 1:
      return self._skipped
    return int(multihost_utils.process_allgather(np.int32(self._skipped)).sum())

  def close(self):
    """Stops; further `next` calls raise StopIteration. May be called more than once."""
    self._batches.close()


def stream_batches(
    source, plan, placement, start_step, seed, workers, mesh, limit=NO_BAD_RECORDS,
    on_batch=lambda step, faults: None,
):
  """Returns a `StreamBatches` over the batches of `plan`, read ahead from the host.

  Args:
    source: a `Source`.
    plan: a `BatchPlan` or an `EvalPlan` over it.
    placement: a streamed `Placement`, or an `ObjectsPlacement`.
    start_step: int, the first step.
    seed: int in [0, 2**32), of the augmentation.
    workers: worker processes; 0 for threads of this one.
    mesh: a Mesh with the axis 'data'.
    limit: how many records may be bad.
    on_batch: called with the step and a list of `Fault`, of this process's part, before each batch is
      returned; may raise.
  """
  shards = local_shards(mesh)
  sharding = NamedSharding(mesh, P("data"))
  num_steps = getattr(plan, "num_steps", None)
  if num_steps is not None:
    workers = min(workers, num_steps)
  reader = placement.reader(source, plan, seed, shards, mesh.size, limit)
  host = read_ahead(reader, start_step, workers, cores())

  def to_devices(local):
    # What comes from worker processes is shared memory. jax may keep a reference to it for as
    # long as it likes, so that it would still be there at exit; the copy lets it go at once.
    own = np.array if workers else np.asarray
    return {
        field: _global_array(own(local[field]), sharding, shards, mesh.size) for field in reader.fields
    }, read_faults(local)

  # Evaluation stops here, not in Grain: an exhausted Grain iterator keeps its last batches in
  # shared memory until the garbage collector runs, which at exit is too late.
  batches = itertools.islice(host, num_steps)
  ahead = Prefetcher(batches, to_devices, _DEVICE_BATCHES_AHEAD, host.close, host.check)
  return StreamBatches(ahead, start_step, on_batch)


def local_shards(mesh):
  """Returns the positions on the 'data' axis of the devices of this process, ascending."""
  process = jax.process_index()
  return tuple(
      i for i, device in enumerate(mesh.devices.flat) if device.process_index == process
  )


def _global_array(local, sharding, shards, num_shards):
  """Makes the global array out of this process's rows (the runs of `shards`, concatenated)."""
  rows = len(local) // len(shards)
  offsets = {shard * rows: i * rows for i, shard in enumerate(shards)}

  def shard_of(index):
    start = offsets[index[0].start or 0]
    return local[start:start + rows]

  return jax.make_array_from_callback(
      (rows * num_shards, *local.shape[1:]), sharding, shard_of
  )


def cores():
  """Returns the number of cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def resolve_workers(workers):
  """Returns the number of worker processes; -1 is one less than the cores, at most 16."""
  return min(_MAX_WORKERS, cores() - 1) if workers == -1 else workers
