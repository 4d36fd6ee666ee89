"""A step whose loss or gradients are not finite: what it changes, what is said of it, whether the run goes on."""

import contextlib
import json
import os
import re
import shutil
import types
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_train_step import step_of
from tiny import tiny_config

from bionets_jax.data.digits import DigitsSource
from bionets_jax.data.order import BatchPlan
from bionets_jax.training import nonfinite
from bionets_jax.training.checkpoints import Checkpoints, abstract_like
from bionets_jax.training.first_fault import find_first_fault
from bionets_jax.training.keeping import Keep
from bionets_jax.training.loop import train
from bionets_jax.training.setup import make_setup
from bionets_jax.training.state import GIVEN_UP
from bionets_jax.training.tasks import Classification
from bionets_jax.training.writer import read_metrics

LAYER = ("stage2_block0", "conv")
STEP = 7  # of the run below; the example is met there alone, as an epoch has 45
SOURCE = DigitsSource("train")
INDEX = int(BatchPlan(len(SOURCE), 32, 0, True).indices(STEP - 1)[1][5])


def small(**changes):
  """Two convolutions and a dense layer on unchanged digits."""
  config = tiny_config(**{"model__name": "vgg16", "data__train_transform": "", "duration": "12 steps",
                          "checkpoint_every": "4 steps", "eval_every": "12 steps"} | changes)
  config.model.options.stage_sizes = (1, 1)
  config.model.options.width = 4
  return config


@contextlib.contextmanager
def broken(change):
  """In training LAYER's output becomes change(output, mask of the rows that hold the example)."""
  image = (np.asarray(SOURCE.read(INDEX)[0], np.float32) / 255 - 0.3) / 0.4
  seen = []

  def note(call, args, kwargs, context):  # as if the layer itself did it
    if context.method_name != "__call__":
      return call(*args, **kwargs)
    if not context.module.path:
      seen.append(jnp.abs(args[0] - image).max((1, 2, 3)) < 1e-5)
    result = call(*args, **kwargs)
    return change(result, seen[-1][:, None, None, None]) if context.module.path == LAYER else result

  def train_losses(*args):
    with nn.intercept_methods(note):
      return real(*args)

  real = Classification.train_losses
  with mock.patch.object(Classification, "train_losses", train_losses):
    yield


def nan_rows(x, rows):
  return jnp.where(rows, jnp.nan, x)


@pytest.fixture(scope="module")
def begun():
  """(setup, state, step) with averages, which gives up after three steps; its images are float."""
  setup, state, _, step = step_of(small(ema_decay=0.5), ema_decay=0.5, give_up=3)
  return setup, state, step


def batch_of(setup, number):
  """That of the step of this number, from 1 on."""
  batches = setup.pipeline.train_batches(number - 1)
  batch = next(batches)
  batches.close()
  return batch | {"image": batch["image"].astype(jnp.float32)}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
  """(workdir, message) of a run on two devices."""
  folder = tmp_path_factory.mktemp("stopped")
  with broken(nan_rows), pytest.raises(FloatingPointError) as error:
    train(small(), str(folder), say=lambda text: None, devices=jax.devices()[:2])
  return folder, str(error.value)


def test_the_run_stops_with_step_examples_layer_and_checkpoint(stopped):
  folder, text = stopped
  key = SOURCE.read(INDEX)[2]
  # XLA's maximum on CPUs takes 0 over NaN, so that behind a ReLU the loss may be finite again; not the gradient.
  assert re.search(rf"the loss is \S+ at step {STEP} \(gradient norm nan\)", text)
  assert "the last good one is of step 4" in text
  assert "the first output that is not finite is that of stage2_block0/conv (Conv), in 1 of 32 examples" in text
  assert "its input was finite; all variables were finite before the step" in text
  assert f"its examples:   {key}\n" in text
  assert "config.nonfinite='skip' leaves such a step out" in text
  with open(folder / nonfinite.FILE, encoding="utf-8") as file:
    line = json.loads(file.readline())
  assert line["step"] == STEP and line["examples_at_fault"] == [key] and key in line["examples"]
  assert len(set(line["examples"])) == 32 and not line["skipped"]
  assert os.listdir(folder / "checkpoints") == ["4"]


def test_the_step_is_left_out_and_counted(stopped, begun, tmp_path):
  """The stopped run goes on with 'skip'; in the end it is the run that never had the batch."""
  shutil.copytree(stopped[0], tmp_path, dirs_exist_ok=True)
  said = []
  with broken(nan_rows):
    result = train(small(nonfinite="skip"), str(tmp_path), say=said.append, devices=jax.devices()[:1])
  assert "resuming from step 4 of 12" in said and result.summary["skipped_steps"] == 1
  (line,) = (text for text in said if "skipped, with the examples" in text)
  assert f"at step {STEP} " in line and "(32)" in line
  lines = {x["step"]: x for x in read_metrics(f"{tmp_path}/metrics.jsonl") if "train/loss" in x}
  assert {step: x.get("train/skipped") for step, x in lines.items() if step > 4} == {
      step: float(step == STEP) for step in range(5, 13)}
  assert lines[STEP]["train/loss"] is None and all(lines[s]["train/loss"] for s in lines if s != STEP)

  setup, state, step = begun
  for number in range(1, 13):
    batch = batch_of(setup, number)
    state = step(state, {}, batch)[0] if number != STEP else state.replace(step=state.step + 1)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), result.state.params, state.params)


