"""The weights that a supervised run starts from: fine-tuning."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from bionets_jax.counting import abstract_variables
from bionets_jax.models import base_name, base_options
from bionets_jax.training.teacher import check_inheritance, check_weights_path
from bionets_jax.weights.loading import load
from bionets_jax.weights.locate import locate
from bionets_jax.weights.native import is_native
from bionets_jax.weights.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Start:
  """What a run takes over.

  Attributes:
    name: of the network that the weights are of.
    variables: {'params': ..., 'batch_stats': ...}; without the head where it has other classes.
    new: paths of the model's variables that are not among them.
    preprocessing: the input that the weights were trained on.
    source: workdir, file or address.
  """

  name: str
  variables: Mapping[str, Any]
  new: list[str]
  preprocessing: Preprocessing
  source: str


def load_start(
    source: str, model: nn.Module, *, name: str, options: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> Start:
  """Loads what a model starts from: weights of the same network, or of the plain one under it.

  Units that the weights lack (an IC layer's W') keep their initial values, and so does a head of another
  number of classes. Anything else has to fit.

  Args:
    source: see `weights.load`.
    model: the module that is trained.
    name, options: it is `create_model(name, ..., **options)`.
    image_shape: (H, W, C) of the data.

  Raises:
    FileNotFoundError, ValueError: saying what does not fit.
  """
  check_weights_path(source, "config.model.weights")
  try:
    path = locate(source).path
    if os.path.isdir(path) or is_native(path):
      loaded = load(path)
    else:
      loaded = load(source, base_name(name), **base_options(name, options))
  except ValueError as error:
    raise ValueError(f"config.model.weights: {error}") from error
  variables = {key: dict(value) for key, value in loaded.variables.items()}
  template = abstract_variables(model, image_shape)
  if loaded.num_classes != getattr(model, "num_classes", None):
    variables["params"].pop("head", None)
  try:
    new = check_inheritance(variables, template, (loaded.name, name))
  except ValueError as error:
    raise ValueError(f"config.model.weights={source!r}: {error}") from error
  return Start(loaded.name, variables, new, loaded.preprocessing, source)
