"""The largest batch whose training step fits into the device, found by compiling and without a step."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections

from bionets_jax.training.config import norm_groups
from bionets_jax.training.device_memory import host_memory, mebibytes, memory_limit, memory_need
from bionets_jax.training.devices import describe_devices
from bionets_jax.training.evaluation import IN_FLIGHT
from bionets_jax.training.program import compile_from_shapes, out_of_memory
from bionets_jax.training.setup import Setup, make_setup

# The search ends when the batch is known to this share of itself: a step more is not worth a compilation.
_RESOLUTION = 1 / 16


class Tried(NamedTuple):
  """A batch and the bytes that its training needs on each device; None where the compiler gave up."""

  batch_size: int
  bytes_needed: int | None


def find_largest_batch(
    config: ml_collections.ConfigDict, *, limit: int | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
  """Finds the largest batch that fits, up to one sixteenth of it.

  What is needed is what XLA says of the compiled training step (state, batch, temporaries), the batches that
  wait on the device, and the data sets that live there. What it leaves out: evaluation (its batch is
  config.eval_batch_size), the fragmentation of the allocator and the libraries' own workspace; keep some per
  cent below the answer.

  Args:
    config: of a run; its batch_size is where the search starts.
    limit: bytes of a device's memory; by default what the device says, on a CPU the machine's memory.
    say: told each batch that was tried, and the answer.

  Returns:
    {'largest': batch or 0 if none fits, 'limit': bytes, 'tried': [{'batch_size', 'bytes_needed'}, ...]}, the
    batches in ascending order.

  Raises:
    ValueError, FileNotFoundError, RuntimeError: as `make_setup`; and where nobody knows the device's memory.
  """
  setup = make_setup(config)
  device = setup.mesh.local_devices[0]
  limit = limit or memory_limit(device) or (host_memory() if device.platform == "cpu" else None)
  if limit is None:
    raise RuntimeError(f"{device.device_kind} does not say how much memory it has")
  step = least_batch(config, setup)
  most = setup.pipeline.num_train // step * step
  say(f"devices     {describe_devices(setup.mesh)}, {setup.dtype}; {mebibytes(limit)} for each\n"
      f"model       {config.model.name}, remat={config.remat!r}; batches are multiples of {step}")
  needs: dict[int, int | None] = {}

  def fits(size: int) -> bool:
    needs[size] = bytes_needed(config, setup, size)
    fine = needs[size] is not None and needs[size] <= limit
    shown = "more than XLA can plan" if needs[size] is None else mebibytes(needs[size])
    say(f"batch {size:>7,}  {shown:>16}  {'fits' if fine else 'does not fit'}")
    return fine

  largest = search(fits, start=config.batch_size, step=step, most=most)
  more = f"; the training split has no {largest + step:,} images" if largest == most else ""
  say(f"largest batch that fits: {largest:,}{more}" if largest else
      "no batch fits; try config.remat='blocks', config.accumulate or a smaller network")
  return {"largest": largest, "limit": limit,
          "tried": [Tried(*item)._asdict() for item in sorted(needs.items())]}


def search(fits: Callable[[int], bool], *, start: int, step: int, most: int) -> int:
  """The largest multiple of `step` up to `most` that fits, to `_RESOLUTION` of itself; 0 for none.

  Args:
    fits: asked once for each size, and true for all below one for which it is true.
    start: size at which the search begins.
    step, most: the sizes are step, 2 step, ... up to most, a multiple of step.
  """
  good, bad = 0, most + step
  size = min(max(start // step, 1) * step, most)
  while True:
    if fits(size):
      good = size
    else:
      bad = size
    if bad - good <= max(step, good * _RESOLUTION):
      return good
    nothing_failed = bad > most
    size = min(2 * good, most) if nothing_failed else (good + bad) // 2 // step * step


def bytes_needed(config: ml_collections.ConfigDict, setup: Setup, size: int) -> int | None:
  """Bytes on each device of a run with batches of `size`; None if XLA refuses to plan so much."""
  try:
    compiled = compile_from_shapes(config, setup, size)
  except jax.errors.JaxRuntimeError as error:
    if out_of_memory(error):
      return None
    raise
  need = memory_need(compiled)
  if need is None:
    raise RuntimeError("XLA does not say how much memory a program needs on this device")
  waiting = IN_FLIGHT * size * math.prod(setup.pipeline.image_shape) // setup.mesh.size
  return need.total + waiting + setup.pipeline.resident_bytes


def least_batch(config: ml_collections.ConfigDict, setup: Setup) -> int:
  """What batches have to be a multiple of, by the devices, config.accumulate and the groups of BatchNorm."""
  groups = norm_groups(config, ())
  return math.lcm(setup.mesh.size, groups * config.accumulate)
