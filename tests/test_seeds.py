"""Several seeds: each is the run that it would be alone; their summary; going on with a half-done sweep."""

import json
import os
import signal
import statistics

import jax
import numpy as np
import pytest
from test_training import losses, weight_bytes
from tiny import change, tiny_config, tiny_wld_config

from bionets_jax import experiments
from bionets_jax.training import loop
from bionets_jax.training.checkpoints import Checkpoints
from bionets_jax.training.loop import Interrupted, train
from bionets_jax.training.side_by_side import over_runs, stack, unstack
from bionets_jax.training.summary import sweep_summary


def quiet(text):
  pass


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """Seeds 0 and 3 as single runs: seed -> workdir."""
  folder = tmp_path_factory.mktemp("alone")
  for seed in (0, 3):
    train(tiny_config(seed=seed), f"{folder}/{seed}", say=quiet)
  return {seed: f"{folder}/{seed}" for seed in (0, 3)}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
  """The same two seeds by one command, stopped within the first and within the second: (workdir, summary)."""
  workdir = str(tmp_path_factory.mktemp("sweep") / "sweep")
  config = tiny_config(seeds=(0, 3))
  for folder, step in (("seed_0", "step      7"), ("seed_3", "step     16")):
    now = [""]
    def say(text, folder=folder, step=step, now=now):
      if text.startswith("run "):
        now[0] = text
      if text.startswith(step) and folder in now[0]:
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
      experiments.run(config, workdir, say=say)
  return workdir, experiments.run(config, workdir, say=quiet)


def test_one_after_another_each_run_is_bit_identical_to_the_single_one(alone, swept):
  workdir, _ = swept
  for seed, single in alone.items():
    assert weight_bytes(f"{workdir}/seed_{seed}") == weight_bytes(single)
    assert losses(f"{workdir}/seed_{seed}") == losses(single)
  assert losses(alone[0]) != losses(alone[3])


def test_the_summary_has_mean_deviation_and_count(alone, swept):
  workdir, summary = swept
  with open(f"{workdir}/summary.json", encoding="utf-8") as file:
    assert json.load(file) == summary
  singles = [json.load(open(f"{path}/summary.json", encoding="utf-8")) for path in alone.values()]
  for part in ("last", "best"):
    errors = [s[part]["top1_error"] for s in singles]
    assert summary[part]["top1_error"] == {
        "mean": statistics.fmean(errors), "std": statistics.stdev(errors), "n": 2}
  assert set(summary["seeds"]) == {"0", "3"} and summary["seeds"]["3"]["seed"] == 3
  assert summary["parameters"] == singles[0]["parameters"]


def test_a_sweep_grows_by_a_seed_without_making_the_others_again(swept):
  workdir, before = swept
  said = []
  after = experiments.run(tiny_config(seeds=(0, 3, 5), duration="24 steps"), workdir, say=said.append)
  assert sum("done already" in text for text in said) == 2
  assert after["last"]["top1_error"]["n"] == 3 and after["seeds"]["0"] == before["seeds"]["0"]


def test_side_by_side_differs_by_round_off(alone, tmp_path):
  """Also with two batch sizes in an epoch, and after an interruption."""
  config = tiny_config(seeds=(0, 3), side_by_side=2)
  said = []
  def say(text):
    said.append(text)
    if text.startswith("step      9"):
      os.kill(os.getpid(), signal.SIGTERM)
  with pytest.raises(Interrupted):
    experiments.run(config, str(tmp_path), say=say)
  assert any("0, 3, side by side" in text for text in said)
  summary = experiments.run(config, str(tmp_path), say=quiet)
  for seed, single in alone.items():
    ours = losses(f"{tmp_path}/seed_{seed}")
    np.testing.assert_allclose(ours[:4], losses(single)[:4], rtol=2e-4)  # what follows multiplies round-off
    np.testing.assert_allclose(ours, losses(single), rtol=0.1)
    assert summary["seeds"][str(seed)]["side_by_side"] == 2
    # An ordinary workdir: the single run of that seed goes on with it, and finds it done.
    assert train(tiny_config(seed=seed), f"{tmp_path}/seed_{seed}", say=quiet).state is None


