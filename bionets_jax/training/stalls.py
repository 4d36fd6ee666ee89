"""How long the devices stand still because no batch is there."""

import math
import queue
import threading
import time
from typing import Any

import jax

from bionets_jax.data.batches import cores
from bionets_jax.training.clock import readable_rate


class StallWatch:
  """Knows when the step that was dispatched last was done.

  The loop waits for its next batch while the devices still compute: only what is left of the wait after they
  have finished is lost. A thread that does nothing but wait for results takes the times, so that the loop
  does not have to.
  """

  def __init__(self):
    self._dispatched = 0
    self._done = (0, 0.0)  # number of the last finished step, and when that was
    self._results: queue.SimpleQueue = queue.SimpleQueue()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()

  def dispatched(self, result: Any) -> None:
    """Notes a step by something that it computes and that is not donated."""
    self._dispatched += 1
    self._results.put((self._dispatched, result))

  def stalled(self, start: float, end: float) -> float:
    """Seconds between two values of `time.perf_counter` in which no step was computed; `end` is now."""
    number, when = self._done
    return max(end - max(start, when), 0.0) if number == self._dispatched else 0.0

  def close(self) -> None:
    self._results.put((0, None))

  def _watch(self) -> None:
    while True:
      number, result = self._results.get()
      if not number:
        return
      try:
        jax.block_until_ready(result)
      except Exception:  # noqa: BLE001 (the loop fetches the same result, and says what it is)
        pass
      self._done = (number, time.perf_counter())
      del result  # else the last step's would live on


class WorkerAdvice:
  """Says once how many workers would be needed, where the devices wait for images."""

  # A share of stalled time that is not worth a worker.
  TOLERATED = 0.02

  def __init__(self, workers: int):
    """
    Args:
      workers: processes or threads that prepare the images of all runs; 0 where these live on the devices.
    """
    self._workers = workers
    self._windows = 0

  def of(self, rates: dict[str, float]) -> str:
    """The advice after a window of the log with these rates (`Clock.rates`); '' where there is none."""
    self._windows += 1
    stalled, rate = rates["data_wait"], rates["images_per_second"]
    # The first window has the start of the workers in it.
    if self._windows == 1 or not self._workers or stalled <= self.TOLERATED:
      return ""
    workers, self._workers = self._workers, 0
    possible = rate / max(1 - stalled, 1e-3)
    return (f"the devices stand still for {100 * stalled:.0f} % of the time: {workers} workers prepare "
            f"{readable_rate(rate)} img/s of the {readable_rate(possible)} that could be used, for which it "
            f"takes {workers_needed(workers, stalled)} (config.data.workers; {cores()} cores are at hand)")


def workers_needed(workers: int, stalled: float) -> int:
  """The number of workers with which the devices would never wait.

  The `workers` make as many images as are used now, and without the stalled share of the time it would be
  1 / (1 - stalled) as many. More workers are taken to be proportionally faster, which ends where the cores do.

  Args:
    workers: processes or threads that prepare images.
    stalled: share of the time in [0, 1).
  """
  return math.ceil(workers / max(1.0 - stalled, 1e-3))
