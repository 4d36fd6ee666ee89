"""Iterators over the batches of one split, as global arrays sharded over the devices."""

import itertools
import os

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bionets_jax.data.order import EvalPlan
from bionets_jax.data.prefetch import Prefetcher
from bionets_jax.data.stream import BatchReader, read_ahead

_DEVICE_BATCHES_AHEAD = 2
_MAX_WORKERS = 16


class ResidentBatches:
  """The batches of a plan from a `ResidentSet`; dispatch is asynchronous, nothing to prefetch."""

  def __init__(self, resident_set, plan, start_step, seed):
    self._set, self._plan, self._step, self._seed = resident_set, plan, start_step, seed
    self._end = getattr(plan, "num_steps", None)

  def __iter__(self):
    return self

  def __next__(self):
    if self._step == self._end:
      raise StopIteration
    batch = self._set.batch(self._seed, *self._plan.indices(self._step))
    self._step += 1
    return {field: batch[field] for field in _fields(self._plan)}

  def close(self):
    """Ends the iteration."""
    self._end = self._step


def stream_batches(source, plan, placement, start_step, seed, workers, mesh):
  """Returns an iterator with `close()` over the batches of `plan`, read ahead from the host.

  Args:
    source: a `Source`.
    plan: a `BatchPlan` or an `EvalPlan` over it.
    placement: a streamed `Placement`.
    start_step: int, the first step.
    seed: int in [0, 2**32), of the augmentation.
    workers: worker processes; 0 for threads of this one.
    mesh: a Mesh with the axis 'data'.
  """
  shards = local_shards(mesh)
  sharding = NamedSharding(mesh, P("data"))
  num_steps = getattr(plan, "num_steps", None)
  if num_steps is not None:
    workers = min(workers, num_steps)
  reader = BatchReader(
      source, plan, placement.host, placement.host_shape, seed, shards, mesh.size
  )
  host = read_ahead(reader, start_step, workers, cores())
  wanted = _fields(plan)

  def to_devices(local):
    # What comes from worker processes is shared memory. jax may keep a reference to it for as
    # long as it likes, so that it would still be there at exit; the copy lets it go at once.
    own = np.array if workers else np.asarray
    return {
        field: _global_array(own(local[field]), sharding, shards, mesh.size) for field in wanted
    }

  # Evaluation stops here, not in Grain: an exhausted Grain iterator keeps its last batches in
  # shared memory until the garbage collector runs, which at exit is too late.
  batches = itertools.islice(host, num_steps)
  return Prefetcher(batches, to_devices, _DEVICE_BATCHES_AHEAD, host.close)


def _fields(plan):
  return ("image", "label", "mask") if isinstance(plan, EvalPlan) else ("image", "label")


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
