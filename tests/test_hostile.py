"""Hostile inputs end in an error that says what is wrong: a part of benchmarks/hostile.py, and what it rests on."""

import ast
import functools
import os
import pathlib
import re
import sys
import time

import jax
import ml_collections
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from tiny import tiny_config, tiny_wld_config

from bionets_jax import command_line, create_model
from bionets_jax.config_files import load_config
from bionets_jax.models.fields import check_fields
from bionets_jax.terminal import printable, run_command
from bionets_jax.training.ranges import check_ranges, unread
from bionets_jax.training.setup import check_values
from bionets_jax.weights.whole import write_whole

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import hostile  # noqa: E402
import hostile_case  # noqa: E402
from hostile_case import CANARY, Case, judge  # noqa: E402

CASES = hostile.all_cases()


def test_there_are_as_many_as_promised():
  groups = {case.name.partition(":")[0] for case in CASES}
  assert len(CASES) >= 200 and groups == {"configs", "weights", "images", "checkpoints", "workdirs"}


@pytest.mark.parametrize("number", range(0, len(CASES), 5), ids=lambda number: CASES[number].name[:60])
def test_withstood(number, tmp_path):
  verdict = judge(CASES[number], tmp_path, number)
  assert not verdict.problem, verdict


@pytest.mark.parametrize(
  "call,problem",
  [
    (lambda: None, "accepted"),
    (lambda: {}["w.pth"], "KeyError came out"),
    (lambda: np.linalg.inv(np.zeros((2, 2))), "LinAlgError came out"),
    (functools.partial(os.mkdir, CANARY), "executed"),
    (lambda: pathlib.Path("half.tmp").write_text("x"), "left behind: half.tmp"),
    (lambda: pathlib.Path("w.pth").unlink(), "removed: w.pth"),
    (lambda: open("none"), "does not say"),
    (lambda: float("w.pth" * 1000), "characters"),
    (lambda: np.ones(2 * 10**7).sum(), "took"),
    (lambda: time.sleep(9), "not done after"),
  ],
)
def test_what_is_not_withstood_is_seen(call, problem, tmp_path, monkeypatch):
  """The judge itself: each way to fail is one that it notices."""
  monkeypatch.setattr(hostile_case, "MEBIBYTES", 100)
  if "not done" in problem:
    monkeypatch.setattr(hostile_case, "SECONDS", 0.5)

  def prepare(folder, random):
    (folder / "w.pth").write_text("x")

    def then():
      call()
      if "accepted" not in problem:
        raise ValueError("w.pth")

    return then

  assert problem in judge(Case("test: x", prepare, "w.pth"), tmp_path, 0).problem


def test_nothing_unpickles_evaluates_or_starts_a_shell():
  """By the source. torch_pickle.py answers to a list of harmless names alone; see its docstring."""
  for path in sorted((ROOT / "bionets_jax").rglob("*.py")):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    called = {ast.unparse(call.func) for call in calls}
    assert not called & {"eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "torch.load"}, path
    assert not any(name.endswith((".extractall", ".extract")) for name in called), path
    given = {(keyword.arg, ast.unparse(keyword.value)) for call in calls for keyword in call.keywords}
    assert not given & {("allow_pickle", "True"), ("shell", "True"), ("weights_only", "False")}, path
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names} | {
      node.module for node in nodes if isinstance(node, ast.ImportFrom)
    }
    unpicklers = imported & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    assert not unpicklers or path.name == "torch_pickle.py", path


# --- configs ----------------------------------------------------------------------------------------------


def test_overrides_that_nothing_reads():
  config = tiny_config()
  assert {"optimizer.rho", "alpha_ramp_to"} <= unread(config).keys()
  assert "crop_average" not in unread(config)  # evaluations of the finished run read it
  assert not {"schedule.boundaries", "schedule.factor"} & unread(config).keys()
  config.schedule.kind, config.optimizer.kind, config.seeds = "exponential", "rmsprop", (1, 2)
  config.model.options.alpha = "scheduled"
  assert unread(config).keys() == {"schedule.boundaries"}
  config = tiny_wld_config("x")
  config.wld.distill = "printed"
  assert "wld.temperature" in unread(config)


def test_an_override_is_read_by_the_run_that_it_names(capsys):
  study = ml_collections.ConfigDict(
    dict(title="x", runs=dict(a=tiny_config(), b=tiny_config(optimizer__kind="rmsprop")))
  )
  command_line._check_read(
    ["launch.py", "--config.runs.b.optimizer.rho=0.5", "--config.runs.a.seed=3"], study
  )
  with pytest.raises(SystemExit) as left:
    command_line._check_read(["launch.py", "--config.runs.a.optimizer.rho=0.5"], study)
  assert left.value.code == 2 and "--config.runs.a.optimizer.rho: nothing reads" in capsys.readouterr().err


