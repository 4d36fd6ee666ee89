"""Traces of training steps, and which operations of the compiled step take the time.

The trace is that of `jax.profiler`, for TensorBoard's profile plugin and Perfetto; the table is made from it
without either.
"""

import collections
import glob
import os
import re
import warnings
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import jax

TABLE_FILE = "operations.txt"
_ROWS = 25
_MODULE = re.compile(r"^HloModule ([\w.\-]+)")
_OPERATION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{[^}]*?op_name="([^"]*)"', re.MULTILINE)


class Window(NamedTuple):
  """Steps that are traced: `count` of them from number `first` on, counted as in the log from 1."""

  first: int
  count: int


class Operation(NamedTuple):
  """An operation of a compiled program: the program's name, its own there, its time without what it calls."""

  program: str
  name: str
  seconds: float
  calls: int


def parse_window(text: str, total_steps: int) -> Window | None:
  """'100:5' are the steps 100 to 104, or to the run's last; '' is none.

  Raises:
    ValueError: for anything else, and if the run has no step START.
  """
  if not text:
    return None
  match = re.fullmatch(r"(\d+):(\d+)", text)
  if not match or not int(match[1]) or not int(match[2]):
    raise ValueError(
        f"config.profile={text!r}: give START:COUNT, e.g. '100:5' for the steps 100 to 104, or ''")
  first, count = int(match[1]), int(match[2])
  if first > total_steps:
    raise ValueError(f"config.profile={text!r}: the run has {total_steps} steps; start at an earlier one")
  return Window(first, min(count, total_steps - first + 1))


class _Event(NamedTuple):
  """When an operation ran, in nanoseconds; (program, name) of it."""

  start: float
  end: float
  operation: tuple[str, str]