def test_steps_that_are_made_again_are_in_the_file_once(tmp_path):
  lines = [{"step": 3, "skipped": True}, {"step": 7, "skipped": True}, {"step": 9, "skipped": False}]
  path = tmp_path / nonfinite.FILE
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  nonfinite.forget_after(str(tmp_path), 5)
  assert [json.loads(line) for line in path.read_text().splitlines()] == [lines[0], lines[2]]


def test_a_bad_step_changes_nothing_but_the_counters(begun):
  setup, start, step = begun
  good = batch_of(setup, 1)
  images = good["image"]
  bad = good | {"image": images.at[3].set(jnp.inf)}
  state, expected = start, [(good, 0), (bad, 1), (bad, 2), (good, 0), (bad, 1), (bad, 2), (bad, GIVEN_UP),
                            (good, GIVEN_UP)]
  # So large that the variance overflows: 1 / inf is 0, and neither loss nor gradients show it.
  huge = good | {"image": images * 1e19}
  metrics = step(start, {}, huge)[1]
  assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]) and metrics["in_a_row"] == 1
  for number, (given, in_a_row) in enumerate(expected, start=1):
    before = state
    state, metrics = step(state, {}, given)
    assert state.step == number and metrics["in_a_row"] == state.nonfinite["in_a_row"] == in_a_row
    assert metrics["skipped"] == (32 if in_a_row else 0)
    if in_a_row:
      counters = dict(step=before.step, nonfinite=before.nonfinite)
      jax.tree.map(np.testing.assert_array_equal, state.replace(**counters), before)
    else:
      assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), state.params, before.params)))
  assert state.nonfinite["skipped"] == 6


def fault(state, change, **changes):
  config = small(**changes)
  setup = make_setup(config, jax.devices()[:1])
  with broken(change):
    return find_first_fault(
        setup.task, state, {}, batch_of(setup, STEP), step=STEP - 1, seed=0, accumulate=config.accumulate,
        mesh=setup.mesh)


def test_a_gradient_alone(begun):
  """sqrt at 0: its value is finite, its derivative is not."""
  found = fault(begun[1], lambda x, rows: x + jnp.sqrt(jnp.abs(0 * x)))
  assert found.layer == "stage2_block0/conv" and not found.rows
  assert "all outputs are finite" in found.text and "that of stage2_block0/conv/" in found.text


def test_in_parts_and_rematerialised(begun):
  found = fault(begun[1], nan_rows, accumulate=2, remat="blocks")
  assert found.layer == "/".join(LAYER) and found.rows == (5,) and found.part == 1  # row 5 is in the odd part
  assert "in 1 of 16 examples of part 2 of 2" in found.text


def test_what_was_wrong_before_and_what_is_not_wrong_again(begun):
  state = begun[1]
  params = jax.tree.map(lambda x: x, state.params)
  params["head"]["bias"] = params["head"]["bias"].at[2].set(jnp.inf)
  found = fault(state.replace(params=params), nan_rows)
  assert found.layer == "head" and "params/head/bias was not finite before the step" in found.text
  assert "the step is finite" in fault(state, lambda x, rows: x).text


def test_a_checkpoint_from_before_the_counters_restores(begun, tmp_path):
  state = begun[1].replace(step=jnp.int32(4))
  fields = {name: value for name, value in vars(state).items() if name != "nonfinite"}
  memory = {"train": 1.0, "total": 2.0, "last": {}, "best": {}, "inputs": {}}
  with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:  # as they were written then
    manager.save(4, args=ocp.args.Composite(
        state=ocp.args.StandardSave(fields), clock=ocp.args.JsonSave(memory)))
  found, clock = Checkpoints(str(tmp_path), Keep(2, 0, 0), read_only=True).restore(4, abstract_like(state))
  assert clock == memory and jax.tree.structure(found) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, found, state)


def test_an_evaluation_that_is_not_finite_is_never_the_best():
  fine, lower = {"step": 1, "loss": 1.0, "top1_error": 50.0}, {"step": 2, "loss": 1.0, "top1_error": 40.0}
  lost = {"step": 3, "loss": float("nan"), "top1_error": 0.0}
  assert nonfinite.is_better(fine, {}) and nonfinite.is_better(lower, fine) and not nonfinite.is_better(fine, fine)
  assert not nonfinite.is_better(lost, fine) and nonfinite.is_better(fine, lost)
  assert "not finite" in nonfinite.remark([fine, lost]) and nonfinite.remark([fine]) == ""
  run = types.SimpleNamespace(config=small(select="best"), workdir="w", memory={"best": fine})
  nonfinite.check_best(run)
  run.memory["best"] = lost
  with pytest.raises(FloatingPointError, match="no evaluation was finite .*loss nan.*select='last'"):
    nonfinite.check_best(run)
