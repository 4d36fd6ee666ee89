"""What the values of a config may be beside their types, and which of them go together.

All of it is known without the data, the weights or a device, and so is said before any of them is looked at.
"""

import math
import unicodedata
from typing import Any

import ml_collections

from bionets_jax.training.config import OPEN_KEYS, flatten, norm_groups

_LONGEST_TEXT = 4096  # the longest path that systems take
_LONGEST_TUPLE = 10_000
_MOST_STEPS = 2**31 - 1  # steps are counted in 32 bits
_MOST_EPOCHS = 1_000_000
_MOST_IMAGES = 1 << 20  # in a batch
# Key -> (least, most), both included. Of other keys their own readers say what is right.
_RANGES = {
    "batch_size": (1, _MOST_IMAGES), "eval_batch_size": (0, _MOST_IMAGES), "accumulate": (1, _MOST_IMAGES),
    "data.workers": (-1, 1024), "data.max_bad_records": (0, _MOST_STEPS), "keep_checkpoints": (1, 1_000_000),
    "schedule.lr": (0, 1e38), "schedule.reference_batch": (0, _MOST_IMAGES), "schedule.factor": (0, 10**6),
    "alpha_ramp_to": (-1000, 1000), "optimizer.weight_decay": (0, 1000), "mixup": (0, 1000), "cutmix": (0, 1000),
    "wld.distill_weight_start": (0, 1), "wld.distill_weight_end": (0, 1), "wld.temperature": (0, 10**6),
    "wld.tolerance": (0, 10**6),
}  # fmt: skip
# Parts of paths below a folder that another key names.
_NAMES = ("data.name", "data.train_split", "data.eval_split", "data.test_split")
_ALPHA = "model.options.alpha"
_UNPRINTED = ("Cc", "Zl", "Zp")  # Unicode's control characters, and its ends of lines and paragraphs


def check_ranges(config: ml_collections.ConfigDict) -> None:
  """Checks the values of a config of a run whose keys and types are right.

  Raises:
    ValueError: naming the key, its value and what would be right.
  """
  values = flatten(config)
  for key, value in values.items():
    _check_value(key, value)
  for key, (least, most) in _RANGES.items():
    if key in values and not least <= values[key] <= most:
      raise ValueError(f"config.{key}={values[key]!r}: give a number from {least:,} to {most:,}")
  for key in _NAMES:
    if ".." in values[key].split("/") or values[key].startswith("/"):
      raise ValueError(f"config.{key}={values[key]!r}: give a name below the folder of the data, config.data.dir; "
                       "it must not lead out of it")
  for before, after in zip(config.schedule.boundaries, config.schedule.boundaries[1:], strict=False):
    if after < before:
      raise ValueError(f"config.schedule.boundaries={tuple(config.schedule.boundaries)}: give epochs in ascending "
                       "order")
  if not all(0 <= epoch <= _MOST_EPOCHS for epoch in config.schedule.boundaries):
    raise ValueError(f"config.schedule.boundaries={tuple(config.schedule.boundaries)}: give epochs from 0 to "
                     f"{_MOST_EPOCHS:,}")
  _check_together(config)


def check_total_steps(duration: str, steps: int) -> None:
  """Raises ValueError where `duration`, which is so many steps, is longer than a run can be."""
  if steps > _MOST_STEPS:
    raise ValueError(f"config.duration={duration!r} is {steps:,} steps; a run has {_MOST_STEPS:,} at most")


def unread(config: ml_collections.ConfigDict) -> dict[str, str]:
  """The keys of a run's config that other values keep from being read: key -> what it would take."""
  kind, chosen = config.schedule.kind, {}
  if kind != "step":
    chosen["schedule.boundaries"] = "schedule.kind='step'"
  if kind not in ("step", "exponential"):
    chosen["schedule.factor"] = "schedule.kind='step' or 'exponential'"
  if config.optimizer.kind != "rmsprop":
    chosen |= dict.fromkeys(("optimizer.rho", "optimizer.epsilon"), "optimizer.kind='rmsprop'")
  if flatten(config).get(_ALPHA) != "scheduled":
    chosen["alpha_ramp_to"] = f"{_ALPHA}='scheduled'"
  if not config.seeds:
    chosen["side_by_side"] = "several config.seeds"
  if config.task == "wld" and config.wld.distill == "printed":
    chosen["wld.temperature"] = "wld.distill='kl' or 'soft_cross_entropy'"
  return chosen


def _check_value(key: str, value: Any) -> None:
  """Refuses what no key can mean: NaN, infinities, texts that are none, numbers beyond 64 bits."""
  if isinstance(value, str):
    if len(value) > _LONGEST_TEXT:
      raise ValueError(f"config.{key}={value[:40]!r}...: a text of {len(value):,} characters; {_LONGEST_TEXT:,} is "
                       "the most")
    # Not `isprintable`: names of folders hold joiners and wide spaces in the scripts that need them.
    if any(unicodedata.category(c) in _UNPRINTED for c in value) and not key.startswith(OPEN_KEYS):
      raise ValueError(f"config.{key}={value!r:.200} has characters that cannot be printed, such as line ends")
  elif isinstance(value, tuple | list):
    if len(value) > _LONGEST_TUPLE:
      raise ValueError(f"config.{key}: {len(value):,} entries; {_LONGEST_TUPLE:,} are the most")
    for one in value:
      _check_value(key, one)
  elif isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"config.{key}={value}: give a finite number")
  elif isinstance(value, int) and not -(2**63) <= value < 2**63:
    raise ValueError(f"config.{key}: a whole number of {value.bit_length()} bits; 63 are the most")


def _check_together(config: ml_collections.ConfigDict) -> None:
  """Refuses combinations that cannot be meant."""
  data = config.data
  if data.test_transform and not data.test_split:
    raise ValueError(f"config.data.test_transform={data.test_transform!r} needs a config.data.test_split, and there "
                     "is none")
  if min(len(data.mean), len(data.std)) > 1 and len(data.mean) != len(data.std):
    raise ValueError(f"config.data.mean has {len(data.mean)} numbers, config.data.std {len(data.std)}; give one a "
                     "channel, or one for all")
  if min(data.std, default=1) <= 0:
    raise ValueError(f"config.data.std={tuple(data.std)}: give positive numbers")
  norm_groups(config, (config.batch_size,))
  if (config.get("mixup") or config.get("cutmix")) and config.batch_size < 2:
    raise ValueError("config.mixup and config.cutmix mix the images of a batch with each other, and "
                     f"config.batch_size={config.batch_size} leaves none to mix with; give 2 or more")