class Profiler:
  """Traces a window of the steps of a loop, which asks before and after each step."""

  def __init__(self, window: Window | None, folder: str):
    """
    Args:
      window: None for nothing.
      folder: made when the trace begins. Afterwards it holds the trace and `TABLE_FILE`.
    """
    self._window, self._folder = window, folder
    self._running = False

  def missed(self, step: int) -> str:
    """What to say where a run goes on behind `step` and its window began before; '' where it did not."""
    if self._window is None or self._window.first > step:
      return ""
    return (f"no step is traced: config.profile starts with step {self._window.first}, and this run goes on "
            f"with step {step + 1}")

  def starts_with(self, step: int) -> bool:
    return self._window is not None and step == self._window.first

  def ends_with(self, step: int) -> bool:
    return self._running and step >= self._window.first + self._window.count - 1

  def start(self) -> None:
    """Begins the trace. No step should be on its way."""
    os.makedirs(self._folder, exist_ok=True)
    jax.profiler.start_trace(self._folder)
    self._running = True

  def stop(self, program: str) -> str:
    """Ends the trace. Every step should be done.

    Args:
      program: text of the compiled step, which says where its operations come from.

    Returns:
      The table of the most expensive operations, as in `TABLE_FILE`.
    """
    self.close()
    try:
      places = sources(program)
      text = table(of_programs(operations(self._folder), {name for name, _ in places}), places,
                   self._window.count)
    except FileNotFoundError as error:  # no reason to end a run
      return str(error)
    with open(os.path.join(self._folder, TABLE_FILE), "w", encoding="utf-8") as file:
      file.write(text + "\n")
    return text

  def close(self) -> None:
    """Ends the trace if it is still running."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()


def operations(folder: str) -> list[Operation]:
  """The operations of the newest trace under `folder`, the most expensive first.

  Of an accelerator the seconds are those of the device, of several devices the mean. On a CPU they are summed
  over the threads that ran the operation, so that together they can be more than the time that passed.

  Raises:
    FileNotFoundError: if there is no trace.
  """
  paths = glob.glob(os.path.join(folder, "plugins", "profile", "*", "*.xplane.pb"))
  if not paths:
    raise FileNotFoundError(f"{folder} has no trace of jax.profiler (plugins/profile/*/*.xplane.pb)")
  seconds: dict[tuple[str, str], float] = collections.defaultdict(float)
  calls: collections.Counter = collections.Counter()
  planes = list(jax.profiler.ProfileData.from_file(max(paths, key=os.path.getmtime)).planes)
  devices = [plane for plane in planes if plane.name.startswith(("/device:GPU:", "/device:TPU:"))]
  for plane in devices or planes:
    for events in _lines(plane, device=bool(devices)):
      for operation, own in _own_times(events):
        seconds[operation] += own * 1e-9
        calls[operation] += 1
  count = max(len(devices), 1)
  found = [Operation(*key, value / count, round(calls[key] / count)) for key, value in seconds.items()]
  return sorted(found, key=lambda operation: -operation.seconds)


def of_programs(found: list[Operation], programs: Collection[str]) -> list[Operation]:
  """Without the operations of other programs: an evaluation inside the window is no part of a step.

  What belongs to no program, as a copy to the device, stays; and all of it where none is of these programs.
  """
  if not any(operation.program in programs for operation in found):
    return found
  return [operation for operation in found if not operation.program or operation.program in programs]


def _lines(plane: Any, *, device: bool) -> Iterable[list[_Event]]:
  """The events of each line of a plane that shows operations."""
  lines = list(plane.lines)
  if device:  # a TPU has a line of its operations; a GPU one for each stream of kernels
    lines = ([line for line in lines if line.name == "XLA Ops"]
             or [line for line in lines if line.name.startswith("Stream")])
  for line in lines:
    events = []
    for event in line.events:
      stats = _stats(event)
      if device or "hlo_op" in stats:
        key = str(stats.get("hlo_module", "")), str(stats.get("hlo_op", event.name))
        events.append(_Event(event.start_ns, event.start_ns + event.duration_ns, key))
    yield events


def _stats(event: Any) -> dict[str, Any]:
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of the type in jaxlib that holds them
    return dict(event.stats)


def _own_times(events: list[_Event]) -> list[tuple[tuple[str, str], float]]:
  """Operation and duration of each event, without the events that lie inside it as a body lies in a loop."""
  own: list[float] = []
  inside: list[tuple[float, int]] = []  # (end, index into own) of the events around the present one
  ordered = sorted(events, key=lambda event: (event.start, -event.end))
  for event in ordered:
    while inside and inside[-1][0] <= event.start:
      inside.pop()
    if inside:
      end, index = inside[-1]
      own[index] -= min(event.end, end) - event.start
    inside.append((event.end, len(own)))
    own.append(event.end - event.start)
  return [(event.operation, max(value, 0.0)) for event, value in zip(ordered, own, strict=True)]


def sources(text: str) -> dict[tuple[str, str], str]:
  """(program, operation) -> where in the network it comes from, of a compiled program's text."""
  module = _MODULE.search(text)
  program = module[1] if module else ""
  return {(program, name): _shortened(path) for name, path in _OPERATION.findall(text)}


def _shortened(path: str) -> str:
  """'stage1_block0/conv1/...': without the functions around the network; the backward pass is marked."""
  parts = [part for part in path.split("/") if "(" not in part]
  return ("gradient of " if "transpose(" in path else "") + "/".join(parts)


def table(found: list[Operation], places: dict[tuple[str, str], str], steps: int) -> str:
  """The most expensive operations of `steps` steps, as text.

  Args:
    found: most expensive first.
    places: see `sources`; an operation that is not there is shown with its program's name instead.
    steps: how many were traced.
  """
  total = sum(operation.seconds for operation in found)
  if not total:
    return "the trace holds no operations"
  lines = [f"{'ms a step':>10}  {'share':>7}  {'calls a step':>12}  operation"]
  def line(seconds, calls, text):
    return f"{1e3 * seconds / steps:10.3f}  {100 * seconds / total:5.1f} %  {calls:>12}  {text}".rstrip()
  for program, name, seconds, calls in found[:_ROWS]:
    lines.append(line(seconds, f"{calls / steps:.1f}", f"{name}  {places.get((program, name), program)}"))
  rest = found[_ROWS:]
  if rest:
    lines.append(line(sum(operation.seconds for operation in rest), "", f"{len(rest)} others"))
  lines.append(line(total, "", f"all, in {steps} traced steps"))
  return "\n".join(lines)
