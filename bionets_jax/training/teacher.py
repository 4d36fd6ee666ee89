"""The base network that weak logit distillation starts from."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict

from bionets_jax import weights
from bionets_jax.counting import abstract_variables
from bionets_jax.models import base_name, base_options, create_model
from bionets_jax.surgery import inherit
from bionets_jax.weights.native import load_native
from bionets_jax.weights.preprocessing import Preprocessing

WEIGHT_FILE = "weights.safetensors"


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


def check_teacher_path(path: str) -> None:
  """Fails at once where there is nothing to load.

  Raises:
    ValueError: no path at all.
    FileNotFoundError: no such file, or a workdir whose run is not finished.
  """
  if not path:
    raise ValueError(
        "config.teacher.weights is empty: WLD needs a pretrained network. Give the workdir of a "
        "finished run, or a .safetensors or .pth file of torchvision or timm, e.g. "
        "--config.teacher.weights=resnet50.safetensors")
  if os.path.isdir(path):
    if not os.path.isfile(os.path.join(path, WEIGHT_FILE)):
      state = "holds a run that is not finished" if os.path.isfile(
          os.path.join(path, "config.json")) else "is not the workdir of a run"
      raise FileNotFoundError(
          f"config.teacher.weights={path!r} {state}: it has no {WEIGHT_FILE}, which a run writes "
          "when it is done")
  elif not os.path.isfile(path):
    raise FileNotFoundError(
        f"config.teacher.weights={path!r}: no such file or directory. Give the workdir of a "
        "finished run, or a .safetensors or .pth file of torchvision or timm")


def load_teacher(
    path: str, *, student: str, student_options: Mapping[str, Any], model_name: str,
    num_classes: int, image_shape: tuple[int, int, int], dtype: Any,
) -> Teacher:
  """Loads a teacher from a workdir or from another library's file.

  A workdir says what its network is. For another library's file it is the plain network under the student
  with the student's own options (flavour, groups, ...), or `model_name` where that is another.

  Args:
    path: workdir, or file in a layout that `weights.load_pretrained` knows.
    student: name of the student's model.
    student_options: its arguments of create_model, besides classes and dtype.
    model_name: name of the teacher's; '' for the plain network under the student.
    num_classes: of the data.
    image_shape: (H, W, C) of the data.
    dtype: of the teacher's computation; the student's, so that the two agree at alpha = 0.

  Raises:
    FileNotFoundError, ValueError: saying what does not fit.
  """
  check_teacher_path(path)
  if os.path.basename(path) == WEIGHT_FILE:
    path = os.path.dirname(path) or "."
  name = model_name or base_name(student)
  if os.path.isdir(path):
    variables, about = load_native(os.path.join(path, WEIGHT_FILE))
    if model_name and about["model"] != model_name:
      raise ValueError(f"config.teacher.model={model_name!r}, but {path} holds {about['model']!r}")
    name, options = about["model"], about["options"]
    if about["num_classes"] != num_classes or about["image_shape"][-1] != image_shape[-1]:
      raise ValueError(
          f"the teacher in {path} was trained for {about['num_classes']} classes on images of "
          f"{about['image_shape'][-1]} channels; the data has {num_classes} and {image_shape[-1]}")
    preprocessing = Preprocessing(**about["preprocessing"])
  else:
    options = base_options(student, student_options) if name == base_name(student) else {}
  model = create_model(name, num_classes, dtype=dtype, **options)
  if not os.path.isdir(path):
    try:
      pretrained = weights.load_pretrained(
          path, abstract_variables(model, image_shape), model=model, model_name=name)
    except ValueError as error:
      shared = ", ".join(f"{key}={value!r}" for key, value in options.items())
      note = f"\n{name} has the student's options here ({shared}); --config.model.options.NAME=VALUE " \
             "sets one for both"
      raise ValueError(f"config.teacher.weights: {error}{note if shared else ''}") from error
    variables, preprocessing = pretrained.variables, pretrained.preprocessing
  return Teacher(name, model, variables, preprocessing, path)


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
    shown = "\n  ".join(f"{path}: {shapes[0][path]} in the teacher, {shapes[1].get(path, 'absent')} in the "
                        "student" for path in result.unused[:10])
    raise ValueError(
        f"{names[1]} cannot start from {names[0]}: {len(result.unused)} of its {len(shapes[0])} leaves do not "
        f"fit\n  {shown}" + ("\n  ..." if len(result.unused) > 10 else "")
        + f"\nthe network under {names[1]} is {base_name(names[1])}")
  return list(result.new)
