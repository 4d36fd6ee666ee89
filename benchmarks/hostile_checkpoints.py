"""Hostile checkpoints: damaged, swapped and made-up files, and links that lead elsewhere."""

import functools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import jax
import numpy as np
from hostile_case import Case
from hostile_configs import config

from bionets_jax.training import checkpoint_record
from bionets_jax.training import checkpoints as checkpoints_module
from bionets_jax.training.checkpoints import Checkpoints
from bionets_jax.training.config import to_json
from bionets_jax.training.evaluation import evaluate_workdir
from bionets_jax.training.program import abstract_state
from bionets_jax.training.setup import make_setup

STEP = 8
DEEP = "[" * 100_000 + "]" * 100_000


@functools.cache
def _files(change: str = "{}") -> Mapping[str, bytes]:
  """A workdir with one checkpoint, of random numbers: relative path -> content.

  Args:
    change: JSON, parts of the checkpoint's record that replace the true ones: its digests are right.
  """
  made = config()
  setup = make_setup(made)
  random = np.random.default_rng(0)
  state = jax.tree.map(
    lambda leaf: jax.device_put(random.integers(0, 99, leaf.shape).astype(leaf.dtype), leaf.sharding),
    abstract_state(setup),
  )

  def make_record(*arguments):
    return checkpoint_record.make_record(*arguments) | json.loads(change)

  with (
    tempfile.TemporaryDirectory() as workdir,
    mock.patch.object(checkpoints_module, "make_record", make_record),
  ):
    checkpoints = Checkpoints(workdir, setup.keep)
    checkpoints.save(
      STEP, state, {"train": 1.0, "total": 1.0, "last": {}, "best": {}, "inputs": setup.inputs()}
    )
    checkpoints.wait()
    (pathlib.Path(workdir) / "config.json").write_text(json.dumps(to_json(made)))
    return {
      os.path.relpath(path, workdir): path.read_bytes()
      for path in sorted(pathlib.Path(workdir).rglob("*"))
      if path.is_file()
    }


def copy(folder: pathlib.Path, change: str = "{}") -> pathlib.Path:
  """The workdir, in a folder of its own; returns the folder of its checkpoint."""
  for path, content in _files(change).items():
    (folder / "run" / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / "run" / path).write_bytes(content)
  return folder / "run" / "checkpoints" / str(STEP)


def evaluation(folder: pathlib.Path) -> None:
  """Evaluates the workdir; what is said of its checkpoints becomes a part of the message."""
  said: list[str] = []
  try:
    evaluate_workdir(config(), str(folder / "run"), say=said.append)
  except Exception as error:
    error.args = ("\n".join([str(error), *said]),)
    raise


def _damaged(
  title: str, damage: Callable[[pathlib.Path, np.random.Generator], Any], says: str = "is damaged"
) -> Case:
  """A workdir whose one checkpoint `damage` has been at."""

  def prepare(folder, random):
    damage(copy(folder), random)
    return functools.partial(evaluation, folder)

  return Case(f"checkpoints: {title}", prepare, f"run.*{says}")


def _write(path: str, content: str | bytes) -> Callable:
  return lambda step, random: (step / path).write_bytes(
    content if isinstance(content, bytes) else content.encode()
  )


def _record(title: str, change: Mapping[str, Any]) -> Case:
  """A checkpoint that was written like this: every digest is right."""

  def prepare(folder, random):
    copy(folder, json.dumps(change))
    return functools.partial(evaluation, folder)

  return Case(f"checkpoints: a record with {title}", prepare, "run.*(damaged|leaves)")


def _link(path: str, target: str) -> Callable:
  def damage(step, random):
    place = step / path
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.symlink_to(target)

  return damage


def _data(step: pathlib.Path) -> list[pathlib.Path]:
  """The files that hold numbers, the largest first."""
  return sorted(
    (
      path
      for path in (step / "state").rglob("*")
      if path.is_file() and not path.name.startswith("_") and path.suffix != ".json"
    ),
    key=lambda path: -path.stat().st_size,
  )


