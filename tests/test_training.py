"""The trainer: exact resumption, devices, accumulation, WLD, and what it says to mistakes."""

import json
import os
import re
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict
from tiny import change, tiny_config, tiny_wld_config

from bionets_jax import experiments
from bionets_jax.training import config as config_lib
from bionets_jax.training import loop
from bionets_jax.training.clock import Clock, readable
from bionets_jax.training.evaluation import evaluate_workdir
from bionets_jax.training.lock import locked
from bionets_jax.training.loop import Interrupted, train
from bionets_jax.training.setup import make_setup
from bionets_jax.training.stopping import StopRequest
from bionets_jax.training.summary import finished
from bionets_jax.training.writer import read_metrics
from bionets_jax.weights.native import load_native


def quiet(text):
  pass


def losses(workdir):
  return [line["train/loss"] for line in read_metrics(f"{workdir}/metrics.jsonl") if "train/loss" in line]


def weight_bytes(workdir):
  with open(f"{workdir}/weights.safetensors", "rb") as file:
    return file.read()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """The same run on 1, 2 and 4 devices: number -> (workdir, what it said, result)."""
  folder = tmp_path_factory.mktemp("runs")
  out = {}
  for n in (1, 2, 4):
    said = []
    result = train(tiny_config(), f"{folder}/{n}", say=said.append, devices=jax.devices()[:n])
    out[n] = (f"{folder}/{n}", said, result)
  return out


def test_a_run_leaves_what_the_readme_promises(runs):
  workdir, said, result = runs[4]
  names = set(os.listdir(workdir))
  assert {"config.json", "metrics.jsonl", "checkpoints", "summary.json", "weights.safetensors"} <= names
  assert any(name.startswith("events.") for name in names)
  lines = read_metrics(f"{workdir}/metrics.jsonl")
  assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 25))
  assert [line["step"] for line in lines if "eval/top1_error" in line] == [12, 24]
  assert all({"step", "epoch"} <= set(line) for line in lines)
  assert {"train/learning_rate", "time/images_per_second", "time/data_wait"} <= set(lines[0])
  with open(f"{workdir}/summary.json", encoding="utf-8") as file:
    assert json.load(file) == result.summary
  text = "\n".join(said)
  for promised in ("total", "MACs", "memory per device", "img/s", "left", "data wait", "examples"):
    assert promised in text
  assert losses(workdir)[-1] < losses(workdir)[0]


def test_learning_rate_steps_where_the_config_says(runs):
  lines = [line for line in read_metrics(f"{runs[1][0]}/metrics.jsonl") if "train/learning_rate" in line]
  # 45 steps an epoch, boundary at 0.4 epochs = 18 steps.
  want = [0.1] * 18 + [0.01] * 6
  np.testing.assert_allclose([line["train/learning_rate"] for line in lines], want, rtol=1e-6)


def test_the_number_of_devices_changes_round_off_only(runs):
  for n in (2, 4):
    np.testing.assert_allclose(losses(runs[n][0])[:8], losses(runs[1][0])[:8], rtol=2e-4)
    np.testing.assert_allclose(losses(runs[n][0]), losses(runs[1][0]), rtol=0.05)


def test_grouped_batch_norm_does_not_depend_on_the_devices(runs, tmp_path):
  config = tiny_config(batch_norm="groups(4)", duration="6 steps")
  for n in (1, 4):
    train(config, f"{tmp_path}/{n}", say=quiet, devices=jax.devices()[:n])
  one, four = losses(f"{tmp_path}/1"), losses(f"{tmp_path}/4")
  np.testing.assert_allclose(one, four, rtol=2e-4)
  assert abs(one[0] - losses(runs[1][0])[0]) > 1e-3


def test_running_again_says_that_the_work_is_done(runs):
  workdir, _, result = runs[1]
  said = []
  again = train(tiny_config(), workdir, say=said.append, devices=jax.devices()[:1])
  assert again.state is None and again.summary == result.summary
  assert len(said) == 1 and "done already" in said[0] and workdir in said[0]


