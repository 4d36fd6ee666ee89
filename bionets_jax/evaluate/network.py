"""A trained network for evaluation, from a workdir, a file or an address, without its optimiser or teacher."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from bionets_jax import weights
from bionets_jax.models import create_model
from bionets_jax.training.setup import DTYPES, compute_dtype
from bionets_jax.training.summary import read_json
from bionets_jax.training.tasks import Classification
from bionets_jax.weights.native import WEIGHT_FILE


@dataclasses.dataclass(frozen=True)
class Weights:
  """What is evaluated.

  Attributes:
    loaded: the network and its weights.
    config: config.json of the run; {} if there is none.
  """

  loaded: weights.Loaded
  config: Mapping[str, Any]

  def transform(self) -> str:
    """How images of any size become the input of another library's network, as it publishes it."""
    prep = self.loaded.preprocessing
    if prep.resize <= 32:  # of small images as they are
      return ""
    return f"resize({prep.resize}, {prep.interpolation})|center_crop({prep.image_size})"


def read_weights(path: str, model: str = "", options: Mapping[str, Any] | None = None) -> Weights:
  """Reads a run's weights or another library's.

  Args:
    path: see `weights.load`; of a run its workdir, or the weight file in it.
    model: name of the network in another library's file; '' for what its keys say.
    options: arguments of create_model for that network, besides classes and dtype.

  Raises:
    FileNotFoundError: there is no such file, or the run is not finished.
    ValueError: it is not what it should be, or not of this model.
  """
  loaded = weights.load(path, model, **(options or {}))
  config = {}
  if os.path.basename(loaded.path) == WEIGHT_FILE:
    beside = os.path.join(os.path.dirname(loaded.path), "config.json")
    if os.path.isfile(beside):
      config = read_json(beside)
  return Weights(loaded, config)


def make_task(
    loaded: weights.Loaded, *, num_classes: int, image_shape: tuple[int, int, int], dtype: str,
    crop_average: str,
) -> tuple[Classification, Any, Any, str]:
  """The network as a task, its parameters and other collections, and the name of its precision.

  Args:
    loaded: the network.
    num_classes: of the data.
    image_shape: (H, W, C) of the network's input.
    dtype: of the computation: 'auto' or one of `DTYPES`.
    crop_average: 'softmax' or 'logits', for images that come as several crops.

  Raises:
    ValueError: if the data has other classes or channels.
  """
  have, want = (loaded.num_classes, loaded.image_shape[-1]), (num_classes, image_shape[-1])
  if have != want:
    raise ValueError(f"{loaded.path} is of a network for {have[0]} classes and images of {have[1]} channels; "
                     f"the data has {want[0]} and {want[1]}")
  dtype = compute_dtype(dtype)
  model = create_model(loaded.name, num_classes, dtype=DTYPES[dtype], **loaded.options)
  task = Classification(
      model, image_shape=image_shape, mean=loaded.preprocessing.mean, std=loaded.preprocessing.std,
      crop_average=crop_average)
  collections = {key: value for key, value in loaded.variables.items() if key != "params"}
  return task, loaded.variables["params"], collections, dtype
