"""The base network that weak logit distillation starts from."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict

from bionets_jax.models import base_name, base_options
from bionets_jax.surgery import inherit
from bionets_jax.weights.loading import load, load_as
from bionets_jax.weights.locate import check_source, is_remote, locate
from bionets_jax.weights.native import find_weights, is_native
from bionets_jax.weights.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A trained network.

  Attributes:
    name: of the model.
    model: the module.
    variables: {'params': ..., 'batch_stats': ...}.
    preprocessing: the input that it was trained on.
    source: the workdir or file.
  """

  name: str
  model: nn.Module
  variables: Mapping[str, Any]
  preprocessing: Preprocessing
  source: str


def check_weights_path(path: str, key: str = "config.teacher.weights") -> None:
  """Fails at once where there is nothing to load. Downloads nothing.

  Raises:
    ValueError: no path at all, or an address that cannot be one.
    FileNotFoundError: no such file, or a workdir whose run is not finished.
  """
  what = ("the workdir of a finished run, a file of torchvision, timm or Keras, or an address such as "
          "hf://timm/resnet50.tv_in1k or torchvision://ResNet50_Weights.IMAGENET1K_V1")
  if not path:
    raise ValueError(f"{key} is empty: WLD needs a pretrained network. Give {what}, e.g. "
                     f"--{key}=resnet50.safetensors")
  try:
    if is_remote(path):
      check_source(path)
    elif os.path.isdir(path):
      find_weights(path)
    elif not os.path.isfile(path):
      raise FileNotFoundError(f"no such file or directory. Give {what}")
  except (ValueError, FileNotFoundError) as error:
    raise type(error)(f"{key}={path!r}: {error}") from error


def load_teacher(
    path: str, *, student: str, student_options: Mapping[str, Any], model_name: str,
    num_classes: int, image_shape: tuple[int, int, int], dtype: Any,
) -> Teacher:
  """Loads a teacher from a workdir, from another library's file or from where that is published.

  A workdir says what its network is. For another library's file it is the plain network under the student
  with the student's own options (flavour, groups, ...), or `model_name` where that is another.

  Args:
    path: workdir, file or address, see `weights.load`.
    student: name of the student's model.
    student_options: its arguments of create_model, besides classes and dtype.
    model_name: name of the teacher's; '' for the plain network under the student.
    num_classes: of the data.
    image_shape: (H, W, C) of the data.
    dtype: of the teacher's computation; the student's, so that the two agree at alpha = 0.

  Raises:
    FileNotFoundError, ValueError: saying what does not fit.
  """
  check_weights_path(path)
  name, options = model_name or base_name(student), {}
  if name == base_name(student):
    options = base_options(student, student_options)
  note = ""
  try:
    located = locate(path)
    file = find_weights(located.path) if os.path.isdir(located.path) else located.path
    if is_native(file):
      loaded = load(file, model_name, dtype=dtype)
      have, want = (loaded.num_classes, loaded.image_shape[-1]), (num_classes, image_shape[-1])
      if have != want:
        raise ValueError(f"the teacher in {path} was trained for {have[0]} classes on images of {have[1]} "
                         f"channels; the data has {want[0]} and {want[1]}")
    else:
      if options:
        shared = ", ".join(f"{key}={value!r}" for key, value in options.items())
        note = f"\n{name} has the student's options here ({shared}); --config.model.options.NAME=VALUE " \
               "sets one for both"
      if located.name and (located.name != name or any(
          _plain(options.get(key)) != _plain(value) for key, value in located.options.items())):
        raise ValueError(f"{path} is {_in_words(located.name, located.options)}, and the teacher of {student!r} "
                         f"is to be {_in_words(name, options)}")
      loaded = load_as(
          located, file, name, options, num_classes=num_classes, channels=image_shape[-1], dtype=dtype)
  except ValueError as error:
    if "num_classes=" in str(error):
      note = f"\nthe data has {num_classes} classes, and a teacher has to have the same"
    raise ValueError(f"config.teacher.weights: {error}{note}") from error
  return Teacher(loaded.name, loaded.model, loaded.variables, loaded.preprocessing, path)


def _plain(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value


def _in_words(name: str, options: Mapping[str, Any]) -> str:
  return f"{name!r}" + (" with " if options else "") + ", ".join(f"{k}={v!r}" for k, v in options.items())


def check_inheritance(
    teacher: Mapping[str, Any], student: Mapping[str, Any], names: tuple[str, str]
) -> list[str]:
  """The student's paths that the teacher has not: what WLD adds.

  Args:
    teacher: its variables.
    student: its variables, or their shapes.
    names: of the two models, for the message.

  Raises:
    ValueError: if the teacher has a leaf that the student lacks or has in another shape.
  """
  result = inherit(teacher, student)
  if result.unused:
    shapes = [{"/".join(k): tuple(v.shape) for k, v in flatten_dict(t).items()} for t in (teacher, student)]
    shown = "\n  ".join(f"{path}: {shapes[0][path]} in the weights, {shapes[1].get(path, 'absent')} in the "
                        "model" for path in result.unused[:10])
    raise ValueError(
        f"{names[1]} cannot start from {names[0]}: {len(result.unused)} of its {len(shapes[0])} leaves do not "
        f"fit\n  {shown}" + ("\n  ..." if len(result.unused) > 10 else "")
        + f"\nthe network under {names[1]} is {base_name(names[1])}")
  return list(result.new)
