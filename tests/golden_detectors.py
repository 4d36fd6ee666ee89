"""Narrow detectors with the weights of tests/fixtures/make_detection_fixtures.py, in files like torchvision's."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from fixtures.golden_weights import golden_tensor
from safetensors.numpy import save_file

from bionets_jax.counting import abstract_variables
from bionets_jax.detection.create import create_detector
from bionets_jax.detection.from_torchvision import to_torchvision
from bionets_jax.detection.types import Objects

GOLDEN = np.load(pathlib.Path(__file__).parent / "fixtures" / "detection.npz")
SIZE = (128, 192)
SIZES = jnp.array([SIZE, (100, 150)], jnp.float32)
# Faster R-CNN's labels are less by one than torchvision's, RetinaNet's are not.
OBJECTS = Objects(
    jnp.array([[[5.0, 5, 60, 70], [40, 20, 100, 90], [0, 0, 0, 0]], [[30, 30, 50, 55], [0, 0, 0, 0], [0, 0, 0, 0]]]),
    jnp.array([[1, 3, 0], [4, 0, 0]]), jnp.array([[1, 1, 0], [1, 0, 0]], bool))
make = functools.partial(
    create_detector, backbone="resnet18", num_classes=5, backbone_options={"stage_sizes": (1, 1, 1, 1)})
_WIDTHS = {"retinanet": {}, "faster_rcnn": {"channels": 64, "width": 96}}
_SCALES = {
    "retinanet": {"cls_logits.weight": 0.25, "bbox_reg.weight": 0.25},
    "faster_rcnn": {"bbox_pred.weight": 0.25, "rpn.head.cls_logits.weight": 0.25, "cls_score.weight": 0.125}}


@functools.cache
def golden_state(kind: str) -> dict[str, np.ndarray]:
  """The fixture's `state_dict`."""
  detector = make(kind, layout="torchvision", **_WIDTHS[kind])
  shapes = abstract_variables(detector, (64, 64, 3))
  state = to_torchvision(detector, jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes))
  scales = {key: scale for key in state for end, scale in _SCALES[kind].items() if key.endswith(end)}
  values = {key: golden_tensor(key, value.shape) for key, value in state.items()}
  return {key: np.asarray(scales.get(key, 1) * value, value.dtype) for key, value in values.items()}


def knowing(**known):
  """Within it, the backbone and methods of a detector give what is known: nothing is traced and compiled twice.

  Args:
    **known: by the method's name, and 'backbone'.
  """
  def intercept(call, args, kwargs, context):
    name = context.method_name
    if name == "__call__" and context.module.name == "backbone":
      name = "backbone"
    elif context.module.name:
      return call(*args, **kwargs)
    return known[name] if name in known else call(*args, **kwargs)

  return nn.intercept_methods(intercept)


def golden_file(kind: str, folder: pathlib.Path) -> pathlib.Path:
  path = folder / f"{kind}.safetensors"
  save_file(golden_state(kind), path)
  return path