def test_each_seed_s_student_has_that_seed_s_teacher(tmp_path):
  base = tiny_config(duration="2 steps", seeds=(0, 3))
  student = change(tiny_wld_config("run:base"), dict(duration="2 steps", seeds=(0, 3), side_by_side=2))
  study = type(base)(dict(title="two", runs=dict(base=base, student=student)))
  said = []
  experiments.run(study, str(tmp_path), say=said.append)
  for seed in (0, 3):
    assert any(f"base/seed_{seed}" in text and text.startswith("student and teacher differ") or
               "differ by at most" in text for text in said)
    with open(f"{tmp_path}/student/seed_{seed}/config.json", encoding="utf-8") as file:
      assert json.load(file)["teacher"]["weights"] == f"{tmp_path}/base/seed_{seed}"
  gaps = [float(text.split("at most ")[1].split()[0]) for text in said if "differ by at most" in text]
  assert len(gaps) == 2 and max(gaps) < 1e-3
  student.seeds = (0, 4)
  study.runs.student = student
  with pytest.raises(ValueError, match="no run of seed 4; it has those of 0, 3"):
    experiments.run(study, str(tmp_path / "other"), say=quiet)


@pytest.mark.parametrize("changes,message", [
    (dict(seeds=(0, 0)), "twice"), (dict(seeds=(-1,)), "whole numbers"), (dict(seeds=(0.5,)), "whole numbers"),
    (dict(seeds=(0, 1), seed=2), "give one of them"), (dict(side_by_side=-1), "side_by_side"),
    (dict(select="bets"), "'last' or 'best'"), (dict(crop_average="mean"), "'softmax' or 'logits'"),
    (dict(mixup=-1.0), "config.mixup"), (dict(dtype="float61"), "float16")])
def test_bad_values_are_named(changes, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    experiments.run(tiny_config(**changes), str(tmp_path), say=quiet)


def test_over_runs_is_the_function_of_each():
  trees = [{"a": np.full(3, i)} for i in range(3)]
  add = over_runs(lambda a, b, c: {"sum": a["a"] * b + c}, (0, None, 0))
  out = jax.jit(add)(stack(trees), 2, [10, 20, 30])
  for i, one in enumerate(unstack(out, 3)):
    np.testing.assert_array_equal(one["sum"], trees[i]["a"] * 2 + 10 * (i + 1))
  np.testing.assert_array_equal(add(stack(trees[:1]), 2, [10])["sum"], [10, 10, 10])


def test_one_run_and_several_do_not_take_each_other_s_workdir(alone, swept, tmp_path):
  with pytest.raises(ValueError, match="holds a single run"):
    experiments.run(tiny_config(seeds=(0, 3)), alone[0], say=quiet)
  with pytest.raises(ValueError, match="holds several runs"):
    experiments.run(tiny_config(), swept[0], say=quiet)
  (tmp_path / "net").symlink_to(alone[0])
  study = type(tiny_config())(dict(title="one", runs=dict(net=tiny_config(seeds=(0, 3)))))
  with pytest.raises(ValueError, match="net holds a single run"):
    experiments.run(study, str(tmp_path), say=quiet)


def test_a_workdir_of_another_run_is_an_error_before_the_first_run_starts(alone, tmp_path):
  (tmp_path / "second").symlink_to(alone[0])
  runs = dict(first=tiny_config(), second=tiny_config(batch_size=16))
  with pytest.raises(ValueError, match="second holds another run(.|\n)*batch_size: 32 -> 16"):
    experiments.run(type(runs["first"])(dict(title="two", runs=runs)), str(tmp_path), say=quiet)
  assert not (tmp_path / "first").exists()


def test_a_loss_that_is_not_finite_leaves_a_sweep_its_summary():
  summary = dict.fromkeys(("model", "task", "data", "parameters", "macs", "epochs", "paper"))
  summary |= dict(train_seconds=1.0, total_seconds=1.0)
  of = {seed: summary | dict(last=dict(step=1, loss=loss, top1_error=90.0)) for seed, loss in
        enumerate((1.0, float("inf")))}
  last = sweep_summary(of)["last"]
  assert last["loss"] == {"mean": float("inf"), "std": None, "n": 2} and last["top1_error"]["std"] == 0


def test_every_process_forgets_what_was_saved_of_later_steps(tmp_path, monkeypatch):
  """Only the first one removes anything, which is for `Checkpoints` to know and not for the loop."""
  forgotten = []
  monkeypatch.setattr(Checkpoints, "forget_after", lambda self, step: forgotten.append(step))
  train_as = loop._train
  monkeypatch.setattr(loop, "_train", lambda runs, **options: train_as(runs, **options | {"lead": False}))
  train(tiny_config(duration="0 steps"), str(tmp_path), say=quiet)
  assert forgotten == [0] and not os.path.exists(f"{tmp_path}/metrics.jsonl")
