"""Whole runs against each other: made again, interrupted, on more devices, brought to others half-way.

The runs are small (an IC network of seven layers on the digits inside the package), and have in them what a step
can have: augmentation, mixup, momentum, averages, a learned alpha, evaluations and checkpoints between steps.
"""

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from bionets_jax.selfcheck.check import Check, Context
from bionets_jax.training.config import classification_config
from bionets_jax.training.loop import Interrupted, train
from bionets_jax.training.writer import read_metrics

STEPS = 12
# Sums in another order: measured are 2e-7 of the losses and 5e-6 of arrays.
ROUND_OFF = 1e-4


def small_config(context: Context) -> ml_collections.ConfigDict:
  """The run that is made again and again."""
  config = classification_config()
  config.model.name = "ic_resnet20_cifar"
  # Without biases before the norms, whose gradients are 0 but for round-off.
  config.model.options = ml_collections.ConfigDict(
      dict(stage_sizes=(1, 1), width=8, alpha="learned", use_bias=False))
  config.data.name = "digits"
  config.data.train_transform = "pad_crop(1)"
  config.data.mean, config.data.std = (0.3,), (0.4,)
  config.batch_size, config.eval_batch_size = 32, 120
  config.duration, config.log_every = f"{STEPS} steps", "1 steps"
  config.eval_every, config.checkpoint_every = "6 steps", "5 steps"
  config.schedule.kind, config.schedule.lr = "constant", 0.02
  config.mixup, config.ema_decay = 0.2, 0.9
  config.dtype = "float32"
  config.deterministic = context.deterministic
  config.compile_cache = context.compile_cache
  return config


def check_runs(context: Context) -> list[Check]:
  """A run is a function of its config."""
  devices = context.devices
  first = _make(context, "once", devices[:1])
  # With programs of its own: another start may find none in the cache, and has to compile the same ones.
  again = _make(dataclasses.replace(context, compile_cache="off"), "again", devices[:1])
  equal = f"losses of {STEPS} steps, evaluations, {len(first.arrays)} arrays"
  out = [_same("twice", f"a run and the same run again: {equal}", first, again)]

  context.say("now with SIGTERM behind step 3, and behind step 8 an end without notice")
  _make(context, "interrupted", devices[:1], at={3: _ask})
  shutil.copytree(_folder(context, "interrupted"), _folder(context, "moved"))  # as it was left at step 3
  _make(context, "interrupted", devices[:1], at={8: _end})
  cut = _make(context, "interrupted", devices[:1])
  out.append(_same("interrupted", f"a run cut at steps 3 and 8, and the whole one: {equal}", first, cut))

  several = len(devices)
  if several == 1:
    return out + [Check("devices", "1 device and several", None, ROUND_OFF, note=(
        "there is one device; JAX_PLATFORMS=cpu makes four virtual ones"))]
  wide = _make(context, "wide", devices)
  near = "losses, weights"
  out.append(_near("devices", f"1 and {several} devices: {near}", first, wide))
  moved = _make(context, "moved", devices)
  out.append(_near("restored", f"3 steps on 1 device and the rest on {several}: {near}", first, moved))
  _make(context, "back", devices, at={7: _ask})
  back = _make(context, "back", devices[:1])
  out.append(_near("restored", f"7 steps on {several} devices and the rest on 1: {near}", first, back))
  return out


@dataclasses.dataclass(frozen=True)
class _Made:
  """What a run has left: all there is to compare."""

  losses: list[float]
  evaluations: list[dict[str, float]]
  arrays: list[np.ndarray]
  weights: bytes


class _Ended(BaseException):
  """As after kill -9: nothing is saved on the way out."""


def _ask() -> None:
  os.kill(os.getpid(), signal.SIGTERM)


def _end() -> None:
  raise _Ended


def _make(
    context: Context, name: str, devices: Sequence[Any], at: dict[int, Callable[[], None]] | None = None
) -> _Made | None:
  """Makes a run or goes on with it; None if what is in `at` ends it.

  Args:
    context: of the checks.
    name: of its folder.
    devices: that it is made on.
    at: step -> what happens when its line is in the log.

  Raises:
    Interrupted: somebody else has asked for it.
  """
  at, asked = dict(at or {}), False

  def say(text):
    nonlocal asked
    step = text.split()[1] if text.startswith("step ") else ""
    if step.isdigit() and " train " in text and int(step) in at:
      asked = True
      at.pop(int(step))()

  context.say(f"run '{name}' on {len(devices)} device{'s' if len(devices) > 1 else ''}")
  folder = _folder(context, name)
  try:
    state = train(small_config(context), folder, say=say, devices=devices).state
  except (Interrupted, _Ended):
    if not asked:
      raise
    return None
  lines = read_metrics(os.path.join(folder, "metrics.jsonl"))
  with open(os.path.join(folder, "weights.safetensors"), "rb") as file:
    weights = file.read()
  return _Made(
      [line["train/loss"] for line in lines if "train/loss" in line],
      [{k: v for k, v in line.items() if k.startswith("eval/")} for line in lines if "eval/loss" in line],
      [np.asarray(x) for x in jax.tree.leaves(jax.device_get(state))], weights)


def _folder(context: Context, name: str) -> str:
  return os.path.join(context.folder, name)


def _same(name: str, compared: str, one: _Made, two: _Made) -> Check:
  """Whether everything is equal to the bit; the difference is the largest there is."""
  bits = [x.tobytes() for x in one.arrays] == [x.tobytes() for x in two.arrays]
  equal = bits and (one.losses, one.evaluations, one.weights) == (two.losses, two.evaluations, two.weights)
  # Bits may differ where the numbers do not: 0 and -0.
  return Check(name, compared, 0.0 if equal else max(_distance(one, two), np.finfo(np.float32).tiny), 0.0)


def _near(name: str, compared: str, one: _Made, two: _Made) -> Check:
  return Check(name, compared, _distance(one, two), ROUND_OFF)


def _distance(one: _Made, two: _Made) -> float:
  """Of the losses relative to each; of an array relative to its norm."""
  if len(one.losses) != len(two.losses):
    return float("inf")
  losses = [abs(a - b) / abs(a) for a, b in zip(one.losses, two.losses, strict=True)]
  return max(losses + [relative(a, b) for a, b in zip(one.arrays, two.arrays, strict=True)])


def relative(reference: np.ndarray, other: np.ndarray) -> float:
  """Norm of the difference over the reference's, in float64; over 1e-3 where the reference is smaller."""
  a, b = np.asarray(reference, np.float64), np.asarray(other, np.float64)
  found = np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-3)
  return float(found) if np.isfinite(found) else float("inf")