@pytest.mark.parametrize("n", [1, 4])
def test_interrupted_anywhere_the_end_is_bit_identical(runs, tmp_path, n):
  """SIGTERM at steps that are and are not those of a checkpoint, again and again."""
  workdir = str(tmp_path / "cut")
  stops = iter((3, 9, 16, 21, 99))
  starts, stop_at = 0, 0

  def say(text):
    if text.startswith("step ") and "train" in text and int(text.split()[1]) == stop_at:
      os.kill(os.getpid(), signal.SIGTERM)

  while True:
    stop_at = next(stops)
    starts += 1
    try:
      train(tiny_config(), workdir, say=say, devices=jax.devices()[:n])
      break
    except Interrupted as stop:
      assert "stopped at step" in str(stop)
  assert starts == 5
  assert weight_bytes(workdir) == weight_bytes(runs[n][0])
  assert losses(workdir) == losses(runs[n][0])


def test_what_was_not_saved_is_made_again(runs, tmp_path):
  """As after kill -9: the program is gone between two checkpoints, with later lines in the log."""
  workdir = str(tmp_path / "killed")

  class Killed(BaseException):
    pass

  def say(text):
    if text.startswith("step     13"):
      raise Killed

  with pytest.raises(Killed):
    train(tiny_config(), workdir, say=say, devices=jax.devices()[:4])
  said = []
  train(tiny_config(), workdir, say=said.append, devices=jax.devices()[:4])
  assert "resuming from step 10 of 24" in said
  assert weight_bytes(workdir) == weight_bytes(runs[4][0])
  assert losses(workdir) == losses(runs[4][0])


def test_evaluation_counts_each_example_once_whatever_the_batch(runs):
  workdir, _, result = runs[4]
  # As if a training run were saving at this moment: evaluation leaves its files alone.
  saving = f"{workdir}/checkpoints/99.orbax-checkpoint-tmp"
  os.mkdir(saving)
  for size in (120, 44, 400):
    values = evaluate_workdir(tiny_config(eval_batch_size=size), workdir, say=quiet)
    assert values["top1_error"] == pytest.approx(result.summary["last"]["top1_error"], abs=1e-4)
    assert values["loss"] == pytest.approx(result.summary["last"]["loss"], rel=1e-4)
  assert os.path.isdir(saving)
  os.rmdir(saving)


def test_another_config_in_the_same_workdir(runs):
  with pytest.raises(ValueError, match=r"seed: 0 -> 1"):
    train(tiny_config(seed=1), runs[1][0], say=quiet)
  # What changes no number may differ.
  train(tiny_config(log_every="7 steps", keep_checkpoints=3), runs[1][0], say=quiet)


def test_a_workdir_in_use_is_refused(tmp_path):
  (tmp_path / "w").mkdir()
  with locked(str(tmp_path / "w")):
    with pytest.raises(RuntimeError, match=rf"in use by process {os.getpid()} on"):
      train(tiny_config(), str(tmp_path / "w"), say=quiet)
  with locked(str(tmp_path / "w")):
    pass


def test_rates_come_from_windows_that_say_something(monkeypatch):
  now = [100.0]
  monkeypatch.setattr("time.perf_counter", lambda: now[0])
  clock = Clock(train=5.0, total=50.0)
  now[0] += 10  # setting up
  clock.resume()
  for _ in range(4):
    now[0] += 1
    clock.waited(0.25)
    clock.stepped(32)
  assert clock.rates() == {"seconds_per_step": 1.0, "images_per_second": 32.0, "data_wait": 0.25}
  now[0] += 0.1
  clock.stepped(32)
  assert clock.rates()["images_per_second"] == 32.0
  clock.pause()
  now[0] += 7  # evaluating
  clock.resume()
  now[0] += 2
  assert clock.train == pytest.approx(5 + 4.1 + 2) and clock.total == pytest.approx(50 + 23.1)
  assert [readable(s) for s in (59.6, 3661, 90061)] == ["1:00", "1:01:01", "1d 01:01:01"]


