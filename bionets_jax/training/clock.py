"""Where the time of a run goes, and how much of it is left."""

import time

# A window shorter than this says nothing: metrics of several steps can arrive at once.
SHORTEST_WINDOW = 0.5


class Clock:
  """Counts training time, without compilation, evaluation and saving; survives restarts.

  `train`: seconds in steps, over the run's whole life. `total`: seconds since the program started the
  run, over its whole life.
  """

  def __init__(self, train: float = 0.0, total: float = 0.0):
    self._train = train
    self._earlier = total
    self._start = time.perf_counter()
    self._running_since: float | None = None
    self._rates = {"seconds_per_step": 0.0, "images_per_second": 0.0, "data_wait": 0.0}
    self._reset()

  @property
  def total(self) -> float:
    return self._earlier + time.perf_counter() - self._start

  @property
  def train(self) -> float:
    running = 0.0 if self._running_since is None else time.perf_counter() - self._running_since
    return self._train + running

  def resume(self) -> None:
    """Training begins, or goes on."""
    self._running_since = time.perf_counter()
    self._reset()

  def pause(self) -> None:
    """Something begins that is not training."""
    self._train = self.train
    self._running_since = None

  def waited(self, seconds: float) -> None:
    """Notes time in which the loop had no batch."""
    self._wait += seconds

  def stepped(self, images: int) -> None:
    """Notes a finished step."""
    self._images += images
    self._steps += 1

  def rates(self) -> dict[str, float]:
    """Of the window since the last call that closed one; of the one before it if that is too short."""
    seconds = time.perf_counter() - self._window_start
    if self._steps and (seconds >= SHORTEST_WINDOW or not self._rates["images_per_second"]):
      self._rates = {"seconds_per_step": seconds / self._steps,
                     "images_per_second": self._images / seconds,
                     "data_wait": min(self._wait / seconds, 1.0)}
      self._reset()
    return self._rates

  def _reset(self) -> None:
    self._window_start = time.perf_counter()
    self._wait = 0.0
    self._images = 0
    self._steps = 0


def readable(seconds: float) -> str:
  """'1d 02:03:04', '2:03:04' or '3:04'."""
  s = int(seconds + 0.5)
  days, s = divmod(s, 86400)
  hours, s = divmod(s, 3600)
  minutes, s = divmod(s, 60)
  if days:
    return f"{days}d {hours:02}:{minutes:02}:{s:02}"
  return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


def readable_rate(number: float) -> str:
  """'12,345' or '0.123': three digits at least."""
  return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
