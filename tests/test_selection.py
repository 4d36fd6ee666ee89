"""The weights that a run is about: of the best evaluation, looked at once on the test split. And float16."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train_step import step_of
from tiny import tiny_config

from bionets_jax.training.evaluation import evaluate_workdir
from bionets_jax.training.loop import Interrupted, train
from bionets_jax.training.state import GOOD_STEPS, keep_best
from bionets_jax.training.tasks import average_crops
from bionets_jax.training.writer import read_metrics
from bionets_jax.weights.native import load_native


def quiet(text):
  pass


# A rate that throws the network about, so that the last evaluation is not the best.
WILD = dict(select="best", data__test_split="test", schedule__lr=0.8, eval_every="3 steps", eval_batch_size=120)


@pytest.fixture(scope="module")
def best(tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp("best") / "run")
  return workdir, train(tiny_config(**WILD), workdir, say=quiet)


def test_the_test_split_is_seen_with_the_best_weights(best):
  workdir, result = best
  lines = [line for line in read_metrics(f"{workdir}/metrics.jsonl") if "eval/top1_error" in line]
  errors = {line["step"]: line["eval/top1_error"] for line in lines}
  at = min(errors, key=errors.get)  # the first on ties
  assert at != 24, "the test needs a run that ends worse than it was"
  summary = result.summary
  assert summary["best"]["step"] == summary["test"]["step"] == at and summary["last"]["step"] == 24
  # Here both splits are the same, and so must the numbers be.
  assert summary["test"]["top1_error"] == errors[at] and summary["test"]["loss"] == pytest.approx(
      summary["best"]["loss"])
  stored = load_native(f"{workdir}/weights.safetensors")[0]["params"]
  jax.tree.map(np.testing.assert_array_equal, stored, jax.device_get(result.state.best["params"]))
  found = evaluate_workdir(tiny_config(**WILD), workdir, say=quiet)
  assert found["test"]["top1_error"] == errors[at] and found["top1_error"] == errors[24]


def test_interrupted_behind_the_best_evaluation_it_is_kept(best, tmp_path):
  whole, result = best
  step = result.summary["best"]["step"] + 1
  def say(text):
    if text.startswith(f"step {step:>6}"):
      os.kill(os.getpid(), signal.SIGTERM)
  with pytest.raises(Interrupted):
    train(tiny_config(**WILD), str(tmp_path), say=say)
  train(tiny_config(**WILD), str(tmp_path), say=quiet)
  one, two = (open(f"{folder}/weights.safetensors", "rb").read() for folder in (whole, tmp_path))
  assert one == two
  summaries = [json.load(open(f"{folder}/summary.json", encoding="utf-8")) for folder in (whole, tmp_path)]
  assert summaries[0]["test"] == summaries[1]["test"]


def test_the_first_of_equal_evaluations_is_the_best():
  _, state, _, _ = step_of(tiny_config())
  state = state.replace(best={"params": state.params, "model_state": state.model_state,
                              "error": jnp.float32(5.0)})
  other = state.replace(params=jax.tree.map(lambda x: x + 1, state.params))
  same = keep_best(other, 5.0)
  jax.tree.map(np.testing.assert_array_equal, same.best["params"], state.params)
  lower = keep_best(other, 4.9)
  jax.tree.map(np.testing.assert_array_equal, lower.best["params"], other.params)
  assert lower.best["error"] == np.float32(4.9)


def test_a_step_that_overflows_changes_the_scale_alone():
  scale = lambda s, good=0: {"scale": jnp.float32(s), "good_steps": jnp.int32(good)}  # noqa: E731
  _, state, batch, step = step_of(tiny_config(dtype="float16", optimizer__momentum=0.0))
  plain = step(state, {}, batch)[0]
  scaled, metrics = step(state.replace(loss_scale=scale(2.0**10)), {}, batch)
  assert metrics["skipped"] == 0 and scaled.loss_scale["good_steps"] == 1
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), scaled.params, plain.params)
  # 2^127 times any gradient is beyond float16.
  over, metrics = step(state.replace(loss_scale=scale(2.0**127)), {}, batch)
  assert metrics["skipped"] == 32 and metrics["grad_norm"] == 0 and np.isfinite(metrics["loss"])
  assert over.loss_scale == scale(2.0**126) and over.step == 1
  jax.tree.map(np.testing.assert_array_equal, over.params, state.params)
  jax.tree.map(np.testing.assert_array_equal, over.model_state, state.model_state)
  nan = jax.tree.map(lambda x: x * jnp.nan, state.params)
  lost, metrics = step(state.replace(params=nan, loss_scale=scale(1.0)), {}, batch)
  assert lost.loss_scale["scale"] == 1 and not np.isfinite(metrics["grad_norm"])  # the loop stops at this
  grown, _ = step(state.replace(loss_scale=scale(2.0**10, GOOD_STEPS - 1)), {}, batch)
  assert grown.loss_scale == scale(2.0**11)


def test_crops_are_averaged_as_their_definitions_say():
  logits = np.random.default_rng(0).standard_normal((4, 10, 7)) * 3
  exponentials = np.exp(logits)
  softmax = (exponentials / exponentials.sum(-1, keepdims=True)).mean(1)
  np.testing.assert_allclose(jnp.exp(average_crops(jnp.asarray(logits), "softmax")), softmax, rtol=1e-5)
  np.testing.assert_allclose(average_crops(jnp.asarray(logits), "logits"), logits.mean(1), rtol=1e-5, atol=1e-6)
  same = np.repeat(logits[:, :1], 10, 1)
  np.testing.assert_allclose(jax.nn.softmax(average_crops(jnp.asarray(same), "softmax")),
                             exponentials[:, 0] / exponentials[:, 0].sum(-1, keepdims=True), rtol=1e-5)


def test_a_damaged_summary_is_named(best):
  workdir, result = best
  path = f"{workdir}/summary.json"
  content = open(path, encoding="utf-8").read()
  try:
    open(path, "w", encoding="utf-8").close()
    with pytest.raises(ValueError, match=r"run/summary.json is damaged"):
      train(tiny_config(**WILD), workdir, say=quiet)
    os.remove(path)
    assert train(tiny_config(**WILD), workdir, say=quiet).summary["test"] == result.summary["test"]
  finally:
    with open(path, "w", encoding="utf-8") as file:
      file.write(content)