def test_the_weight_file_describes_itself(runs):
  variables, about = load_native(f"{runs[4][0]}/weights.safetensors")
  state = runs[4][2].state
  np.testing.assert_array_equal(variables["params"]["head"]["kernel"], state.params["head"]["kernel"])
  assert about["model"] == "resnet20_cifar" and about["num_classes"] == 10
  assert about["preprocessing"]["mean"] == [0.3]


def test_native_weight_files_refuse_what_is_not_theirs(tmp_path):
  from safetensors.numpy import save_file
  save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
  with pytest.raises(ValueError, match="not written by bionets_jax"):
    load_native(tmp_path / "other.safetensors")
  with pytest.raises(FileNotFoundError):
    load_native(tmp_path / "none.safetensors")


# WLD -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grown(runs, tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp("wld") / "student")
  said = []
  result = train(tiny_wld_config(runs[1][0], duration="10 steps"), workdir, say=said.append,
                 devices=jax.devices()[:2])
  return workdir, said, result


def test_wld_starts_as_its_teacher_and_moves_away(runs, grown):
  _, said, result = grown
  # To round-off: one program holds both networks, and XLA may fuse them differently. Bit for bit
  # below, and in test_models.
  gap = re.search(r"student and teacher differ by at most (\S+) in any logit of 120 held-out", "\n".join(said))
  assert float(gap[1]) < 1e-5
  assert any("starts from resnet20_cifar" in s and "6 adjust, 6 alpha" in s for s in said)
  first = read_metrics(f"{grown[0]}/metrics.jsonl")[0]
  assert first["train/distill_weight"] == pytest.approx(0.9)
  assert result.state.params["stage1_block0"]["conv1"]["alpha"] != 0


def test_wld_step_zero_logits_are_the_teacher_s(runs):
  """Not through the trainer's own message: the two networks applied by hand."""
  setup = make_setup(tiny_wld_config(runs[1][0]), jax.devices()[:1])
  state = jax.jit(setup.init)(jax.random.key(0), setup.inherited)
  images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1)).astype(np.float32)
  x = (images / 255 - 0.3) / 0.4
  student = setup.task.model.apply({"params": state.params, **state.model_state}, x)
  teacher = setup.task.teacher.model.apply(load_native(f"{runs[1][0]}/weights.safetensors")[0], x)
  np.testing.assert_array_equal(student, teacher)


def test_a_run_goes_on_with_the_same_teacher_only(runs, tmp_path):
  def stop_after_five(text):
    if text.startswith("step      6"):
      raise KeyboardInterrupt
  workdir = str(tmp_path / "w")
  with pytest.raises(KeyboardInterrupt):
    train(tiny_wld_config(runs[1][0]), workdir, say=stop_after_five, devices=jax.devices()[:1])
  with pytest.raises(ValueError, match="begun with.*teacher_crc32.*give the same ones"):
    train(tiny_wld_config(runs[4][0]), workdir, say=quiet, devices=jax.devices()[:1])


def test_the_teacher_is_in_no_checkpoint_and_never_moves(runs, grown):
  workdir, _, result = grown
  before = flatten_dict(load_native(f"{runs[1][0]}/weights.safetensors")[0])
  setup = make_setup(tiny_wld_config(runs[1][0]), jax.devices()[:1])
  after = flatten_dict(setup.task.frozen)
  assert all(np.array_equal(before[k], after[k]) for k in before)
  saved = ocp.StandardCheckpointer().restore(os.path.abspath(f"{workdir}/checkpoints/10/state"))
  size = lambda tree: sum(np.size(x) for x in jax.tree.leaves(tree))  # noqa: E731
  assert size(saved) == size(result.state)
  assert not any("teacher" in str(k) or "frozen" in str(k) for k in flatten_dict(saved))
  assert size(after) not in (0, size(saved))


def test_scheduled_alpha_follows_its_ramp(runs, tmp_path):
  config = tiny_wld_config(runs[1][0], duration="4 steps", alpha_ramp_to=0.04)
  config.model.options.alpha = "scheduled"
  state = train(config, str(tmp_path / "w"), say=quiet, devices=jax.devices()[:1]).state
  alphas = jax.tree.leaves(state.model_state["scheduled"])
  # The last step, number 3 of 0..3, saw 0.04 * 3 / 4.
  np.testing.assert_allclose(alphas, 0.03, rtol=1e-6)
  assert not any(k[-1] == "alpha" for k in flatten_dict(state.params))


