"""The time from the start of the process to the end of the first training step, and where it goes."""

import os
import time

from bionets_jax.training.compile_cache import cache_counts

_seen = False  # whether a run of this process has been timed: the imports are the first one's alone


class StartUp:
  """Splits the time before the first step into phases.

  Of the first run in a process the time counts from the start of the process, of a later one from the making
  of this object.
  """

  def __init__(self):
    global _seen
    now = time.perf_counter()
    self._start = now if _seen else now - _process_age()
    self._last = self._start
    self._phases: dict[str, float] = {}
    self._counts = cache_counts()
    if not _seen:
      self.done("imports")
    _seen = True

  def done(self, phase: str) -> None:
    """Everything since the phase before belongs to this one."""
    now = time.perf_counter()
    self._phases[phase] = self._phases.get(phase, 0.0) + now - self._last
    self._last = now

  @property
  def seconds(self) -> dict[str, float]:
    """Phase -> seconds, in the order in which they were done, and their sum as 'total'."""
    return {name: round(value, 3) for name, value in self._phases.items()} | {
        "total": round(self._last - self._start, 3)}

  @property
  def metrics(self) -> dict[str, float]:
    """`seconds` under the names that metrics.jsonl has: 'start/first_batch'."""
    return {f"start/{name.replace(' ', '_')}": value for name, value in self.seconds.items()}

  def describe(self, cache: str) -> str:
    """'first step done after 12.3 s: imports 3.1, setup 0.2, ...', and what the cache of programs did.

    Args:
      cache: its folder, '' for none.
    """
    parts = ", ".join(f"{name} {value:.1f}" for name, value in self._phases.items())
    text = f"first step done after {self._last - self._start:.1f} s: {parts}"
    if cache:
      counts = cache_counts() - self._counts
      text += f"\ncompiled programs: {counts['found']} found in {cache}, {counts['new']} new"
    return text


def _process_age() -> float:
  """Seconds since this process was started, as Linux says; 0 elsewhere."""
  try:
    with open("/proc/self/stat") as file:
      ticks = int(file.read().rpartition(")")[2].split()[19])  # field 22; the name may hold anything
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"), 0.0)
  except (OSError, ValueError, IndexError, AttributeError):
    return 0.0
