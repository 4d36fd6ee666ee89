"""Where the time of a run goes, and how much of it is left."""

import time


class Clock:
  """Counts training time, without compilation, evaluation and saving; survives restarts.

  `train`: seconds in steps, over the run's whole life. `total`: seconds since the program started the
  run, over its whole life.
  """

  def __init__(self, train: float = 0.0, total: float = 0.0):
    self.train = train
    self._earlier = total
    self._start = time.perf_counter()
    self._window_start = self._start
    self._window_wait = 0.0
    self._window_images = 0
    self._window_steps = 0

  @property
  def total(self) -> float:
    return self._earlier + time.perf_counter() - self._start

  def waited(self, seconds: float) -> None:
    """Notes time in which the loop had no batch."""
    self._window_wait += seconds

  def stepped(self, images: int) -> None:
    self._window_images += images
    self._window_steps += 1

  def window(self) -> dict[str, float]:
    """Rates since the last call, and starts a new window."""
    seconds = max(time.perf_counter() - self._window_start, 1e-9)
    out = {"seconds_per_step": seconds / max(self._window_steps, 1),
           "images_per_second": self._window_images / seconds,
           "data_wait": min(self._window_wait / seconds, 1.0)}
    self.train += seconds
    self.resume()
    return out

  def pause(self) -> None:
    """Ends the window before something that is not training; `resume` goes on after it."""
    self.train += time.perf_counter() - self._window_start

  def resume(self) -> None:
    self._window_start = time.perf_counter()
    self._window_wait = 0.0
    self._window_images = 0
    self._window_steps = 0


def readable(seconds: float) -> str:
  """'1d 02:03:04', '2:03:04' or '3:04'."""
  s = int(seconds + 0.5)
  days, s = divmod(s, 86400)
  hours, s = divmod(s, 3600)
  minutes, s = divmod(s, 60)
  if days:
    return f"{days}d {hours:02}:{minutes:02}:{s:02}"
  return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"