def test_a_student_that_cannot_start_from_its_teacher(runs):
  config = tiny_wld_config(runs[1][0])
  config.model.options.width = 16
  with pytest.raises(ValueError, match=r"(?s)cannot start from resnet20_cifar: 36 of its 37.*\(8,\) in the weights, \(16,\)"):
    make_setup(config)


def test_an_ic_network_as_teacher(runs, tmp_path):
  """It counts as a base only for a student with the same alpha: with another it is another function."""
  config = tiny_config(duration="5 steps", model__name="ic_resnet20_cifar")
  teacher = str(tmp_path / "teacher")
  train(config, teacher, say=quiet, devices=jax.devices()[:1])
  with pytest.raises(ValueError, match="(?s)does not start as ic_resnet20_cifar.*teacher's own"):
    train(tiny_wld_config(teacher), str(tmp_path / "a"), say=quiet, devices=jax.devices()[:1])
  config = tiny_wld_config(f"{teacher}/weights.safetensors", duration="1 steps")
  config.model.options.alpha = "1.0"
  assert train(config, str(tmp_path / "b"), say=quiet, devices=jax.devices()[:1]).state.step == 1


def test_own_normalisation_of_the_teacher(runs):
  config = tiny_wld_config(runs[1][0])
  assert make_setup(config).task.mean == (0.3,)
  config.data.mean, config.data.std = (0.5,), (0.5,)
  task = make_setup(config).task
  assert task.mean == (0.5,) and task.teacher.preprocessing.mean == (0.3,)
  images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1)), jnp.uint8)
  want = task.teacher.model.apply(task.frozen, (images / 255.0 - 0.3) / 0.4)
  np.testing.assert_allclose(task.teacher_logits(task.frozen, images), want, rtol=2e-5, atol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  config = tiny_config(schedule__lr=1e30, schedule__boundaries=(), checkpoint_every="1 steps")
  with pytest.raises(FloatingPointError, match=r"at step \d.*schedule.lr"):
    train(config, str(tmp_path / "w"), say=quiet, devices=jax.devices()[:1])
  assert not os.path.exists(tmp_path / "w" / "weights.safetensors")


def test_a_step_is_compiled_once_for_each_batch_size(tmp_path):
  """1,442 digits in batches of 240: the last of an epoch has two."""
  config = tiny_config(data__drop_remainder=False, batch_size=240, duration="2 epochs")
  setup = make_setup(config, jax.devices()[:1])
  assert setup.pipeline.batch_sizes() == (240, 2) and setup.total_steps == 14
  state = train(config, str(tmp_path / "w"), say=quiet, devices=jax.devices()[:1]).state
  assert state.step == 14


def test_a_run_that_saved_nothing_owns_no_workdir(tmp_path):
  with pytest.raises(FloatingPointError, match="another --workdir"):
    train(tiny_config(schedule__lr=1e30), str(tmp_path), say=quiet, devices=jax.devices()[:1])
  assert finished(tiny_config(), str(tmp_path)) is None


def test_a_checkpoint_without_its_name_owns_the_workdir(runs, tmp_path):
  """It gets its name back at the next start, and another config would go on with it."""
  shutil.copytree(f"{runs[1][0]}/checkpoints/24", tmp_path / "checkpoints" / "24.saving")
  shutil.copy(f"{runs[1][0]}/config.json", tmp_path)
  with pytest.raises(ValueError, match="seed: 0 -> 5"):
    finished(tiny_config(seed=5), str(tmp_path))
  os.remove(tmp_path / "checkpoints" / "24.saving" / "files.json")  # it never was whole
  assert finished(tiny_config(seed=5), str(tmp_path)) is None


def test_a_stop_between_two_lines_of_the_log_is_in_neither(tmp_path, monkeypatch):
  """Nor is the time of the last evaluation, on the test split, in that of the training."""
  config = tiny_config(duration="10 steps", log_every="5 steps", eval_every="10 steps", data__test_split="test")
  whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
  train(config, whole, say=quiet, devices=jax.devices()[:1])
  questions = iter(range(1, 99))
  with monkeypatch.context() as patched, pytest.raises(Interrupted, match="step 8 of 10"):
    patched.setattr(StopRequest, "asked", lambda self: next(questions) == 8)
    train(config, cut, say=quiet, devices=jax.devices()[:1])
  evaluated = loop.evaluate

  def slow(*args, **kwargs):
    time.sleep(2)
    return evaluated(*args, **kwargs)

  monkeypatch.setattr(loop, "evaluate", slow)
  summary = train(config, cut, say=quiet, devices=jax.devices()[:1]).summary
  assert losses(cut) == losses(whole) and len(losses(cut)) == 2
  assert summary["train_seconds"] < 2 < summary["total_seconds"]


def test_every_key_of_the_configs_is_read(runs, tmp_path, monkeypatch):
  """A flag that nothing reads is a lie: each leaf is looked up somewhere during a run."""
  config = tiny_wld_config(runs[1][0], duration="1 steps", ema_decay=0.9, optimizer__kind="rmsprop")
  owners, read = {}, set()

  def note(node, prefix):
    owners[id(node)] = prefix
    for key, value in node.items():
      if isinstance(value, ml_collections.ConfigDict):
        note(value, f"{prefix}{key}.")

  note(config, "")
  real = ml_collections.ConfigDict.__getattr__

  def recording(self, name):
    if id(self) in owners:
      read.add(owners[id(self)] + name)
    return real(self, name)

  monkeypatch.setattr(ml_collections.ConfigDict, "__getattr__", recording)
  train(config, str(tmp_path / "w"), say=quiet, devices=jax.devices()[:1])
  leaves = {k for k in config_lib.flatten(config) if not k.startswith(("model.options", "paper"))}
  assert leaves - read == set()


# Studies -------------------------------------------------------------------------------------


def study(**runs):
  return ml_collections.ConfigDict(dict(title="A study", runs=runs))


def test_a_study_runs_tabulates_and_plots(tmp_path):
  base = tiny_config(duration="6 steps", eval_every="3 steps")
  config = study(a=base, b=tiny_wld_config("run:a", duration="3 steps"))
  said = []
  out = experiments.run(config, str(tmp_path), say=said.append)
  table = said[-2].splitlines()
  assert table[1] == "A study" and table[2].split()[:3] == ["run", "model", "parameters"]
  assert table[4].startswith("a ") and f" {out['a']['parameters']:,} " in table[4]
  assert table[5].startswith("b ") and " ic_resnet20_cifar " in table[5]
  assert (tmp_path / "plots" / "curves.png").stat().st_size > 10_000
  assert json.loads((tmp_path / "summary.json").read_text()) == out
  said.clear()
  again = experiments.run(config, str(tmp_path), say=said.append)
  assert again == out and "done already" in said[-1]
  values = experiments.run(config, str(tmp_path), mode="eval", say=quiet)
  assert values["b"]["top1_error"] == pytest.approx(out["b"]["last"]["top1_error"], abs=1e-4)


def test_a_study_is_checked_before_its_first_run(tmp_path):
  with pytest.raises(ValueError, match="'c' is not a run before it; those are a"):
    experiments.run(study(a=tiny_config(), b=tiny_wld_config("run:c")), str(tmp_path), say=quiet)
  with pytest.raises(ValueError, match="in config.runs.b: .*unknown model 'resnet21_cifar'"):
    experiments.run(study(a=tiny_config(), b=tiny_config(model__name="resnet21_cifar")),
                    str(tmp_path), say=quiet)
  bad = change(tiny_config(), {})
  bad.bathc_size = 3
  with pytest.raises(ValueError, match="did you mean 'batch_size'"):
    experiments.run(study(a=tiny_config(), b=bad), str(tmp_path), say=quiet)
  assert not os.listdir(tmp_path)
