"""Hostile configs: values, combinations, config files and command lines."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from hostile_case import ROOT, Case, command

from bionets_jax import config_files, experiments
from bionets_jax.training.config import classification_config, wld_config
from bionets_jax.training.setup import make_setup

_INF, _NAN = float("inf"), float("nan")
# A title, what is changed of a config that is right, and what the message has to say beside the key.
_VALUES: list[tuple[str, dict[str, Any], str]] = [
  ("a key that nothing reads", {"bacth_size": 3}, "did you mean 'batch_size'"),
  ("a key of code", {"__class__": "os"}, "nothing reads this key"),
  ("a part that is a number", {"optimizer": 5}, "nothing reads this key|missing"),
  ("a number in place of a part", {"seed": ml_collections.ConfigDict({"a": 1})}, "nothing reads this key"),
  ("an unknown task", {"task": "clasification"}, "did you mean 'classification'"),
  ("a task that is a list", {"task": [1]}, "known: classification"),
  ("text for a number", {"batch_size": "32"}, "of type int"),
  ("a truth value", {"batch_size": True}, "of type int"),
  ("a part of an image", {"batch_size": 32.5}, "of type int"),
  ("no number", {"schedule.lr": None}, "of type float"),
  ("a list for text", {"duration": ["1 steps"]}, "of type str"),
  ("bytes for text", {"data.name": b"digits"}, "of type"),
  ("a set for a tuple", {"data.mean": {0.5}}, "of type tuple"),
  ("text in a tuple", {"data.mean": ("0.5",)}, "of type tuple"),
  ("truth values in a tuple", {"seeds": (True,)}, "of type tuple"),
  ("a function", {"duration": len}, "of type str"),
  ("NaN", {"schedule.lr": _NAN}, "finite"),
  ("infinity", {"optimizer.weight_decay": _INF}, "finite"),
  ("NaN in a tuple", {"schedule.boundaries": (1.0, _NAN)}, "finite"),
  ("minus infinity", {"alpha_ramp_to": -_INF}, "finite"),
  ("NaN for mixup", {"mixup": _NAN}, "finite"),
  ("a mean of NaN", {"data.mean": (_NAN,)}, "finite"),
  ("10^40 images", {"batch_size": 10**40}, "bits"),
  ("2^31 images", {"batch_size": 2**31}, "1,048,576"),
  ("-1 images", {"batch_size": -1}, "from 1"),
  ("no images", {"batch_size": 0}, "from 1"),
  ("-32 images in evaluation", {"eval_batch_size": -32}, "from 0"),
  ("2^40 in evaluation", {"eval_batch_size": 2**40}, "from 0"),
  ("0 parts", {"accumulate": 0}, "from 1"),
  ("5 parts of 32", {"accumulate": 5}, "multiple of 5"),
  ("a million processes", {"data.workers": 10**6}, "1,024"),
  ("-7 processes", {"data.workers": -7}, "from -1"),
  ("no checkpoints", {"keep_checkpoints": 0}, "from 1|1 or more"),
  ("a negative rate", {"schedule.lr": -0.1}, "from 0"),
  ("a negative factor", {"schedule.factor": -1.0}, "from 0"),
  ("a negative epoch", {"schedule.boundaries": (-1,)}, "epochs"),
  ("epochs in no order", {"schedule.boundaries": (60, 30)}, "ascending"),
  ("10^300 epochs", {"schedule.boundaries": (1e300,)}, "1,000,000"),
  ("a negative seed", {"seed": -1}, "from 0"),
  ("a seed of 2^32", {"seed": 2**32}, "below 2"),
  ("a seed twice", {"seeds": (1, 1)}, "twice"),
  ("a part of a seed", {"seeds": (0.5,)}, "whole"),
  ("100,000 seeds", {"seeds": tuple(range(10**5))}, "10,000"),
  ("2^63 steps", {"duration": f"{2**63} steps"}, "duration"),
  ("2^31 steps", {"duration": f"{2**31} steps"}, "2,147,483,647"),
  ("500 digits of epochs", {"duration": "9" * 500 + " epochs"}, "duration"),
  ("weeks", {"duration": "3 weeks"}, "90 epochs"),
  ("negative epochs", {"duration": "-1 epochs"}, "90 epochs"),
  ("half a step", {"log_every": "0.5 steps"}, "500 steps"),
  ("epochs of infinity", {"duration": "inf epochs"}, "90 epochs"),
  ("no duration", {"duration": ""}, "90 epochs"),
  ("a warm-up of 10^14 epochs", {"schedule.warmup": "99999999999999 epochs"}, "warmup"),
  (
    "2,000,000 epochs with a rate each",
    {"schedule.kind": "exponential", "duration": "2000000 epochs"},
    "rate for each epoch",
  ),
  ("evaluation every 0 steps", {"eval_every": "0 steps"}, "less than a step"),
  ("a network that is a path", {"model.name": "../../resnet18"}, "unknown model"),
  ("a network that is code", {"model.name": "__import__('os').system('touch canary')"}, "unknown model"),
  ("a network of another kind", {"model.name": "resnet_18"}, "did you mean"),
  ("no network", {"model.name": ""}, "empty"),
  ("an unknown option", {"model.options": {"depht": 3}}, "no option 'depht'"),
  ("an option of the data", {"model.options": {"num_classes": 3}}, "data decides"),
  ("blocks of text", {"model.options": {"stage_sizes": "111"}}, "stage_sizes.*tuple"),
  ("a billion blocks", {"model.options": {"stage_sizes": (10**9, 1, 1)}}, "stage_sizes.*1,000"),
  ("a width of 0", {"model.options": {"width": 0}}, "width.*from 1"),
  ("a unit that is code", {"model.options": {"conv": "os.system"}}, "conv"),
  ("NaN for a width", {"model.options": {"width": _NAN}}, "width"),
  ("a data set outside", {"data.name": "../../etc"}, "lead out"),
  ("an absolute data set", {"data.name": "/etc"}, "lead out"),
  (
    "a split outside",
    {"data.name": "folder", "data.dir": "/tmp", "data.train_split": "../../etc"},
    "lead out",
  ),
  ("a command in a name", {"data.name": "digits; touch canary"}, "digits"),
  ("$(...)", {"data.name": "$(touch canary)"}, "canary"),
  ("a NUL in a path", {"data.dir": "/tmp/\0x"}, "printed"),
  ("an escape sequence", {"data.name": "\x1b[31mdigits"}, "printed"),
  ("a line end", {"data.train_split": "train\nx"}, "printed"),
  ("a text of 1 MB", {"data.name": "x" * 10**6}, "characters"),
  ("an unknown transform", {"data.train_transform": "exec(1)"}, "exec"),
  ("code in a transform", {"data.train_transform": "pad_crop(__import__)"}, "pad_crop"),
  ("a transform without an end", {"data.train_transform": "pad_crop(1"}, "pad_crop"),
  ("terabytes of padding", {"data.train_transform": "pad_crop(99999999)"}, "pad_crop|pixels"),
  ("negative pixels", {"data.train_transform": "pad_crop(-1)"}, "pad_crop|pixels"),
  ("10,000 transforms", {"data.train_transform": "|".join(["flip"] * 10**4)}, "characters"),
  ("a transform of no split", {"data.test_transform": "flip"}, "test_split"),
  ("means without deviations", {"data.std": ()}, "empty"),
  ("2 means of 3 deviations", {"data.mean": (0.1, 0.2), "data.std": (1.0,) * 3}, "2 numbers"),
  ("a deviation of 0", {"data.std": (0.0,)}, "positive"),
  ("an unknown loss scale", {"dtype": "float8"}, "float32"),
  ("a device that is not there", {"device": "tpu"}, "tpu"),
  ("an unknown device", {"device": "abacus"}, "abacus"),
  ("an unknown schedule", {"schedule.kind": "eval"}, "known"),
  ("momentum of 1", {"optimizer.momentum": 1.0}, "below 1"),
  ("nesterov without momentum", {"optimizer.nesterov": True, "optimizer.momentum": 0.0}, "needs"),
  ("rmsprop with nesterov", {"optimizer.kind": "rmsprop", "optimizer.nesterov": True}, "belongs to"),
  ("mixup of single images", {"mixup": 0.2, "batch_size": 1}, "2 or more"),
  ("negative mixup", {"mixup": -1.0}, "mixup"),
  ("smoothing of 1", {"label_smoothing": 1.0}, "below 1"),
  ("an average of 1", {"ema_decay": 1.0}, "below 1"),
  ("10^100 groups", {"batch_norm": f"groups({10**100})"}, "multiple|divide"),
  ("code for groups", {"batch_norm": "groups(__import__('os'))"}, "global"),
  ("a profile of code", {"profile": "exec:1"}, "START:COUNT"),
  ("no cache folder", {"compile_cache": ""}, "folder"),
  ("a cache in a file", {"compile_cache": "/etc/passwd/x"}, "cannot be made"),
  ("weights that are a device", {"model.weights": "/dev/zero"}, "weights"),
  ("a seed beside seeds", {"seed": 1, "seeds": (1, 2)}, "one of them"),
]
_WLD = [
  ("no teacher", {}, "teacher.weights is empty"),
  ("a teacher of no study", {"teacher.weights": "run:base"}, "run:base"),
  ("a teacher that is an address", {"teacher.weights": "http://x/y.pth"}, "addresses"),
  ("a teacher that is a command", {"teacher.weights": "$(touch canary)"}, "no such file"),
  ("weights beside a teacher", {"model.weights": "x.pth"}, "leave it empty"),
  ("a temperature of 0", {"wld.temperature": 0.0}, "above 0"),
  ("a negative tolerance", {"wld.tolerance": -1.0}, "from 0"),
  ("a weight of 2", {"wld.distill_weight_start": 2.0}, "from 0 to 1"),
  ("a distance of code", {"wld.distill": "eval"}, "give"),
  ("a hinge of mixup", {"wld.hinge": "mixup"}, "batch"),
  ("a key of a teacher", {"teacher.modle": "x"}, "did you mean"),
]
_FILES = {  # text of a config file: what has to be said
  "an error": ("def get_config():\n  return {}['x']\n", "KeyError.*line 2"),
  "no Python": ("def get_config(:\n", "SyntaxError"),
  "no get_config": ("x = 1\n", "no function get_config"),
  "a number": ("get_config = 1\n", "no function get_config"),
  "nothing returned": ("def get_config():\n  pass\n", "returns NoneType"),
  "a dict": ("def get_config():\n  return {}\n", "dict"),
  "a module that is not there": ("import no_such_module\n", "no_such_module.*line 1"),
  "exit": ("import sys\nsys.exit(0)\n", "SystemExit"),
  "a hang": ("def get_config():\n  while True:\n    pass\n", "not returned within"),
  "a hang that catches": (
    "import time\ndef get_config():\n  while True:\n    try:\n      time.sleep(1)\n"
    "    except Exception:\n      pass\n",
    "not returned within",
  ),
  "endless recursion": ("def get_config():\n  return get_config()\n", "RecursionError"),
  "bytes": (b"\xff\xfe\0\0", "Error"),
  "nothing": ("", "no function get_config"),
}
_LINES = [  # arguments beside a config file that is right: what has to be said
  (("--config.bacth_size=3",), "did you mean 'batch_size'"),
  (("--config.batch_size=many",), "batch_size"),
  (("--config.batch_size=nan",), "batch_size"),
  (("--config.schedule.boundaries=__import__('os')",), "boundaries"),
  (("--config.schedule.boundaries=(1,2",), "boundaries"),
  (("--config.optimizer.rho=0.5",), "optimizer.kind='rmsprop'"),
  (("--config.schedule.kind=cosine", "--config.schedule.factor=0.5"), "schedule.kind='step'"),
  (("--config.wld.tolerance=1",), "no such key"),
  (("--mode=steal",), "mode"),
  (("--workdri=x",), "workdri"),
  (("--config.model.options.conv=os.system",), "conv"),
  (("--distributed=;touch canary",), "host:port"),
  (("--workdir=/etc/passwd",), "is a file"),
  (("--workdir=/dev/null/x",), "/dev/null"),
  (("--config.data.name=\x1b]0;x\x07",), r"\\x1b"),
  (("more", "arguments"), "unexpected arguments"),
]


def config(
  task: Callable = classification_config, changes: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
  """Eight layers on the embedded digits; `changes` may set anything to anything."""
  found = task()
  found.model.name = "resnet20_cifar" if found.task == "classification" else "ic_resnet20_cifar"
  found.model.options = ml_collections.ConfigDict(dict(stage_sizes=(1, 1, 1), width=8))
  found.data.name, found.data.mean, found.data.std = "digits", (0.3,), (0.4,)
  found.batch_size, found.duration = 32, "8 steps"
  for key, value in (changes or {}).items():
    node, (*parents, leaf) = found, key.split(".")
    for parent in parents:
      node = node[parent]
    with node.ignore_type(), node.unlocked():
      node[leaf] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
  return found


def _value(task: Callable, title: str, changes: dict[str, Any], says: str) -> Case:
  return Case(
    f"configs: {title}", lambda folder, random: functools.partial(make_setup, config(task, changes)), says
  )


def _file(title: str, text: str | bytes, says: str) -> Case:
  def prepare(folder, random):
    (folder / "run.py").write_bytes(text if isinstance(text, bytes) else text.encode())

    def call():
      seconds, config_files.SECONDS = config_files.SECONDS, 1
      try:
        config_files.load_config(str(folder / "run.py"))
      finally:
        config_files.SECONDS = seconds

    return call

  return Case(f"configs: file with {title}", prepare, says, leaves=("__pycache__",))


def _line(arguments: tuple[str, ...], says: str) -> Case:
  def prepare(folder, random):
    code = f"import sys\nsys.path.insert(0, {str(ROOT / 'benchmarks')!r})\nimport hostile_configs\n\n\n"
    (folder / "run.py").write_text(code + "def get_config():\n  return hostile_configs.config()\n")
    return functools.partial(command, str(ROOT / "launch.py"), f"--config={folder / 'run.py'}", *arguments)

  return Case(f"configs: launch.py {' '.join(arguments)!r}", prepare, f"^error: .*{says}")


def _study(name: str) -> Case:
  def prepare(folder, random):
    study = ml_collections.ConfigDict()
    study.title = "hostile"
    study.runs = ml_collections.ConfigDict()
    study.runs[name] = config()
    os.mkdir(folder / "workdir")
    return functools.partial(experiments.run, study, str(folder / "workdir"))

  return Case(f"configs: a run called {name!r}", prepare, "run's name")


def cases() -> list[Case]:
  """Values are checked by `make_setup`, files by `load_config`, lines by launch.py."""
  found = [_value(classification_config, *row) for row in _VALUES] + [
    _value(wld_config, *row) for row in _WLD
  ]
  found += [_file(title, *row) for title, row in _FILES.items()] + [_line(*row) for row in _LINES]
  return found + [_study(name) for name in ("/tmp/x", "a/b", "-rf", "$(touch canary)", "a\nb", "")]
