"""The log of a training loop: means over the steps since the last line, and how fast they were."""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bionets_jax.training.clock import Clock, readable, readable_rate
from bionets_jax.training.stalls import WorkerAdvice
from bionets_jax.training.summary import show
from bionets_jax.training.utilization import Utilization

_SHOWN = ("loss", "top1_error", "distillation", "alpha")
MANY = 65536  # steps whose learning rates are looked up at once


class Averages:
  """Means over the steps since the last log line."""

  def __init__(self):
    self._sums: dict[str, float] = collections.defaultdict(float)
    self._seen = 0.0

  def state(self) -> dict[str, Any]:
    """JSON, for `restore`: a run may be stopped between two lines."""
    return {"seen": self._seen, "sums": dict(self._sums)}

  def restore(self, state: Mapping[str, Any]) -> None:
    """Goes on from what `state` returned; {} for none."""
    self._seen = state.get("seen", 0.0)
    self._sums = collections.defaultdict(float, state.get("sums", {}))

  def take(self) -> dict[str, float]:
    """The means, and the share of examples in steps that were skipped; NaN if these were all."""
    sums, seen = self._sums, self._seen
    self._sums, self._seen = collections.defaultdict(float), 0.0
    count = sums.pop("count")
    means = {name: value / count if count else math.nan for name, value in sums.items()}
    return means | ({"skipped": sums["skipped"] / seen} if "skipped" in sums else {})

  def add(self, metrics: dict[str, Any], *, skipped: bool = False) -> None:
    """Adds the sums of a step. One that was not finite, and `skipped` for it, is in no mean but its own."""
    self._seen += float(metrics["count"])
    if skipped:
      metrics = dict.fromkeys(metrics, 0.0) | {"skipped": metrics["count"]}
    for name, value in metrics.items():
      self._sums[name] += float(value)


class Progress:
  """Writes and says a line of the log.

  Attributes:
    once: further values that the next line of metrics.jsonl is to have.
  """

  def __init__(self, runs: Sequence[Any], clock: Clock, say: Callable[[str], None]):
    """
    Args:
      runs: those that are made together, with `setup`, `averages` and `writer`.
      clock: of all of them.
      say: where the lines go.
    """
    self.once: dict[str, float] = {}
    self._runs, self._clock, self._say = runs, clock, say
    self._setup = runs[0].setup
    self._schedule = jax.jit(jax.vmap(self._setup.schedule))
    self._learning_rates = 0, np.asarray(self._schedule(np.arange(MANY)))  # compiled before the first step
    self._utilization = Utilization(self._setup)
    pipeline = self._setup.pipeline
    self._advice = WorkerAdvice(0 if pipeline.resident else len(runs) * pipeline.readers)
    say(self._utilization.describe())

  def log(self, step: int) -> None:
    """The line of `step`: means over the steps since the last one."""
    setup, rates = self._setup, self._clock.rates()
    left = rates["seconds_per_step"] * (setup.total_steps - step)
    epoch = step / setup.pipeline.steps_per_epoch
    rate = self._learning_rate(step)
    images = rates["images_per_second"]
    share = self._utilization.share(images)
    found = [run.averages.take() for run in self._runs]
    for run, values in zip(self._runs, found, strict=True):
      run.writer.write(step, epoch, {f"train/{k}": v for k, v in values.items()} | {
          "train/learning_rate": rate, "time/images_per_second": images, "time/mfu": share,
          "time/data_wait": rates["data_wait"], "time/train_seconds": self._clock.train} | self.once)
    self.once = {}
    mean = mean_of_runs(found)
    shown = {k: mean[k] for k in (*_SHOWN, *(k for k in mean if k.startswith("loss_"))) if k in mean}
    self._say(f"step {step:>6}  epoch {epoch:6.2f}  train {show(shown)}  lr {rate:.3g}  "
              f"{readable_rate(images)} img/s  MFU {100 * share:.1f} %  "
              f"data wait {100 * rates['data_wait']:.0f} %  left {readable(left)}")
    if advice := self._advice.of(rates):
      self._say(advice)

  def _learning_rate(self, step: int) -> float:
    """That of the step. Many at a time: each is a program on the device, which waits for the steps before it."""
    first, rates = self._learning_rates
    if not 0 <= step - 1 - first < len(rates):
      first, rates = step - 1, np.asarray(self._schedule(step - 1 + np.arange(MANY)))
      self._learning_rates = first, rates
    return float(rates[step - 1 - first])


def mean_of_runs(of: Sequence[dict[str, float]]) -> dict[str, float]:
  """Of several runs' metrics, for the console."""
  return {name: sum(values[name] for values in of) / len(of) for name in of[0] if name != "step"}
