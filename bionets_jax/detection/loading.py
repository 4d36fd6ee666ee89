"""A trained detector with its weights, from the workdir of a finished run."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from bionets_jax.data.grammar import parse_transforms
from bionets_jax.data.letterbox import Letterbox
from bionets_jax.detection.create import create_detector
from bionets_jax.models import create_model
from bionets_jax.weights.detectors import is_detector
from bionets_jax.weights.loading import build_own, of_few_blocks
from bionets_jax.weights.native import find_weights, load_native
from bionets_jax.weights.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class LoadedDetector:
  """A detector, its weights and what belongs to them.

  Attributes:
    model: the module; `model.apply(variables, images, sizes, method='detect')` gives `Detections`.
    kind, options: `create_detector(kind, num_classes=num_classes, **options)` is the model, but for its dtype.
    variables: {'params': ..., 'batch_stats': ...}, trees of NumPy arrays.
    class_names: in the order of the labels; numbers if the file does not say.
    preprocessing: mean and std of its images.
    letterbox: how images of any size are made to fit.
    path: the file that was read.
  """

  model: nn.Module
  kind: str
  options: Mapping[str, Any]
  num_classes: int
  variables: Mapping[str, Any]
  class_names: tuple[str, ...]
  preprocessing: Preprocessing
  letterbox: Letterbox
  path: str


def load(source: str | os.PathLike, *, dtype: Any = None) -> LoadedDetector:
  """Loads the detector that a run has trained.

  Args:
    source: the workdir of a finished run, or the weight file in it.
    dtype: of the model's computation.

  Raises:
    FileNotFoundError: there is nothing there, or the run is not finished.
    ValueError: the file is damaged, or not of a detector.
  """
  source = os.fspath(source)
  path = find_weights(source) if os.path.isdir(source) else source
  variables, about = load_native(path)
  if not is_detector(about):
    raise ValueError(
        f"{path} holds a network for classification ({about['model']}); bionets_jax.weights.load loads it")

  def create(kind, *, backbone, backbone_options, **options):
    of_few_blocks(create_model(backbone, **backbone_options), variables)
    return create_detector(kind, backbone, backbone_options=backbone_options, dtype=dtype, **options)

  model, preprocessing = build_own(path, variables, about, create)
  number = about["num_classes"]
  return LoadedDetector(
      model, about["model"], about["options"], number, variables,
      tuple(about["class_names"]) or tuple(map(str, range(number))), preprocessing,
      _letterbox(path, about.get("eval_transform")), path)


def _letterbox(path: str, text: Any) -> Letterbox:
  try:
    letterbox, = parse_transforms(text, {"letterbox": Letterbox})
  except (ValueError, AttributeError) as error:
    raise ValueError(f"{path}: damaged weight file (its eval_transform {text!r:.60} is no letterbox)") from error
  return letterbox
