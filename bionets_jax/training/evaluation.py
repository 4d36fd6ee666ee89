"""Evaluation over a whole split, each example counted once."""

import collections
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from bionets_jax.training import config as config_lib
from bionets_jax.training.checkpoints import Checkpoints
from bionets_jax.training.clock import readable
from bionets_jax.training.devices import replicated
from bionets_jax.training.setup import Setup, make_setup
from bionets_jax.training.state import TrainState, make_eval_step, make_init
from bionets_jax.training.summary import finished, show

# Steps that the host may be ahead of the device. Two keep it busy; many more deadlock collectives
# of virtual CPU devices and hold batches on a GPU.
IN_FLIGHT = 2


def evaluate(
    setup: Setup, eval_step: Callable, state: TrainState, say: Callable[[str], None]
) -> dict[str, float]:
  """Means over the whole evaluation split, each example counted once.

  Args:
    setup: of the run.
    eval_step: the jitted `make_eval_step`.
    state: what is evaluated.
    say: told of the progress every ten seconds.

  Returns:
    name -> mean: 'loss', 'top1_error' in percent, and 'top5_error' for six classes or more.

  Raises:
    RuntimeError: if the number of examples seen is not that of the split.
  """
  started = told = time.perf_counter()
  sums: dict[str, float] = collections.defaultdict(float)
  in_flight = collections.deque()
  batches = setup.pipeline.eval_batches()
  try:
    for batch in batches:
      in_flight.append(eval_step(*state.evaluated, batch))
      if len(in_flight) > IN_FLIGHT:
        add(sums, jax.device_get(in_flight.popleft()))
      if time.perf_counter() - told > 10:
        told, done = time.perf_counter(), sums["count"]
        rate = done / (told - started)
        say(f"evaluated {done:,.0f} of {setup.pipeline.num_eval:,} images, {rate:,.0f} img/s, "
            f"left {readable((setup.pipeline.num_eval - done) / max(rate, 1e-9))}")
  finally:
    batches.close()
  while in_flight:
    add(sums, jax.device_get(in_flight.popleft()))
  count = sums.pop("count")
  if round(count) != setup.pipeline.num_eval:
    raise RuntimeError(f"evaluated {count:.0f} of {setup.pipeline.num_eval} examples")
  return {name: value / count for name, value in sums.items()}


def evaluate_workdir(
    config: ml_collections.ConfigDict, workdir: str, *, say: Callable[[str], None] = print
) -> dict[str, Any]:
  """Evaluates the newest checkpoint of `workdir`.

  Raises:
    FileNotFoundError: if there is none.
  """
  config_lib.check_config(config)
  if not os.path.isdir(os.path.join(workdir, "checkpoints")):
    raise FileNotFoundError(f"{workdir} has no checkpoints; train first, without --mode=eval")
  finished(config, workdir)  # the same config, or an error
  setup = make_setup(config)
  checkpoints = Checkpoints(workdir, config.keep_checkpoints, read_only=True)
  latest = checkpoints.latest_step()
  if latest is None:
    raise FileNotFoundError(f"{workdir}/checkpoints is empty; train first, without --mode=eval")
  init = make_init(setup.task, setup.optimizer, ema=config.ema_decay > 0)
  everywhere = replicated(setup.mesh)
  shapes = jax.eval_shape(init, jax.random.key(0), setup.inherited)
  abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes)
  state, _ = checkpoints.restore(latest, abstract)
  checkpoints.close()
  eval_step = jax.jit(make_eval_step(setup.task), out_shardings=everywhere)
  values = {"step": latest} | evaluate(setup, eval_step, state, say)
  say(f"{workdir}, step {latest}, {setup.pipeline.num_eval} examples: "
      + show({k: v for k, v in values.items() if k != "step"}))
  return values


def add(sums: dict[str, float], metrics: dict[str, Any]) -> None:
  for name, value in metrics.items():
    sums[name] += float(value)
