"""From a config to everything a run needs. Whatever can be wrong with a config comes out here."""

import dataclasses
import functools
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from bionets_jax import losses
from bionets_jax.data.pipeline import Pipeline, make_pipeline
from bionets_jax.detection.create import create_detector
from bionets_jax.models import create_model
from bionets_jax.models.common import REMATS
from bionets_jax.training import config as config_lib
from bionets_jax.training.compile_cache import check_compile_cache, use_compile_cache
from bionets_jax.training.devices import check_platform, make_mesh
from bionets_jax.training.keeping import Keep, keep_of
from bionets_jax.training.learning import detector_options, make_task, model_options
from bionets_jax.training.mixing import check_mixing
from bionets_jax.training.nonfinite import GIVE_UP
from bionets_jax.training.optimizers import make_optimizer, make_schedule
from bionets_jax.training.profiling import Window, parse_window
from bionets_jax.training.ranges import check_ranges, check_total_steps
from bionets_jax.training.state import TrainState, make_init
from bionets_jax.training.tasks import CROP_AVERAGES, Task
from bionets_jax.training.teacher import check_weights_path

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclasses.dataclass(frozen=True)
class Setup:
  """A run before its first step.

  Attributes:
    mesh: all devices.
    pipeline: the data.
    task: what is learned.
    init: (rng, inherited) -> the state before the first step.
    inherited: variables that the model starts from, {} for none.
    new_paths: of the model's variables, those that `inherited` lacks.
    origin: of `inherited`, for a reader: 'resnet50 in resnet50.pth'.
    optimizer, schedule: optax.
    total_steps, log_every, eval_every, checkpoint_every: in steps.
    keep: which checkpoints are kept.
    dtype: of the computation, by name.
    compile_cache: folder of the compiled programs, '' for none.
    profile: the steps that are traced, None for none.
  """

  mesh: Mesh
  pipeline: Pipeline
  task: Task
  init: Callable[[jax.Array, Any], TrainState]
  inherited: Any
  new_paths: list[str]
  origin: str
  optimizer: optax.GradientTransformation
  schedule: Callable
  total_steps: int
  log_every: int
  eval_every: int
  checkpoint_every: int
  keep: Keep
  dtype: str
  compile_cache: str
  profile: Window | None

  def inputs(self) -> dict[str, Any]:
    """What a run reads from outside its config, so that it goes on with the same."""
    found = {"train_examples": self.pipeline.num_train, "eval_examples": self.pipeline.num_eval,
             "classes": self.pipeline.num_classes, **self.pipeline.fingerprint()}
    if self.pipeline.num_test:
      found["test_examples"] = self.pipeline.num_test
    if self.inherited:
      found["teacher_crc32" if self.task.frozen else "weights_crc32"] = functools.reduce(
          lambda crc, leaf: zlib.crc32(np.ascontiguousarray(leaf), crc),
          jax.tree.leaves(self.inherited), 0)
    return found


def make_setup(
    config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None,
    like: Setup | None = None,
) -> Setup:
  """Checks a config and builds what it describes; the cheap checks come first.

  Args:
    config: see `training.config`.
    devices: to run on; default all of them.
    like: of a config that differs in the seed and the teacher alone; its data are shared.

  Raises:
    ValueError, FileNotFoundError, RuntimeError: saying what is wrong and what would be right.
  """
  check_values(config)
  check_platform(config.device)
  compile_cache = use_compile_cache(config.compile_cache)
  if config.task == "wld":
    check_weights_path(config.teacher.weights)
  elif config.model.weights:
    check_weights_path(config.model.weights, "config.model.weights")

  mesh = like.mesh if like else make_mesh(devices)
  data = config.data
  pipeline = like.pipeline.with_seed(config.seed) if like else make_pipeline(
      name=data.name, dir=data.dir, train_split=data.train_split, eval_split=data.eval_split,
      test_split=data.test_split, train_transform=data.train_transform,
      eval_transform=data.eval_transform, test_transform=data.test_transform, workers=data.workers,
      drop_remainder=data.drop_remainder, max_bad_records=data.max_bad_records, batch_size=config.batch_size,
      eval_batch_size=config.eval_batch_size or config.batch_size, seed=config.seed, mesh=mesh)
  if ("boxes" in pipeline.abstract_batches()[0]) != (config.task == "detection"):
    raise ValueError(f"config.data.name={data.name!r} has {'labels' if config.task == 'detection' else 'boxes'}, and "
                     f"config.task={config.task!r} does not learn from these")
  groups = config_lib.norm_groups(config, pipeline.batch_sizes())
  dtype = compute_dtype(config.dtype)
  total, log_every, eval_every, checkpoint_every = _durations(config, pipeline.steps_per_epoch)
  schedule = make_schedule(
      config.schedule, batch_size=config.batch_size, steps_per_epoch=pipeline.steps_per_epoch,
      total_steps=total)
  backbone = dict(dtype=DTYPES[dtype], batch_norm_groups=groups, remat=config.remat, **model_options(config))
  learned = make_task(config, pipeline, backbone, total)
  optimizer = make_optimizer(config.optimizer, schedule, learned.task.stays)
  init = make_init(learned.task, optimizer, ema=config.ema_decay > 0, select_best=config.select == "best",
                   loss_scaling=dtype == "float16")
  return Setup(
      mesh=mesh, pipeline=pipeline, task=learned.task, init=init, inherited=learned.inherited,
      new_paths=learned.new_paths, origin=learned.origin, optimizer=optimizer, schedule=schedule,
      total_steps=total, log_every=log_every, eval_every=eval_every, checkpoint_every=checkpoint_every,
      keep=keep_of(config, pipeline.steps_per_epoch), dtype=dtype, compile_cache=compile_cache,
      profile=parse_window(config.profile, total))


