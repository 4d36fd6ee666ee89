"""The one training loop.

A run is a pure function of its config: step s sees batch s of the data and random numbers folded
from s, so going on from a checkpoint of step s repeats, bit for bit, what an unbroken run does.
"""

import collections
import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from bionets_jax.ops import compiler_options
from bionets_jax.training import bad_records, heartbeat, job, nonfinite, overview
from bionets_jax.training import config as config_lib
from bionets_jax.training.checkpoints import Checkpoints
from bionets_jax.training.clock import Clock, readable
from bionets_jax.training.devices import describe_devices, replicated
from bionets_jax.training.distributed import check_same_everywhere, check_shared
from bionets_jax.training.evaluation import IN_FLIGHT, evaluate
from bionets_jax.training.lock import locked
from bionets_jax.training.profiling import Profiler
from bionets_jax.training.program import abstract_state, compile_ahead, jit_init, out_of_memory
from bionets_jax.training.progress import Averages, Progress, mean_of_runs
from bionets_jax.training.restoring import restore_newest
from bionets_jax.training.setup import Setup, make_setup
from bionets_jax.training.side_by_side import fits, over_runs, stack, unstack
from bionets_jax.training.stalls import StallWatch
from bionets_jax.training.start_up import StartUp
from bionets_jax.training.state import TrainState, keep_best, make_eval_step
from bionets_jax.training.stopping import StopRequest
from bionets_jax.training.summary import (
  about_weights,
  finished,
  make_summary,
  result_line,
  show,
  source_version,
  write_json,
)
from bionets_jax.training.writer import MetricWriter, NoWriter
from bionets_jax.weights.native import WEIGHT_FILE, save_native


class Interrupted(Exception):
  """The run was asked to stop, has saved, and goes on from there when started again."""