def _flip(step: pathlib.Path, random: np.random.Generator) -> None:
  path = _data(step)[0]
  content = bytearray(path.read_bytes())
  for at in random.integers(len(content) // 4, len(content), 20):
    content[at] ^= 1 << random.integers(8)
  path.write_bytes(content)


def _every(change: Callable[[bytes], bytes]) -> Callable:
  def damage(step, random):
    for path in _data(step):
      path.write_bytes(change(path.read_bytes()))

  return damage


def _swap(step: pathlib.Path, random: np.random.Generator) -> None:
  first, second, *_ = _data(step)
  a, b = first.read_bytes(), second.read_bytes()
  first.write_bytes(b)
  second.write_bytes(a)


def _checkpoints() -> list[Case]:
  leaf = {"params/head/kernel": ["float32", [10**15], 0]}
  found = [_damaged(f"bits flipped, {number}", _flip) for number in range(4)] + [
    _damaged("data swapped", _swap),
    _damaged("data cut off", _every(lambda data: data[: len(data) // 2])),
    _damaged("data of zeros", _every(lambda data: bytes(len(data)))),
    _damaged("no data", _every(lambda data: b"")),
    _damaged("no state", lambda step, random: shutil.rmtree(step / "state")),
    _damaged("nothing", lambda step, random: [shutil.rmtree(step), step.mkdir()]),
    _damaged("a file in its place", lambda step, random: [shutil.rmtree(step), step.write_text("x")]),
    _damaged("a pipe among its files", lambda step, random: os.mkfifo(step / "state" / "pipe")),
    _damaged("a link to a device", _link("clock/metadata", "/dev/zero")),
    _damaged("a link to nothing", _link("clock/metadata", "none")),
    _damaged("a link to /etc/passwd", _link("clock/metadata", "/etc/passwd")),
    _damaged("a link to /etc", _link("state", "/etc")),
    _damaged("a link to itself", _link("state", "state")),
    _damaged(
      "a step that is a link to /etc", lambda step, random: [shutil.rmtree(step), step.symlink_to("/etc")]
    ),
    _damaged("another step's name", lambda step, random: step.rename(step.with_name("9"))),
  ]
  found += [
    _record(f"leaves that are {title}", {"leaves": leaves})
    for title, leaves in (
      ("a number", 5),
      ("a list", [1]),
      ("numbers", {"a": 5}),
      ("text", {"a": "bcd"}),
      ("of 10^15 numbers", leaf),
      ("nothing", {}),
      ("shapes of text", {"a": ["float32", "x", 0]}),
      ("two things", {"a": ["float32", [1]]}),
    )
  ]
  times = {"train": 1.0, "total": 1.0, "last": {}, "best": {}, "inputs": {}}
  found += [
    _record(title, change)
    for title, change in (
      ("another step", {"step": 9}),
      ("a step of text", {"step": "8"}),
      ("a clock that is a list", {"clock": [1]}),
      ("a clock of nothing", {"clock": {}}),
      ("a clock of text", {"clock": times | {"train": "x"}}),
      ("an evaluation that is a number", {"clock": times | {"last": 5}}),
    )
  ]
  texts = {
    "nothing": "",
    "no JSON": "{",
    "a list": "[1]",
    "a number": "1",
    "NaN": "NaN",
    "100,000 deep": DEEP,
    "no text": b"\xff\xfe",
  }
  return found + [
    _damaged(f"a clock that is {title}", _write("clock/metadata", text)) for title, text in texts.items()
  ]


def _names(name: str) -> Case:
  """A folder among the checkpoints whose name is no step."""

  def prepare(folder, random):
    step = copy(folder)
    step.rename(step.with_name(name))
    return functools.partial(evaluation, folder)

  return Case(
    f"checkpoints: a step called {name[:20]!r}", prepare, "run/checkpoints has none that can be read"
  )


def cases() -> list[Case]:
  return _checkpoints() + [
    _names(name) for name in ("007", "-5", "1e3", "..8", "8 ", "٨", "9" * 200, "$(touch canary)")
  ]
