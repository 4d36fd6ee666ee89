"""Evaluation over a whole split, each example counted once."""

import collections
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from bionets_jax.ops import compiler_options
from bionets_jax.training import config as config_lib
from bionets_jax.training import heartbeat
from bionets_jax.training.checkpoints import Checkpoints
from bionets_jax.training.clock import readable, readable_rate
from bionets_jax.training.devices import replicated
from bionets_jax.training.program import abstract_state
from bionets_jax.training.restoring import restore_newest
from bionets_jax.training.setup import make_setup
from bionets_jax.training.side_by_side import over_runs
from bionets_jax.training.state import make_eval_step
from bionets_jax.training.summary import finished, show

# Steps that the host may be ahead of the device. Two keep it busy; many more deadlock collectives
# of virtual CPU devices and hold batches on a GPU.
IN_FLIGHT = 2


def evaluate(
    eval_step: Callable, variables: Any, batches: Sequence[Iterator], total: int,
    say: Callable[[str], None], asked: Callable[[], bool] = lambda: False,
    measure: Callable[[dict[str, np.ndarray]], dict[str, float]] | None = None,
) -> list[dict[str, float]]:
  """Means over a whole split for each of several runs, each example counted once.

  Args:
    eval_step: the jitted `make_eval_step`, over runs (`side_by_side.over_runs`).
    variables: (params, model_state), stacked if there are several runs.
    batches: of each run. They are closed.
    total: the number of examples, bad records among them.
    say: told of the progress every ten seconds.
    asked: before each batch, whether to stop.
    measure: `Task.measure`, of a task that keeps examples.

  Returns:
    Of each run name -> mean: for classification 'loss', 'top1_error' in percent, and 'top5_error' for six classes or
    more; what `measure` returns; where there are any, also 'bad_records', how many examples could not be used and
    are in no mean.
    [] if it was asked to stop.

  Raises:
    RuntimeError: if the number of examples seen is not `total`.
    ValueError: if none can be used, or more are bad than the config lets pass.
  """
  started = told = time.perf_counter()
  sums: dict[str, Any] = collections.defaultdict(float)
  in_flight = collections.deque()
  kept: list[dict[str, np.ndarray]] = []

  def fetch():
    found = jax.device_get(in_flight.popleft())
    if "examples" in found:
      kept.append(found.pop("examples"))
    for name, value in found.items():
      sums[name] += np.atleast_1d(value).astype(np.float64)

  with heartbeat.expected():
    try:
      for batch in zip(*batches, strict=True):
        heartbeat.beat()
        if asked():
          return []
        in_flight.append(eval_step(*variables, list(batch)))
        if len(in_flight) > IN_FLIGHT:
          fetch()
        if time.perf_counter() - told > 10 and sums:
          told, done = time.perf_counter(), sums["count"][0]
          rate = done / (told - started)
          say(f"evaluated {done:,.0f} of {total:,} images, {readable_rate(rate)} img/s, "
              f"left {readable((total - done) / max(rate, 1e-9))}")
    finally:
      for b in batches:
        b.close()
    while in_flight:
      fetch()
  counts = sums.pop("count")
  bad = [b.skipped() for b in batches]
  if any(round(count) + skipped != total for count, skipped in zip(counts, bad, strict=True)):
    raise RuntimeError(f"evaluated {counts} of {total} examples, beside {bad} that cannot be used")
  if not all(counts):
    raise ValueError(f"none of the {total} examples to evaluate on can be used")
  means = [{name: float(value[i] / count) for name, value in sums.items()} for i, count in enumerate(counts)]
  if kept:
    several = len(batches) > 1  # then the runs are the first axis
    whole = {name: np.concatenate([one[name] for one in kept], axis=int(several)) for name in kept[0]}
    means = [mean | measure({name: x[i] for name, x in whole.items()} if several else whole)
             for i, mean in enumerate(means)]
  return [mean | ({"bad_records": skipped} if skipped else {}) for mean, skipped in zip(means, bad, strict=True)]


def evaluate_workdir(
    config: ml_collections.ConfigDict, workdir: str, *, say: Callable[[str], None] = print
) -> dict[str, Any]:
  """Evaluates the newest checkpoint of `workdir`; of damaged ones it says so and leaves them where they are.

  Raises:
    FileNotFoundError: if there is none.
    ValueError, OSError: as `Checkpoints.restore`.
  """
  config_lib.check_config(config)
  if not os.path.isdir(os.path.join(workdir, "checkpoints")):
    raise FileNotFoundError(f"{workdir} has no checkpoints; train first, without --mode=eval")
  finished(config, workdir)  # the same config, or an error
  setup = make_setup(config)
  checkpoints = Checkpoints(workdir, setup.keep, say=say, read_only=True)
  latest, _, found = restore_newest([checkpoints], abstract_state(setup), say)
  if not latest:
    raise FileNotFoundError(f"{workdir}/checkpoints has none that can be read; train first, without --mode=eval")
  state = found[0][0]
  pipeline = setup.pipeline
  eval_step = jax.jit(
      over_runs(make_eval_step(setup.task), (0, 0, 0)), out_shardings=replicated(setup.mesh),
      compiler_options=compiler_options(deterministic=config.deterministic))
  values = evaluate(eval_step, state.evaluated, [pipeline.eval_batches()], pipeline.num_eval, say,
                    measure=setup.task.measure)[0]
  say(f"{workdir}, step {latest}, {pipeline.num_eval} examples: {show(values)}")
  values = {"step": latest} | values
  if pipeline.num_test:
    values["test"] = evaluate(
        eval_step, state.selected, [pipeline.test_batches()], pipeline.num_test, say,
        measure=setup.task.measure)[0]
    say(f"{workdir}, {config.select} weights, {pipeline.num_test} test examples: {show(values['test'])}")
  return values
