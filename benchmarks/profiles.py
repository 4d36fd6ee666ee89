"""The most expensive operations of a training step, by JAX's profiler and by PyTorch's."""

import collections
import re
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import timing
from twins import DEVICE, torch

from bionets_jax.training import profiling

STEPS = 3
_ROWS = 20


def ours(step: Callable[[], Any], compiled: Any) -> str:
  """Tables of the operations of `compiled`, which `step` calls once: each with its place, and by kind."""
  timing.wait_for(step())
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(STEPS):
        timing.wait_for(step())
    found, places = profiling.operations(folder), profiling.sources(compiled.as_text() or "")
  kinds: collections.Counter = collections.Counter()
  for operation in found:
    kinds[_kind(places.get((operation.program, operation.name), operation.name))] += operation.seconds
  total = sum(kinds.values())
  rows = [["by layer and operation, wherever they are", "ms a step", "share"]]
  rows += [[kind, f"{1e3 * seconds / STEPS:.3f}", f"{100 * seconds / total:.1f} %"]
           for kind, seconds in kinds.most_common(_ROWS)]
  return f"{profiling.table(found, places, STEPS)}\n\n{timing.table(rows)}"


def _kind(place: str) -> str:
  """'gradient of stage1_block2/conv1/dot_general' as 'gradient of conv/dot_general'."""
  before, found, path = place.rpartition("gradient of ")
  parts = [re.sub(r"\d+", "", part) for part in path.split("/")]
  return before + found + "/".join(parts[-2:])


def theirs(step: Callable[[], Any]) -> str:
  """The same of PyTorch, whose operations go by their kind and the sizes of what they read."""
  timing.wait_for(step())
  with torch.profiler.profile(record_shapes=True) as profile:
    for _ in range(STEPS):
      timing.wait_for(step())

  def seconds(event: Any) -> float:
    return 1e-6 * (event.self_device_time_total if DEVICE == "cuda" else event.self_cpu_time_total)

  events = sorted(profile.key_averages(group_by_input_shape=True), key=seconds, reverse=True)
  total = sum(map(seconds, events))
  rows = [["operation", "ms a step", "share", "calls a step", "sizes"]]
  for event in events[:_ROWS]:
    sizes = " ".join("x".join(map(str, shape)) for shape in event.input_shapes if shape)
    rows.append([
        event.key[:48], f"{1e3 * seconds(event) / STEPS:.3f}", f"{100 * seconds(event) / total:.1f} %",
        f"{event.count / STEPS:.0f}", sizes[:56]])
  rows.append([f"all, in {STEPS} steps", f"{1e3 * total / STEPS:.3f}", "100.0 %", "", ""])
  return timing.table(rows)
