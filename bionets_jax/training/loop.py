"""The one training loop.

A run is a pure function of its config: step s sees batch s of the data and random numbers folded
from s, so going on from a checkpoint of step s repeats, bit for bit, what an unbroken run does.
"""

import collections
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bionets_jax.training import config as config_lib
from bionets_jax.training import overview
from bionets_jax.training.checkpoints import Checkpoints, abstract_like
from bionets_jax.training.clock import Clock, readable
from bionets_jax.training.devices import (
  StopRequest,
  check_same_everywhere,
  describe_devices,
  replicated,
)
from bionets_jax.training.evaluation import IN_FLIGHT, add, evaluate
from bionets_jax.training.lock import locked
from bionets_jax.training.setup import Setup, make_setup
from bionets_jax.training.state import TrainState, make_eval_step, make_init, make_train_step
from bionets_jax.training.summary import (
  about_weights,
  finished,
  make_summary,
  result_line,
  show,
  write_json,
)
from bionets_jax.training.teacher import WEIGHT_FILE
from bionets_jax.training.writer import MetricWriter, NoWriter
from bionets_jax.weights.native import save_native


class Interrupted(Exception):
  """The run was asked to stop, has saved, and goes on from there when started again."""


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run leaves: the final state (None if it had been finished before) and its summary."""

  state: TrainState | None
  summary: dict[str, Any]


def train(
    config: ml_collections.ConfigDict, workdir: str, *, say: Callable[[str], None] = print,
    devices: Sequence[jax.Device] | None = None,
) -> Result:
  """Trains, or goes on training, what `config` describes in `workdir`.

  Args:
    config: see `training.config`.
    workdir: of this run alone; made if absent. Afterwards it holds config.json, metrics.jsonl,
      events.*, checkpoints/, weights.safetensors and summary.json.
    say: where progress goes.
    devices: to run on; default all of them.

  Returns:
    The final state and the summary that summary.json holds.

  Raises:
    ValueError, FileNotFoundError, RuntimeError: before anything is computed, if something about the
      config, the data, the teacher or the workdir is not right.
    FloatingPointError: if the loss is not finite. The last good checkpoint stays.
    Interrupted: after SIGTERM or Ctrl-C, when the state is saved.
  """
  config_lib.check_config(config)
  check_same_everywhere(config_lib.to_json(config))
  summary = finished(config, workdir)
  if summary is not None:
    say(f"{workdir}: done already, {result_line(summary)}")
    return Result(None, summary)

  setup = make_setup(config, devices)
  if jax.process_index() > 0:
    return _train(config, setup, workdir, lead=False, say=silent)
  os.makedirs(workdir, exist_ok=True)
  with locked(workdir):
    write_json(os.path.join(workdir, "config.json"), config_lib.to_json(config))
    return _train(config, setup, workdir, lead=True, say=say)


def _train(
    config: ml_collections.ConfigDict, setup: Setup, workdir: str, *, lead: bool,
    say: Callable[[str], None],
) -> Result:
  """`train` behind its checks. `lead`: whether this process writes."""
  # Set up ------------------------------------------------------------------------------------
  started = time.perf_counter()
  task, pipeline = setup.task, setup.pipeline
  say(f"run         {workdir}\ndevices     {describe_devices(setup.mesh)}, {setup.dtype}")
  say("data        " + pipeline.describe().replace("\n", "\n            "))
  if setup.inherited:
    say(f"student     {overview.inheritance(setup)}")

  everywhere = replicated(setup.mesh)
  init = make_init(task, setup.optimizer, ema=config.ema_decay > 0)
  state = jax.jit(init, out_shardings=everywhere)(jax.random.key(config.seed), setup.inherited)
  frozen = jax.jit(lambda x: x, out_shardings=everywhere)(task.frozen)
  say(f"model       {config.model.name}\n" + overview.model_table(
      task.model, state.params, pipeline.image_shape))

  # Restore -----------------------------------------------------------------------------------
  checkpoints = Checkpoints(workdir, config.keep_checkpoints)
  inputs = setup.inputs()
  step, memory = 0, {"train": 0.0, "total": 0.0, "last": {}, "best": {}, "inputs": inputs}
  if (latest := checkpoints.latest_step()) is not None:
    state, memory = checkpoints.restore(latest, abstract_like(state))
    step = latest
    if memory["inputs"] != inputs:
      raise ValueError(f"{workdir} was begun with {memory['inputs']}, and now the data and the teacher "
                       f"are {inputs}; give the same ones, or another --workdir")
    say(f"resuming from step {step} of {setup.total_steps}")
  clock = Clock(memory["train"], memory["total"])
  writer = MetricWriter(workdir, step) if lead else NoWriter()

  # Compile -----------------------------------------------------------------------------------
  train_step = jax.jit(
      make_train_step(
          task, setup.optimizer, seed=config.seed, accumulate=config.accumulate,
          ema_decay=config.ema_decay, unroll=setup.mesh.devices.flat[0].platform == "cpu"),
      donate_argnums=0, out_shardings=(everywhere, everywhere))
  eval_step = jax.jit(make_eval_step(task), out_shardings=everywhere)
  compiled = {}
  if step < setup.total_steps:
    for size in pipeline.batch_sizes():
      batch = _abstract_batch(setup, size)
      compiled[size] = train_step.lower(abstract_like(state), abstract_like(frozen), batch).compile()
    say(overview.memory(compiled[pipeline.batch_sizes()[0]]))
    say(f"ready after {time.perf_counter() - started:.1f} s; "
        f"{setup.total_steps - step} steps to go, {pipeline.steps_per_epoch} an epoch")

  if setup.inherited and step == 0:
    say(overview.initial_agreement(setup, state, frozen))

  # Train -------------------------------------------------------------------------------------
  def save():
    checkpoints.save(step, state, memory | {"train": clock.train, "total": clock.total})

  def evaluate_now():
    clock.pause()
    values = evaluate(setup, eval_step, state, say)
    memory["last"] = {"step": step} | values
    best = memory["best"]
    if not best or values["top1_error"] < best["top1_error"]:
      memory["best"] = memory["last"]
    epoch = step / pipeline.steps_per_epoch
    writer.write(step, epoch, {f"eval/{k}": v for k, v in values.items()})
    say(f"step {step:>6}  epoch {epoch:6.2f}  eval  " + show(values))
    clock.resume()

  averages = _Averages()
  in_flight = collections.deque()

  def settle(limit: int):
    """Fetches the metrics of all but the newest `limit` steps; logs those that are due."""
    while len(in_flight) > limit:
      number, metrics = in_flight.popleft()
      metrics = jax.device_get(metrics)  # returns when the step is done
      averages.add(number, metrics, config, checkpoints.latest_step())
      clock.stepped(int(metrics["count"]))
      if number % setup.log_every == 0 or number == setup.total_steps:
        _log(writer, say, setup, clock, number, averages.take())

  batches = pipeline.train_batches(step)
  try:
    with StopRequest() as stop:
      clock.resume()
      while step < setup.total_steps:
        before = time.perf_counter()
        batch = next(batches)
        clock.waited(time.perf_counter() - before)
        size = batch["label"].shape[0]
        state, metrics = compiled[size](state, frozen, batch)
        step += 1
        in_flight.append((step, metrics))
        settle(IN_FLIGHT)

        last = step == setup.total_steps
        evaluating = last or step % setup.eval_every == 0
        stopping = stop.asked(step)
        saving = last or stopping or step % setup.checkpoint_every == 0
        if evaluating or saving:
          settle(0)  # a state that is saved or evaluated has finite losses behind it
        if evaluating:
          evaluate_now()
        if saving:
          clock.pause()
          save()
          clock.resume()
        if stopping and not last:
          checkpoints.wait()
          say(f"stopped on request at step {step}, saved; run the same command again to go on")
          raise Interrupted(f"stopped at step {step} of {setup.total_steps}")
      checkpoints.wait()
  finally:
    batches.close()
    writer.close()
    checkpoints.close()

  # Finish ------------------------------------------------------------------------------------
  if not memory["last"]:  # a run of no steps at all
    memory["last"] = memory["best"] = {"step": step} | evaluate(setup, eval_step, state, say)
  summary = make_summary(config, setup, state, clock, memory)
  if lead:
    params, model_state = jax.device_get(state.evaluated)
    save_native(os.path.join(workdir, WEIGHT_FILE), {"params": params, **model_state},
                about_weights(config, setup))
    write_json(os.path.join(workdir, "summary.json"), summary)
  say(f"finished in {readable(clock.total)}: {result_line(summary)}")
  if stop.pending:  # it came after the last question; in a study another run would follow
    raise Interrupted(f"stopped after the last step, {step}")
  return Result(state, summary)


class _Averages:
  """Means over the steps since the last log line."""

  def __init__(self):
    self._sums: dict[str, float] = collections.defaultdict(float)

  def take(self) -> dict[str, float]:
    sums = self._sums
    count = sums.pop("count")
    self._sums = collections.defaultdict(float)
    return {name: value / count for name, value in sums.items()}

  def add(self, step: int, metrics: dict[str, Any], config: Any, checkpoint: int | None) -> None:
    if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])):
      kept = "none was saved yet" if checkpoint is None else f"the last good one is of step {checkpoint}"
      raise FloatingPointError(
          f"the loss is {metrics['loss'] / metrics['count']} at step {step} (gradient norm "
          f"{metrics['grad_norm'] / metrics['count']:.3g}); no checkpoint was written of it, {kept}. "
          f"A smaller config.schedule.lr (now {config.schedule.lr}) or a config.schedule.warmup "
          "often helps; a run of another config needs another --workdir")
    add(self._sums, metrics)


def _log(writer, say, setup: Setup, clock: Clock, step: int, values: dict[str, float]) -> None:
  rates = clock.rates()
  left = rates["seconds_per_step"] * (setup.total_steps - step)
  epoch = step / setup.pipeline.steps_per_epoch
  rate = float(setup.schedule(step - 1))
  writer.write(step, epoch, {f"train/{k}": v for k, v in values.items()} | {
      "train/learning_rate": rate, "time/images_per_second": rates["images_per_second"],
      "time/data_wait": rates["data_wait"], "time/train_seconds": clock.train})
  shown = {k: values[k] for k in ("loss", "top1_error", "distillation", "alpha") if k in values}
  say(f"step {step:>6}  epoch {epoch:6.2f}  train {show(shown)}  lr {rate:.3g}  "
      f"{_rate(rates['images_per_second'])} img/s  data wait {100 * rates['data_wait']:.0f} %  "
      f"left {readable(left)}")


def _rate(number: float) -> str:
  return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _abstract_batch(setup: Setup, size: int) -> dict[str, jax.ShapeDtypeStruct]:
  split = NamedSharding(setup.mesh, PartitionSpec("data"))
  return {
      "image": jax.ShapeDtypeStruct((size, *setup.pipeline.image_shape), np.uint8, sharding=split),
      "label": jax.ShapeDtypeStruct((size,), np.int32, sharding=split)}


def silent(text: str) -> None:
  """What the processes that are not the first say."""