class NotTogether(Exception):
  """These runs should not be made side by side; the message says why."""


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run leaves: the final state (None if it had been finished before) and its summary."""

  state: TrainState | None
  summary: dict[str, Any]


@dataclasses.dataclass
class _Run:
  """One run of those that are made side by side, and what the loop keeps of it.

  memory: what a checkpoint holds beside the state: times, the last and the best evaluation, the inputs.
  """

  config: ml_collections.ConfigDict
  workdir: str
  setup: Setup
  checkpoints: Checkpoints
  memory: dict[str, Any]
  averages: Averages
  writer: MetricWriter | NoWriter = dataclasses.field(default_factory=NoWriter)


def train(
    config: ml_collections.ConfigDict, workdir: str, *, say: Callable[[str], None] = print,
    devices: Sequence[jax.Device] | None = None,
) -> Result:
  """Trains, or goes on training, what `config` describes in `workdir`.

  Args:
    config: see `training.config`.
    workdir: of this run alone; made if absent. Afterwards it holds config.json, metrics.jsonl,
      events.*, checkpoints/, weights.safetensors and summary.json; with config.profile also profile/.
    say: where progress goes.
    devices: to run on; default all of them.

  Returns:
    The final state and the summary that summary.json holds.

  Raises:
    ValueError, FileNotFoundError, RuntimeError: before anything is computed, if something about the
      config, the data, the teacher or the workdir is not right.
    FloatingPointError: if loss, running statistics or gradients are not finite; with config.nonfinite='skip' in
      20 steps in a row, or where no evaluation was finite of which the best is wanted. With the step, its examples
      and the first layer at fault. The last good checkpoint stays.
    Interrupted: after SIGTERM or Ctrl-C, when the state is saved.
  """
  return train_together([(config, workdir)], say=say, devices=devices)[0]


def train_together(
    runs: Sequence[tuple[ml_collections.ConfigDict, str]], *, say: Callable[[str], None] = print,
    devices: Sequence[jax.Device] | None = None, must_fit: bool = False,
) -> list[Result]:
  """`train` for several configs that differ in the seed (and the teacher's file) alone, in one program.

  Each workdir becomes what `train` alone would have made of it, up to round-off: mapped over several runs,
  a convolution adds its terms in another order.

  Args:
    runs: (config, workdir) each.
    say, devices: see `train`.
    must_fit: whether to find out, before the first step, that fewer at a time are better: the program does
      not fit into the device's memory, or each run would decode the images for itself.

  Raises:
    As `train`.
    NotTogether: with `must_fit`, where batches are of images of several shapes, and where runs that have come
      further than others would lose more than what lies between two checkpoints.
  """
  start_up = StartUp()
  results: dict[str, Result] = {}
  for config, workdir in runs:
    config_lib.check_config(config)
    check_same_everywhere(config_lib.to_json(config), "the processes of this job were started with different "
                          "configs; give all of them the same --config and the same --config.KEY=VALUE")
    summary = finished(config, workdir)
    check_same_everywhere(summary, f"the processes of this job find different results in {workdir}; it must be "
                          "a folder that all hosts share")
    if summary is not None:
      say(f"{workdir}: done already, {result_line(summary)}")
      results[workdir] = Result(None, summary)
  left = [(config, workdir) for config, workdir in runs if workdir not in results]
  if left:
    first = make_setup(left[0][0], devices)
    setups = [first] + [make_setup(config, devices, like=first) for config, _ in left[1:]]
    start_up.done("setup")
    lead = jax.process_index() == 0
    with contextlib.ExitStack() as closing:
      if lead:
        for config, workdir in left:
          os.makedirs(workdir, exist_ok=True)
          closing.enter_context(locked(workdir))
          write_json(os.path.join(workdir, "config.json"), config_lib.to_json(config))
      for _, workdir in left:
        check_shared(os.path.join(workdir, "config.json"))
      made = [_Run(config, workdir, setup, Checkpoints(workdir, setup.keep, say=say),
                   {"train": 0.0, "total": 0.0, "last": {}, "best": {}, "inputs": setup.inputs()},
                   Averages())
              for (config, workdir), setup in zip(left, setups, strict=True)]
      for run in made:
        closing.callback(run.checkpoints.close)
      for (_, workdir), result in zip(
          left, _train(made, start_up=start_up, closing=closing, lead=lead,
                       say=say if lead else silent, must_fit=must_fit), strict=True):
        results[workdir] = result
  return [results[workdir] for _, workdir in runs]


def _train(
    runs: list[_Run], *, start_up: StartUp, closing: contextlib.ExitStack, lead: bool,
    say: Callable[[str], None], must_fit: bool,
) -> list[Result]:
  """`train_together` behind its checks.

  Args:
    runs, say, must_fit: see there.
    start_up: begun with the call.
    closing: closes what is opened here if something goes wrong before the loop.
    lead: whether this process writes.
  """
  # Set up ------------------------------------------------------------------------------------
  commit = source_version()
  config, setup, count = runs[0].config, runs[0].setup, len(runs)
  task, pipeline = setup.task, setup.pipeline
  if must_fit and count > 1 and not pipeline.resident:
    raise NotTogether("the images are streamed, and each run would decode them for itself")
  if count > 1 and len({batch["image"][0][1:] for batch in pipeline.abstract_batches()}) > 1:
    raise NotTogether("the images end in several shapes, and each run meets these in an order of its own")
  for run in runs:
    say(f"run         {run.workdir}")
  if count > 1:
    say(f"seeds       {', '.join(str(run.config.seed) for run in runs)}, side by side")
  say(f"devices     {describe_devices(setup.mesh)}, {setup.dtype}")
  say("data        " + pipeline.describe().replace("\n", "\n            "))
  if setup.inherited:
    say(f"weights     {overview.inheritance(setup)}")

  # Restore -----------------------------------------------------------------------------------
  abstract = abstract_state(setup)
  say(f"model       {config.model.name}\n" + overview.model_table(
      task.model, abstract.params, pipeline.image_shape))
  step, furthest, found = restore_newest([run.checkpoints for run in runs], abstract, say)
  if furthest > step + setup.checkpoint_every:
    raise NotTogether("the runs have come differently far")
  states = []
  for run, (state, memory) in zip(runs, found, strict=True) if step else ():
    if run.memory["inputs"] | memory["inputs"] != run.memory["inputs"]:  # of older checkpoints less is known
      raise ValueError(f"{run.workdir} was begun with {memory['inputs']}, and now the data and the "
                       f"weights are {run.memory['inputs']}; give the same ones, or another --workdir")
    states.append(state)
    run.averages.restore(memory.pop("averages", {}))
    run.memory |= memory | {"inputs": run.memory["inputs"]}
  for run in runs:
    bad_records.follow(run, step, say, lead=lead)
    if lead:
      nonfinite.forget_after(run.workdir, step)
  if step:
    say(f"resuming from step {step} of {setup.total_steps}")

  # Compile -----------------------------------------------------------------------------------
  everywhere = replicated(setup.mesh)
  def placed(function, **options):
    return jax.jit(function, out_shardings=everywhere, **options)
  put = placed(lambda x: x)
  one_teacher = len({run.config.get("teacher", {}).get("weights", "") for run in runs}) == 1
  frozen = put(task.frozen if one_teacher else stack([run.setup.task.frozen for run in runs]))
  seeds = [put(np.uint32(run.config.seed)) for run in runs]
  # Threads compile the steps while the state is made and the decoding processes start.
  going = step < setup.total_steps
  pending = compile_ahead(config, setup, abstract, frozen, seeds, one_teacher=one_teacher) if going else {}
  batches = [run.setup.pipeline.train_batches(step) for run in runs]
  for b in batches:
    closing.callback(b.close)
  if not step:
    init = jit_init(setup)
    states = [init(jax.random.key(run.config.seed), run.setup.inherited) for run in runs]
  state = placed(stack)(states) if count > 1 else states[0]
  apart = placed(functools.partial(unstack, count=count))
  clock = Clock(*(sum(run.memory[key] for run in runs) for key in ("train", "total")))
  eval_step = placed(over_runs(make_eval_step(task), (0, 0, 0)),
                     compiler_options=compiler_options(deterministic=config.deterministic))
  mark_best = placed(over_runs(keep_best, (0, 0)), donate_argnums=0)
  start_up.done("initialisation")
  early = [[next(b) for b in batches]] if going else []
  start_up.done("first batch")
  if going:
    try:
      compiled = {shape: program.result() for shape, program in pending.items()}
    except jax.errors.JaxRuntimeError as error:
      if must_fit and count > 1 and out_of_memory(error):
        raise NotTogether(f"{count} runs side by side need more memory than the device has") from error
      raise
    largest = compiled[max(compiled, key=math.prod)]
    if must_fit and not fits(largest, setup.mesh.devices.flat[0]):
      raise NotTogether(f"{count} runs side by side need more memory than the device has")
    say(overview.memory(largest))
    say(f"{setup.total_steps - step} steps to go, {pipeline.steps_per_epoch} an epoch")

  if task.frozen and step == 0:
    teachers = [frozen] * count if one_teacher else apart(frozen)
    for run, own, teacher in zip(runs, states, teachers, strict=True):
      say(overview.initial_agreement(run.setup, own, teacher))
    del teachers
  del states, found
  progress = Progress(runs, clock, say)
  start_up.done("compilation")

  # Train -------------------------------------------------------------------------------------
  def each():
    """The runs with their states."""
    return zip(runs, apart(state) if count > 1 else [state], strict=True)

  def save():
    times = {"train": clock.train / count, "total": clock.total / count}  # each its share
    for run, own in each():
      run.writer.sync()
      run.checkpoints.save(
          step, own, run.memory | times | bad_records.remember(run) | {"averages": run.averages.state()})

  def evaluated(variables, batches, total, *asked):
    found = evaluate(eval_step, variables, batches, total, say, *asked, measure=task.measure)
    return [{"step": step} | values for values in found]

  def owed():
    """Whether this step is to have an evaluation and has none, perhaps since the run was stopped within it."""
    due = step == setup.total_steps or (step and step % setup.eval_every == 0)
    return due and runs[0].memory["last"].get("step") != step

  def evaluate_now():
    """Whether it came to its end; not if the run is asked to stop meanwhile."""
    nonlocal state
    clock.pause()
    found = evaluated(
        state.evaluated, [r.setup.pipeline.eval_batches() for r in runs], pipeline.num_eval, stop.asked)
    clock.resume()
    if not found:
      return False
    for run, values in zip(runs, found, strict=True):
      run.memory["last"] = values
      if nonfinite.is_better(values, run.memory["best"]):
        run.memory["best"] = values
    if config.select == "best":
      state = mark_best(state, [np.float32(nonfinite.error_of(values)) for values in found])
    epoch = step / pipeline.steps_per_epoch
    for run, values in zip(runs, found, strict=True):
      run.writer.write(step, epoch, {f"eval/{k}": v for k, v in values.items() if k != "step"})
    say(f"step {step:>6}  epoch {epoch:6.2f}  eval  " + show(mean_of_runs(found))
        + nonfinite.remark(found))
    return True

  in_flight = collections.deque()
  began = step

  def settle(limit: int):
    """Fetches the metrics of all but the newest `limit` steps; logs those that are due."""
    while len(in_flight) > limit:
      number, metrics, batch = in_flight.popleft()
      metrics = jax.device_get(metrics)  # returns when the step is done
      for i, run in enumerate(runs):
        values = {k: np.atleast_1d(v)[i] for k, v in metrics.items()}
        if values["in_a_row"]:  # not finite, and so without effect
          nonfinite.handle(run, list(each())[i][1], batch[i], number, values, lead=lead, say=say)
        run.averages.add(values, skipped=bool(values.pop("in_a_row")))
      clock.stepped(int(np.sum(metrics["count"])))
      if number == began + 1:
        start_up.done("first step")
        say(start_up.describe(setup.compile_cache))
        progress.once |= start_up.metrics
      if number % setup.log_every == 0 or number == setup.total_steps:
        progress.log(number)
      if number == began + 1:  # what came with the start is in no rate
        clock.pause()
        clock.resume()

  for run in runs:
    run.checkpoints.forget_after(step)
    if lead:
      run.writer = MetricWriter(run.workdir, step, say, evaluated=not owed())
  watch = StallWatch()
  profiler = Profiler(setup.profile if lead else None, os.path.join(runs[0].workdir, "profile"))
  if going and (missed := profiler.missed(step)):
    say(missed)
  try:
    with heartbeat.expected(), StopRequest() as stop:
      clock.resume()
      stopping = False
      if owed():
        stopping = not evaluate_now()
        if step == setup.total_steps and not stopping:
          save()  # what was saved of the last step knows nothing of it
      while step < setup.total_steps and not stopping:
        before = time.perf_counter()
        batch = early.pop() if early else [next(b) for b in batches]
        clock.waited(watch.stalled(before, time.perf_counter()))
        if profiler.starts_with(step + 1):
          settle(0)
          clock.pause()  # on a GPU a trace takes seconds to begin
          profiler.start()
          clock.resume()
        program = compiled[batch[0]["image"].shape]
        state, metrics = program(state, frozen, batch, seeds)
        step += 1
        watch.dispatched(metrics["count"])
        in_flight.append((step, metrics, batch))
        settle(0 if profiler.ends_with(step) else IN_FLIGHT)
        if profiler.ends_with(step):
          clock.pause()
          say(profiler.stop(program.as_text() or ""))
          clock.resume()

        heartbeat.beat()
        last = step == setup.total_steps
        stopping = stop.asked()
        saving = last or stopping or step % setup.checkpoint_every == 0
        if owed() or saving or step == began + 1:
          settle(0)  # a state that is saved or evaluated has finite losses behind it; the first step is timed
        if owed() and not stopping:
          stopping = not evaluate_now()
        if saving or stopping:
          clock.pause()
          save()
          clock.resume()
      clock.pause()
      for run in runs:
        run.checkpoints.wait()
  except Exception as error:
    job.announce(error)  # the other processes wait for this one, which may have to wait for its readers
    raise
  finally:
    profiler.close()
    watch.close()
    for b in batches:
      b.close()
    for run in runs:
      run.writer.close()
  if stopping:
    say(f"stopped on request at step {step}, saved; run the same command again to go on")
    raise Interrupted(f"stopped at step {step} of {setup.total_steps}")

  # Finish ------------------------------------------------------------------------------------
  for run in runs:
    nonfinite.check_best(run)
  if pipeline.num_test:
    found = evaluated(state.selected, [r.setup.pipeline.test_batches() for r in runs], pipeline.num_test)
    for run, values in zip(runs, found, strict=True):
      at = run.memory["best"]["step"] if config.select == "best" else step
      run.memory["test"] = values | {"step": at}
  results = []
  for run, own in each():
    summary = make_summary(run.config, run.setup, own, clock, run.memory, commit, side_by_side=count,
                           start_seconds=start_up.seconds)
    if lead:
      params, model_state = jax.device_get(own.selected)
      save_native(os.path.join(run.workdir, WEIGHT_FILE), {"params": params, **model_state},
                  about_weights(run.config, run.setup))
      write_json(os.path.join(run.workdir, "summary.json"), summary)
    say(f"finished in {readable(clock.total)}: {result_line(summary)}")
    results.append(Result(own, summary))
  if stop.pending:  # it came after the last question; in a study another run would follow
    raise Interrupted(f"stopped after the last step, {step}")
  return results


def silent(text: str) -> None:
  """What the processes that are not the first say."""
