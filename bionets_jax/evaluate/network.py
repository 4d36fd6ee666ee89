"""A trained network for evaluation, from a workdir or a file, without its optimiser or teacher."""

import dataclasses
import glob
import os
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from bionets_jax import weights
from bionets_jax.counting import abstract_variables
from bionets_jax.models import create_model
from bionets_jax.training.setup import DTYPES, compute_dtype
from bionets_jax.training.summary import read_json
from bionets_jax.training.tasks import Classification
from bionets_jax.training.teacher import WEIGHT_FILE
from bionets_jax.weights.native import load_native
from bionets_jax.weights.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Weights:
  """What a file holds.

  Attributes:
    path: of the file.
    model: name of the network.
    options: arguments of create_model, besides classes and dtype.
    variables: {'params': ..., ...}; None for another library's file, which is read when the classes are
      known.
    preprocessing: mean and std of the network's input.
    class_names: in the order of the labels; () if the file does not say.
    channels: of its images; None if the file does not say.
    config: config.json of the run; {} if there is none.
  """

  path: str
  model: str
  options: Mapping[str, Any]
  variables: Mapping[str, Any] | None
  preprocessing: Preprocessing | None
  class_names: tuple[str, ...]
  channels: int | None
  config: Mapping[str, Any]


def read_weights(path: str, model: str = "", options: Mapping[str, Any] | None = None) -> Weights:
  """Reads a run's weights or another library's.

  Args:
    path: the workdir of a finished run, a .safetensors file that a run wrote, or with `model` a checkpoint
      in a layout that `weights.load_pretrained` knows.
    model: name of the network; needed for another library's file only.
    options: arguments of create_model for that file's network, besides classes and dtype.

  Raises:
    FileNotFoundError: there is no such file, or the run is not finished.
    ValueError: it is not what it should be, or not of this model.
  """
  if os.path.isdir(path):
    file = os.path.join(path, WEIGHT_FILE)
    if not os.path.isfile(file):
      raise FileNotFoundError(_why_none(path))
  else:
    file = path
  config = {}
  if os.path.basename(file) == WEIGHT_FILE:
    beside = os.path.join(os.path.dirname(file), "config.json")
    if os.path.isfile(beside):
      config = read_json(beside)
  if model and not os.path.isdir(path) and not _is_ours(path):
    if not os.path.isfile(path):
      raise FileNotFoundError(f"{path}: no such file or directory")
    return Weights(path, model, dict(options or {}), None, None, (), None, {})
  if options:
    raise ValueError(f"--model-option: {path} was written by a run and says itself what its network is")
  try:
    variables, about = load_native(file)
  except ValueError as error:
    hint = "; for another library's file add --model=NAME" if "not written by" in str(error) else ""
    raise ValueError(f"{error}{hint}") from error
  if model and model != about["model"]:
    raise ValueError(f"--model={model}: {file} holds {about['model']!r}")
  return Weights(
      file, about["model"], about["options"], variables, Preprocessing(**about["preprocessing"]),
      tuple(about["class_names"]), about["image_shape"][-1], config)


def make_task(
    found: Weights, *, num_classes: int, image_shape: tuple[int, int, int], dtype: str,
    crop_average: str,
) -> tuple[Classification, Any, Any, str]:
  """The network as a task, its parameters and other collections, and the name of its precision.

  Args:
    found: see `read_weights`.
    num_classes: of the data.
    image_shape: (H, W, C) of the network's input.
    dtype: of the computation: 'auto' or one of `DTYPES`.
    crop_average: 'softmax' or 'logits', for images that come as several crops.

  Raises:
    ValueError: if the weights do not fit the network or the images.
  """
  if found.channels not in (None, image_shape[-1]):
    raise ValueError(f"{found.path} was trained on images of {found.channels} channels, and the data has "
                     f"{image_shape[-1]}")
  dtype = compute_dtype(dtype)
  model = create_model(found.model, num_classes, dtype=DTYPES[dtype], **found.options)
  template = abstract_variables(model, image_shape)
  variables, preprocessing = found.variables, found.preprocessing
  if variables is None:
    pretrained = weights.load_pretrained(
        found.path, template, model=model, model_name=found.model)
    variables, preprocessing = pretrained.variables, pretrained.preprocessing
  _check_fit(found, variables, template)
  task = Classification(
      model, image_shape=image_shape, mean=preprocessing.mean, std=preprocessing.std,
      crop_average=crop_average)
  return task, variables["params"], {k: v for k, v in variables.items() if k != "params"}, dtype


def _check_fit(found: Weights, variables: Mapping[str, Any], template: Mapping[str, Any]) -> None:
  have = {k: tuple(v.shape) for k, v in flatten_dict(dict(variables), sep="/").items()}
  want = {k: tuple(v.shape) for k, v in flatten_dict(dict(template), sep="/").items()}
  off = sorted(k for k in have.keys() | want.keys() if have.get(k) != want.get(k))
  if off:
    shown = "\n  ".join(f"{k}: {have.get(k, 'absent')} in the file, {want.get(k, 'absent')} in the network"
                        for k in off[:5])
    raise ValueError(f"{found.path} does not fit {found.model}, {len(off)} of {len(want)} leaves:\n  {shown}")


def _is_ours(path: str) -> bool:
  try:
    load_native(path)
  except (ValueError, OSError):
    return False
  return True


def _why_none(path: str) -> str:
  """What to say of a folder without weights."""
  inside = sorted(
      entry.name for entry in os.scandir(path)
      if entry.is_dir() and os.path.isfile(os.path.join(entry.path, WEIGHT_FILE)))
  inside = inside or sorted(os.path.relpath(os.path.dirname(file), path)  # of a study, each run's seeds
                            for file in glob.glob(os.path.join(glob.escape(path), "*", "*", WEIGHT_FILE)))
  if inside:
    return f"{path} holds several runs; give one of them: {', '.join(inside)}"
  if os.path.isfile(os.path.join(path, "config.json")):
    return (f"{path} holds a run that is not finished: it has no {WEIGHT_FILE}, which a run writes when it "
            "is done. --mode=eval of launch.py evaluates its newest checkpoint")
  return f"{path} is not the workdir of a run: it has no {WEIGHT_FILE}"