def check_values(config: ml_collections.ConfigDict) -> None:
  """Checks everything about a config that needs neither its data nor its teacher.

  Raises:
    ValueError: naming the key and what would be right.
  """
  config_lib.check_config(config)
  check_ranges(config)
  if not config.model.name:
    raise ValueError("config.model.name is empty; give one of bionets_jax.list_models()")
  options = model_options(config)
  try:
    create_model(config.model.name, **options)
  except (ValueError, TypeError) as error:  # TypeError: an option of a unit that is compared or called
    raise ValueError(f"config.model: {error}" + (f", among {options}" if isinstance(error, TypeError) else "")) from error
  compute_dtype(config.dtype)
  parse_window(config.profile, 2**63)
  check_compile_cache(config.compile_cache)
  _durations(config, steps_per_epoch=1000)
  keep_of(config, steps_per_epoch=1000)
  make_optimizer(config.optimizer, make_schedule(
      config.schedule, batch_size=1, steps_per_epoch=1, total_steps=1))
  for key, words in (("select", ("last", "best")), ("crop_average", CROP_AVERAGES), ("remat", REMATS),
                     ("nonfinite", tuple(GIVE_UP))):
    if config.get(key, words[0]) not in words:
      raise ValueError(f"config.{key}={config[key]!r}: give {' or '.join(map(repr, words))}")
  check_seeds(config)
  check_mixing(config.get("mixup", 0.0), config.get("cutmix", 0.0))
  for key in ("ema_decay", "label_smoothing"):
    if not 0 <= config.get(key, 0.0) < 1:
      raise ValueError(f"config.{key}={config[key]}: give a number from 0 to below 1")
  if config.task == "detection":
    _check_detector(config, options)
  if config.task != "wld":
    if not config.model.weights and not (config.data.mean and config.data.std):
      raise ValueError("config.data.mean and config.data.std are empty, and there is neither a teacher nor "
                       "config.model.weights to take them from")
    return
  if config.model.weights:
    raise ValueError("config.model.weights: WLD starts from its teacher, config.teacher.weights; leave it empty")
  one = jnp.zeros((1, 2))
  try:
    losses.wld_loss(one, one, jnp.zeros(1, int), distill_weight=0.5, temperature=config.wld.temperature,
                    tolerance=config.wld.tolerance, distill=config.wld.distill, hinge=config.wld.hinge)
    losses.distill_weight_schedule(1, shape=config.wld.distill_weight_shape)
  except ValueError as error:
    raise ValueError(f"config.wld: {error}") from error


def _check_detector(config: ml_collections.ConfigDict, options: dict[str, Any]) -> None:
  """Checks what only detection has."""
  if not config.model.weights and (config.frozen or config.batch_norm == "frozen"):
    raise ValueError(
        f"config.frozen={config.frozen!r} and config.batch_norm={config.batch_norm!r} keep what a backbone has "
        "learned, and config.model.weights is empty; give a workdir, a file or torchvision://..., or train all of it "
        "with config.frozen='' and config.batch_norm='global'")
  of_detector = detector_options(config)
  try:
    create_detector(config.detector.kind, config.model.name, backbone_options=options, **of_detector)
  except (ValueError, TypeError) as error:
    raise ValueError(f"config.detector: {error}") from error
  try:
    re.compile(config.frozen)
  except re.error as error:
    raise ValueError(f"config.frozen={config.frozen!r} is no regular expression: {error}") from error


def check_seeds(config: ml_collections.ConfigDict) -> None:
  """Checks `seed`, `seeds` and `side_by_side`."""
  for seed in (config.seed, *config.seeds):
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
      raise ValueError(f"config.seeds={tuple(config.seeds)}, config.seed={config.seed}: seeds are whole "
                       "numbers from 0 to below 2**32")
  if len(set(config.seeds)) != len(config.seeds):
    raise ValueError(f"config.seeds={tuple(config.seeds)} names a seed twice")
  if config.seeds and config.seed:
    raise ValueError(f"config.seed={config.seed} beside config.seeds={tuple(config.seeds)}: give one of them")
  if config.side_by_side < 0:
    raise ValueError(f"config.side_by_side={config.side_by_side}: give 0 for as many as fit, or how many")


def _durations(config: ml_collections.ConfigDict, steps_per_epoch: int) -> tuple[int, int, int, int]:
  """duration, log_every, eval_every and checkpoint_every in steps."""
  out = [config_lib.duration_in_steps(getattr(config, key), steps_per_epoch, key)
         for key in ("duration", "log_every", "eval_every", "checkpoint_every")]
  check_total_steps(config.duration, out[0])
  for key, steps in zip(("log_every", "eval_every", "checkpoint_every"), out[1:], strict=True):
    if not steps:
      raise ValueError(f"config.{key}={config[key]!r} is less than a step; for 'never but at the end' "
                       "give a long time")
  return tuple(out)


def compute_dtype(name: str) -> str:
  """'auto' is bfloat16 on accelerators and float32 on a CPU.

  Raises:
    ValueError: for a name that is none of these.
  """
  if name == "auto":
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
  if name not in DTYPES:
    raise ValueError(f"config.dtype={name!r}: give 'auto', {' or '.join(map(repr, DTYPES))}")
  return name
