"""`create_detector`: a detector on any backbone that has features of the strides that it needs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bionets_jax.detection.detector import LAYOUTS, Detector
from bionets_jax.detection.faster_rcnn import FasterRCNN
from bionets_jax.detection.retinanet import RetinaNet
from bionets_jax.models import create_model, nearest
from bionets_jax.models.fields import check_fields

_KINDS: dict[str, type[Detector]] = {"faster_rcnn": FasterRCNN, "retinanet": RetinaNet}
DETECTORS = tuple(_KINDS)
_SET_HERE = ("backbone", "num_classes", "layout", "stages", "dtype", "parent", "name")
_SHARES = ("least", "nms_threshold", "proposal_threshold")
_SIDE = 256  # of the image that shows a backbone's strides


def create_detector(
    kind: str, backbone: str = "resnet50", num_classes: int = 20, *, layout: str = "mmdetection", dtype: Any = None,
    backbone_options: Mapping[str, Any] | None = None, **overrides: Any,
) -> Detector:
  """Builds a detector.

  Args:
    kind: one of `DETECTORS`.
    backbone: one of `list_models()`. Of each stride the last stage with it is used.
    num_classes: without the background.
    layout: 'mmdetection' or 'torchvision', see `Detector`.
    dtype: of the computation.
    backbone_options: of `create_model`.
    **overrides: fields of the detector, such as `strides=(4, 8, 16)`, `channels=64` and `anchor_scale=2.0` for small
      images.

  Raises:
    ValueError: for an unknown kind, backbone, layout or override, with those that come near; for a value of the wrong
      type or out of range; for a backbone without a stage of one of the strides.
  """
  if kind not in _KINDS:
    raise ValueError(f"unknown detector {kind!r}{nearest(kind, DETECTORS)}; known: {', '.join(DETECTORS)}")
  if layout not in LAYOUTS:
    raise ValueError(f"layout={layout!r}: give {' or '.join(map(repr, LAYOUTS))}")
  known = [field.name for field in dataclasses.fields(_KINDS[kind]) if field.name not in _SET_HERE]
  for key in overrides:
    if key not in known:
      raise ValueError(f"{kind!r} has no option {key!r}{nearest(key, known)}; it has {', '.join(known)}")
  backbone_options = dict(backbone_options or {})
  for key in ("num_classes", "dtype"):
    if key in backbone_options:
      raise ValueError(f"backbone_options: {key} is the detector's to say: create_detector(..., {key}=)")
  network = create_model(backbone, 0, dtype=dtype, **backbone_options)
  detector = _KINDS[kind](network, num_classes, layout=layout, dtype=dtype, **overrides)
  check_fields(detector, ("num_classes", *overrides))
  if num_classes < 1:
    raise ValueError(f"num_classes={num_classes}: give 1 or more; the background is none of them")
  if list(detector.strides) != sorted(set(detector.strides)) or not detector.strides:
    raise ValueError(f"strides={tuple(detector.strides)}: give one or more, rising")
  if not detector.anchor_scale > 0:
    raise ValueError(f"anchor_scale={detector.anchor_scale}: give more than 0")
  for key in _SHARES:
    if overrides.get(key, 0) > 1:
      raise ValueError(f"{key}={overrides[key]}: give a number from 0 to 1")
  stages = find_stages(network, detector.strides, backbone)
  return detector.clone(stages=stages, strides=tuple(detector.strides))


def find_stages(backbone: nn.Module, strides: Sequence[int], name: str) -> tuple[str, ...]:
  """The backbone's endpoints 'stage...' of these strides, of each the last.

  Raises:
    ValueError: if it has none of one of them, saying which it has; `name` is what it is called.
  """
  images = jax.ShapeDtypeStruct((1, _SIDE, _SIDE, 3), jnp.float32)
  (_, found), _ = jax.eval_shape(
      lambda x: backbone.init_with_output(jax.random.key(0), x, train=False, endpoints=True), images)
  has = {_SIDE // x.shape[1]: stage for stage, x in found.items() if stage.startswith("stage")}
  for stride in strides:
    if stride not in has:
      of = ", ".join(f"{stage} {_SIDE // found[stage].shape[1]}" for stage in found if stage.startswith("stage"))
      raise ValueError(f"{name!r} has no stage of stride {stride}; its strides are {of}. Take another backbone or, as "
                       "far as images are small enough, strides= of these")
  return tuple(has[stride] for stride in strides)
