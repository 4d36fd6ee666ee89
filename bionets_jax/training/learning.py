"""From a config to what is learned: the network, its losses and the weights that it starts from."""

from typing import Any, NamedTuple

import jax
import ml_collections
import optax

from bionets_jax import losses
from bionets_jax.counting import abstract_variables
from bionets_jax.data.pipeline import Pipeline
from bionets_jax.detection.create import create_detector
from bionets_jax.models import create_model
from bionets_jax.training import config as config_lib
from bionets_jax.training.detection_task import Detection
from bionets_jax.training.start import Start, load_start
from bionets_jax.training.tasks import Classification, Task, WeakLogitDistillation
from bionets_jax.training.teacher import Teacher, check_inheritance, load_teacher


class Learned(NamedTuple):
  """A task and what its model starts from, as `training.setup.Setup` has them."""

  task: Task
  inherited: Any = {}
  new_paths: list[str] = []
  origin: str = ""


def make_task(
    config: ml_collections.ConfigDict, pipeline: Pipeline, backbone: dict[str, Any], total_steps: int
) -> Learned:
  """The task of a config, whose values are checked.

  Args:
    config: of a run.
    pipeline: its data.
    backbone: arguments of `create_model` beside the name and the classes.
    total_steps: where schedules of the task end.

  Raises:
    ValueError, FileNotFoundError: saying what does not fit.
  """
  shared = dict(
      image_shape=pipeline.image_shape,
      alpha_schedule=optax.schedules.linear_schedule(0.0, config.alpha_ramp_to, max(total_steps, 1)))
  make = {"classification": _classification, "wld": _distillation, "detection": _detection}[config.task]
  return make(config, pipeline, backbone, total_steps, shared)


def _classification(config, pipeline, backbone, total, shared) -> Learned:
  del total
  model = create_model(config.model.name, pipeline.num_classes, **backbone)
  start = _start(config, pipeline, model)
  task = Classification(model, **_normalization(config, start), **_of_labels(config), **shared)
  return Learned(task, start.variables, start.new, _origin(start)) if start else Learned(task)


def _distillation(config, pipeline, backbone, total, shared) -> Learned:
  model = create_model(config.model.name, pipeline.num_classes, **backbone)
  teacher = load_teacher(
      config.teacher.weights, student=config.model.name, student_options=model_options(config),
      model_name=config.teacher.model, num_classes=pipeline.num_classes,
      image_shape=pipeline.image_shape, dtype=backbone["dtype"])
  new_paths = check_inheritance(
      teacher.variables, abstract_variables(model, pipeline.image_shape), (teacher.name, config.model.name))
  w = config.wld
  task = WeakLogitDistillation(
      model, teacher, **_normalization(config, teacher),
      distill_weight=losses.distill_weight_schedule(
          total, w.distill_weight_start, w.distill_weight_end, w.distill_weight_shape),
      temperature=w.temperature, tolerance=w.tolerance, distill=w.distill, hinge=w.hinge,
      **_of_labels(config), **shared)
  return Learned(task, teacher.variables, new_paths, _origin(teacher))


def _start(config, pipeline, network) -> Start | None:
  """What a network begins with that has no teacher; None for its initialisation."""
  if not config.model.weights:
    return None
  return load_start(config.model.weights, network, name=config.model.name, options=model_options(config),
                    image_shape=pipeline.image_shape)


def _normalization(config, source: Start | Teacher | None) -> dict[str, Any]:
  """The config's, where that is empty the one of what the network starts from."""
  return {key: getattr(config.data, key) or getattr(source.preprocessing, key) for key in ("mean", "std")}


def _origin(source: Start | Teacher) -> str:
  return f"{source.name} in {source.source}"


def _of_labels(config) -> dict[str, Any]:
  return dict(label_smoothing=config.label_smoothing, mixup=config.mixup, cutmix=config.cutmix,
              crop_average=config.crop_average)


def _detection(config, pipeline, backbone, total, shared) -> Learned:
  del total
  dtype = backbone.pop("dtype")
  model = create_detector(
      config.detector.kind, config.model.name, pipeline.num_classes, dtype=dtype, backbone_options=backbone,
      **detector_options(config))
  start = _start(config, pipeline, model.backbone)
  task = Detection(
      model, **_normalization(config, start), class_names=pipeline.class_names, frozen=config.frozen,
      train_norm=config.batch_norm != "frozen", difficult=config.data.difficult, **shared)
  if config.frozen:
    params = abstract_variables(model, pipeline.image_shape)["params"]
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    stay = sum(map(task.stays, paths))
    if stay in (0, len(paths)):
      found = "in every parameter's path, and nothing would be trained" if stay else "in no parameter's path"
      raise ValueError(f"config.frozen={config.frozen!r} is found {found}; one is "
                       f"{'/'.join(k.key for k in paths[0])}")
  if start is None:
    return Learned(task)
  return Learned(task, {key: {"backbone": value} for key, value in start.variables.items()},
                 [f"backbone/{path}" for path in start.new], _origin(start))


def model_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """`config.model.options` as arguments of create_model, JSON-serialisable.

  alpha is text there, so that the command line can make a number of 'learned' and the reverse.

  Raises:
    ValueError: for what the rest of the config decides.
  """
  options = _options(config.model.options, "config.model.options", {
      "num_classes": "the data", "dtype": "config.dtype", "batch_norm_groups": "config.batch_norm",
      "remat": "config.remat"})
  if isinstance(options.get("alpha"), str):
    try:
      options["alpha"] = float(options["alpha"])
    except ValueError:
      pass  # a word: the unit knows it or says what it knows
  if isinstance(options.get("fp_layers"), int):
    options["fp_layers"] = str(options["fp_layers"])  # the command line reads 101 as a number
  return options


def detector_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """`config.detector.options` as arguments of create_detector, JSON-serialisable.

  Raises:
    ValueError: for what the rest of the config decides.
  """
  return _options(config.detector.options, "config.detector.options", {
      "kind": "config.detector.kind", "backbone": "config.model.name", "backbone_options": "config.model.options",
      "num_classes": "the data", "dtype": "config.dtype"})


def _options(part: ml_collections.ConfigDict, name: str, elsewhere: dict[str, str]) -> dict[str, Any]:
  """A part of a config in plain types; ValueError for a key that is decided elsewhere, saying where."""
  options = config_lib.to_json(part)
  for key, place in elsewhere.items():
    if key in options:
      raise ValueError(f"{name}.{key}: leave it out, {place} decides")
  return options