def test_an_override_is_read_beside_an_option_that_is_new(tmp_path, monkeypatch):
  path = tmp_path / "run.py"
  path.write_text(f"import sys\nsys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\n"
                  "from tiny import tiny_config as get_config\n")
  monkeypatch.setattr(command_line, "FLAGS", flags.FlagValues())
  monkeypatch.setattr(sys, "argv", sys.argv)  # the parser sets it
  config_flags.DEFINE_config_file("config", None, "", flag_values=command_line.FLAGS)
  command_line._parse(["launch.py", f"--config={path}", "--config.alpha_ramp_to=0.05",
                       "--config.model.options.alpha=scheduled"])
  config = command_line.FLAGS.config
  assert (config.alpha_ramp_to, config.model.options.alpha) == (0.05, "scheduled")


def test_folders_may_be_named_in_any_script():
  check_ranges(tiny_config(data__dir="/data/\u753b\u50cf\u3000x/\u0646\u06cc\u0645\u200c\u0641"))


def test_config_files_may_take_their_time_but_not_for_ever(tmp_path):
  path = tmp_path / "run.py"
  path.write_text(
    "import ml_collections\ndef get_config(name):\n  return ml_collections.ConfigDict(dict(name=name))\n"
  )
  assert load_config(f"{path}:a:b").name == "a:b"
  path.write_text(
    "from __future__ import annotations\nimport dataclasses\nimport ml_collections\n@dataclasses.dataclass\n"
    "class Sizes:\n  width: int = 8\ndef get_config():\n  return ml_collections.ConfigDict(vars(Sizes()))\n"
  )
  assert load_config(str(path)).width == 8
  path.write_text("def get_config():\n  raise ValueError('no such table')\n")
  with pytest.raises(ValueError, match=r"no such table \(line 2\)"):
    load_config(str(path))
  with pytest.raises(FileNotFoundError, match="did you mean 'run.py'"):
    load_config(str(tmp_path / "rum.py"))


def test_values_at_the_edges_are_taken():
  for changes in (
    dict(schedule__lr=0.0),
    dict(batch_size=1),
    dict(data__workers=0),
    dict(mixup=1.0, batch_size=2),
    dict(schedule__boundaries=()),
    dict(log_every="999999999999999 steps"),
    dict(eval_batch_size=0),
  ):
    check_values(tiny_config(**changes))


def test_fields_of_a_network():
  """What has the right type and size goes in, whoever made it: NumPy, JSON, a command line."""
  model = create_model(
    "resnet50", stage_sizes=[1, 1, 1, 1], width=np.int64(8), zero_init_residual=True, dtype="float32"
  )
  check_fields(model, ("stage_sizes", "width", "dtype"))
  create_model("vgg16", dropout=0, hidden=())
  create_model("efficientnet_b0", width=1, depth=np.float32(1), norm_epsilon=None)
  for options, match in (
    (dict(width=True), "width=True: give a whole number"),
    (dict(groups=0), "groups=0.*from 1"),
    (dict(stage_sizes=(1, "2", 1, 1)), "stage_sizes='2'"),
    (dict(stem=7), "stem=7: give text"),
    (dict(zero_init_residual=1), "True or False"),
    (dict(width=float("nan")), "width=nan"),
  ):
    with pytest.raises(ValueError, match=match):
      create_model("resnet50", **options)


def test_names_of_runs_are_names_of_folders():
  from bionets_jax import experiments

  study = ml_collections.ConfigDict(dict(title="x", runs={}))
  study.runs["a/b"] = tiny_config()
  with pytest.raises(ValueError, match="run's name is that of its folder"):
    experiments.run(study, "/nonexistent")


# --- files ------------------------------------------------------------------------------------------------


def test_links_are_replaced_and_not_followed(tmp_path):
  outside = tmp_path / "outside"
  outside.write_text("precious")
  for name in ("a.json", "a.json.tmp"):
    (tmp_path / name).symlink_to(outside)
  write_whole({tmp_path / "a.json": "new"})
  assert outside.read_text() == "precious" and (tmp_path / "a.json").read_text() == "new"
  assert not (tmp_path / "a.json").is_symlink() and sorted(os.listdir(tmp_path)) == ["a.json", "outside"]


def test_text_of_files_does_not_steer_the_terminal():
  assert printable("a\tb\nµ\x1b]0;x\x07\u202e\udcff") == "a\tb\nµ\\x1b]0;x\\x07\\u202e\\udcff"


def test_how_a_command_line_ends(capsys):
  def ends(error):
    def work(say):
      say("be\x07gun")
      raise error
    return run_command(work, stopped="stopped"), *capsys.readouterr()

  begun = "be\\x07gun\n"
  for error in (ValueError("no\x1b[2J"), FileNotFoundError("no\x1b[2J"), RuntimeError("no\x1b[2J")):
    assert ends(error) == (1, begun, "error: no\\x1b[2J\n")
  assert ends(KeyboardInterrupt()) == (1, begun, "stopped\n")
  for error in (KeyError("a defect"), jax.errors.JaxRuntimeError("out of memory")):
    with pytest.raises(type(error)):
      ends(error)
  assert run_command(lambda say: 3, stopped="stopped") == 3


def test_the_page_names_what_there_is():
  text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
  for path in re.findall(r"`((?:bionets_jax|benchmarks|tests)/[\w/.]+)`", text):
    assert (ROOT / path).exists(), path
