"""What a run's config holds, and the checks that turn a slip into a message.

A config file starts from `classification_config()`, `wld_config()` or `detection_config()` and changes values. Nothing
that follows from other values is stored: total steps and scaled learning rates are computed at run
time, so an override on the command line can leave nothing stale.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Any

import ml_collections

# Keyword arguments of `create_model` and of `create_detector`.
OPTION_KEYS = ("model.options", "detector.options")
# Free-form parts: these, and the paper's figures.
OPEN_KEYS = (*OPTION_KEYS, "paper")
# What may differ between a run and its continuation: where things are and how they are reported. That
# the data and the teacher are still the same is checked by what they hold.
NOT_THE_RUN = ("seeds", "side_by_side", "data.dir", "data.workers", "data.max_bad_records", "eval_batch_size", "remat", "log_every",
               "checkpoint_every", "keep_checkpoints", "keep_best", "keep_every", "nonfinite", "device",
               "compile_cache", "profile",
               "teacher.weights", "model.weights", "paper")


def classification_config() -> ml_collections.ConfigDict:
  """Supervised training of a classifier. Every key with its default."""
  return ml_collections.ConfigDict(dict(
      task="classification",
      seed=0,
      seeds=(),                    # several runs that differ in the seed, with mean and deviation; () is one
      side_by_side=0,              # that many of them in one program; 0: as many as fit, on a CPU one
      model=dict(
          name="",                 # one of bionets_jax.list_models()
          weights="",              # to start from: a workdir, a file, hf://... or torchvision://...
          options=dict(),          # further arguments of create_model
      ),
      data=dict(
          name="",                 # 'digits', 'folder', 'generated/NAME' or a set that is prepared (TFDS's too)
          dir="",                  # '': $TFDS_DATA_DIR, else ~/tensorflow_datasets
          train_split="train",
          eval_split="test",       # looked at every `eval_every`
          test_split="",           # looked at once, at the end; '' for none
          train_transform="",      # e.g. 'random_resized_crop(224)|flip'
          eval_transform="",       # e.g. 'resize(256)|center_crop(224)', or '...|ten_crop(224)'
          test_transform="",       # of test_split
          workers=-1,              # decoding processes; -1: by the cores at hand, 0: threads only
          max_bad_records=0,       # how many unreadable images are skipped, over all splits, before the run stops
          drop_remainder=True,     # False keeps the last, smaller batch of an epoch
          mean=(0.485, 0.456, 0.406),  # of images in 0..1; (): those of the weights
          std=(0.229, 0.224, 0.225),
      ),
      batch_size=256,              # images per optimiser step, over all devices
      eval_batch_size=0,           # 0: as batch_size
      accumulate=1,                # parts that a batch is computed in, one after the other
      remat="",                    # 'blocks': less memory, activations inside a block are computed twice
      duration="90 epochs",        # durations are 'N epochs' or 'N steps'
      optimizer=dict(
          kind="sgd",              # 'sgd' as PyTorch's, or 'rmsprop' as Keras'
          momentum=0.9,
          nesterov=False,          # sgd
          rho=0.9,                 # rmsprop: of the mean square
          epsilon=1e-7,            # rmsprop: outside the root
          weight_decay=1e-4,
          decay="all",             # 'all' parameters, or 'kernels': not norms, not biases
      ),
      schedule=dict(
          kind="step",             # 'step', 'exponential', 'cyclical25', 'cosine' or 'constant'
          lr=0.1,
          reference_batch=0,       # n: the rate is lr * batch_size / n; 0: lr as it is
          boundaries=(30, 60),     # 'step': epochs at which the rate is multiplied by factor
          factor=0.1,              # 'step': at each boundary; 'exponential': each epoch
          warmup="0 epochs",       # linear from 0
      ),
      label_smoothing=0.0,
      mixup=0.0,                   # parameter of its beta distribution; 0: off
      cutmix=0.0,                  # likewise; with both, each batch takes one of them
      crop_average="softmax",      # of an image's crops in evaluation: 'softmax' or 'logits'
      select="last",               # 'best': the weights with the lowest error on eval_split are kept
      batch_norm="global",         # or 'groups(n)': n parts of the batch with their own statistics
      ema_decay=0.0,               # 0: off; else parameters and statistics are averaged, and evaluated
      alpha_ramp_to=0.03,          # where units have alpha='scheduled': linear from 0 to this
      dtype="auto",                # 'float32', 'bfloat16', 'float16' (with loss scaling); auto:
                                   # bfloat16 on accelerators, float32 on a CPU
      nonfinite="stop",            # loss or gradients NaN or infinite: 'stop', or 'skip' the step (20 in a row stop)
      device="",                   # 'gpu' or 'tpu' refuses to run on anything else
      deterministic=False,         # the same bits on a GPU every time, with slower algorithms; a CPU always has them
      compile_cache="auto",        # compiled programs on disk: 'auto' (not on a CPU), 'off' or a folder
      profile="",                  # 'START:COUNT': these steps are traced into WORKDIR/profile
      log_every="50 steps",
      eval_every="1 epochs",
      checkpoint_every="1 epochs",
      keep_checkpoints=2,          # that many of the newest
      keep_best=0,                 # and that many with the lowest error on eval_split so far
      keep_every="",               # and one of each such period, e.g. '10 epochs'; '' for none
      paper=dict(),                # the paper's figures for this row, for the summary
  ))


def wld_config() -> ml_collections.ConfigDict:
  """Weak logit distillation: as classification, with a teacher that the student starts from."""
  config = classification_config()
  config.task = "wld"
  config.data.mean = ()
  config.data.std = ()
  config.teacher = ml_collections.ConfigDict(dict(
      weights="",                  # a workdir, a file of another library, hf://... or torchvision://...
      model="",                    # '': the plain network under the student, with its options
  ))
  config.wld = ml_collections.ConfigDict(dict(
      distill_weight_start=0.9,    # lambda
      distill_weight_end=0.1,
      distill_weight_shape="linear",
      temperature=4.0,             # tau; not given in the paper
      tolerance=0.005,             # e
      distill="kl",
      hinge="batch",
  ))
  return config


def detection_config() -> ml_collections.ConfigDict:
  """A detector around a backbone, `config.model`: as classification, without what is about labels of images."""
  config = classification_config()
  config.task = "detection"
  for key in ("label_smoothing", "mixup", "cutmix", "crop_average"):
    del config[key]
  config.detector = ml_collections.ConfigDict(dict(
      kind="",                     # 'retinanet' or 'faster_rcnn'
      options=dict(),              # further arguments of create_detector
  ))
  config.frozen = "^backbone/(stem|stage1)"  # parameters that stay as they are, by their path; '' for none
  config.batch_norm = "frozen"     # the backbone's statistics stay; or 'global', 'groups(n)' as elsewhere
  config.data.difficult = False    # whether objects that are marked as difficult are to be found in training
  return config


_TEMPLATES = {"classification": classification_config, "wld": wld_config, "detection": detection_config}


def check_config(config: ml_collections.ConfigDict) -> None:
  """Refuses a config with a key that nothing reads, a missing key or a value of the wrong type.

  Raises:
    ValueError: naming the key, and what would be right.
  """
  task = config.get("task", "")
  if not isinstance(task, str) or task not in _TEMPLATES:
    raise ValueError(f"config.task={task!r}{nearest(task, _TEMPLATES)}; known: {', '.join(_TEMPLATES)}")
  known = flatten(_TEMPLATES[task]())
  given = flatten(config)
  for key, value in given.items():
    if within(key, OPEN_KEYS):
      continue
    if key not in known:
      hint = nearest(key, known)
      owners = [repr(other) for other, template in _TEMPLATES.items() if key in flatten(template())]
      if not hint and owners:
        hint = f" (it belongs to task {' or '.join(owners)})"
      raise ValueError(f"config.{key}: nothing reads this key{hint}")
    _check_type(key, value, known[key])
  for key in known:
    if key not in given and not within(key, OPEN_KEYS):
      raise ValueError(f"config.{key} is missing; start from {_TEMPLATES[task].__name__}()")


def _check_type(key: str, value: Any, example: Any) -> None:
  ok = isinstance(value, type(example)) or (isinstance(example, float) and isinstance(value, int))
  if isinstance(example, tuple):
    ok = isinstance(value, tuple | list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in value)
  if not ok or (isinstance(value, bool) != isinstance(example, bool)):
    of = " of numbers" if isinstance(example, tuple) else ""
    raise ValueError(f"config.{key}={value!r:.200} should be of type {type(example).__name__}{of}")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
  """'a.b.c' -> leaf. An empty dict is a leaf of its own."""
  if not isinstance(config, ml_collections.ConfigDict | dict):
    return {prefix: config}
  out = {}
  for key, value in config.items():
    out.update(flatten(value, f"{prefix}.{key}" if prefix else key))
  return out or ({prefix: {}} if prefix else {})


def within(key: str, parts: Iterable[str]) -> bool:
  """Whether 'a.b.c' is one of the parts, or in one: 'a.b.c', 'a.b' or 'a'."""
  return any(key == part or key.startswith(f"{part}.") for part in parts)


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """As plain dicts and lists, the form that config.json has."""
  def plain(x):
    if isinstance(x, dict):
      return {k: plain(v) for k, v in x.items()}
    return [plain(v) for v in x] if isinstance(x, tuple | list) else x
  return plain(config.to_dict())


def differences(config: ml_collections.ConfigDict, stored: dict[str, Any]) -> list[str]:
  """'key: stored -> now' for every value that makes this another run than the stored one."""
  now, then = identity(to_json(config)), identity(stored)
  return [f"{key}: {then.get(key, '(none)')!r} -> {now.get(key, '(none)')!r}"
          for key in sorted(now.keys() | then.keys())
          if now.get(key, "(none)") != then.get(key, "(none)")]


def identity(stored: dict[str, Any]) -> dict[str, Any]:
  """'a.b.c' -> leaf of all that makes a run what it is, of a config.json.

  A key that is newer than the file has its default: that is what the run did.
  """
  task = stored.get("task")
  template = _TEMPLATES[task]() if isinstance(task, str) and task in _TEMPLATES else {}
  defaults = flatten(to_json(template)) if template else {}
  whole = {k: v for k, v in defaults.items() if k not in OPEN_KEYS} | flatten(stored)
  return {key: value for key, value in whole.items()
          if not within(key, NOT_THE_RUN)}


def nearest(word: str, known) -> str:
  near = difflib.get_close_matches(str(word), list(known), n=3, cutoff=0.6)
  return f" (did you mean {', '.join(map(repr, near))}?)" if near else ""


def duration_in_steps(text: str, steps_per_epoch: int, key: str) -> int:
  """'N epochs' or 'N steps' as a number of steps, at least 0. N may have decimals for epochs.

  Raises:
    ValueError: for anything else, naming `key`.
  """
  match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*(epochs?|steps?)\s*", text)
  if not match or (match[2].startswith("step") and "." in match[1]):
    raise ValueError(f"config.{key}={text!r}: give a duration such as '90 epochs' or '500 steps'")
  number = float(match[1])
  return round(number * steps_per_epoch) if match[2].startswith("epoch") else int(number)


def norm_groups(config: ml_collections.ConfigDict, batch_sizes: tuple[int, ...]) -> int:
  """`batch_norm_groups` of a config; 1 where detection leaves the statistics alone."""
  frozen = config.task == "detection" and config.batch_norm == "frozen"
  return batch_norm_groups("global" if frozen else config.batch_norm, batch_sizes, config.accumulate)


def batch_norm_groups(text: str, batch_sizes: tuple[int, ...], accumulate: int) -> int:
  """The number of groups that 'global' or 'groups(n)' stands for, checked against the batches.

  Raises:
    ValueError: for another text, or if a batch does not divide into accumulate * n parts.
  """
  match = re.fullmatch(r"groups\((\d+)\)", text)
  if text != "global" and (not match or int(match[1]) < 1):
    raise ValueError(f"config.batch_norm={text!r}: give 'global' or 'groups(n)', e.g. 'groups(8)'")
  groups = int(match[1]) if match else 1
  if accumulate < 1:
    raise ValueError(f"config.accumulate={accumulate}: give 1 or more")
  for size in batch_sizes:
    if size % (groups * accumulate):
      raise ValueError(
          f"a batch of {size} does not divide into config.accumulate={accumulate} parts of "
          f"{groups} BatchNorm groups each; make config.batch_size a multiple of "
          f"{groups * accumulate}" + ("" if size == batch_sizes[0] else
          ", or drop the last, smaller batch with config.data.drop_remainder=True"))
  return groups
