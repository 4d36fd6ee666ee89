"""torchvision's Faster R-CNN and RetinaNet with ResNets: their weights as detectors here, and back."""

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from bionets_jax.counting import abstract_variables
from bionets_jax.detection.create import create_detector
from bionets_jax.detection.detector import Detector
from bionets_jax.detection.faster_rcnn import FasterRCNN
from bionets_jax.detection.retinanet import RetinaNet
from bionets_jax.weights import layouts
from bionets_jax.weights import preprocessing as prep
from bionets_jax.weights.family import Layout
from bionets_jax.weights.files import read_tensors
from bionets_jax.weights.guess import guess_network
from bionets_jax.weights.pretrained import fill

_BODY = "backbone.body."
_SHARED = tuple(
    (f"backbone/{ours}", f"{_BODY}{theirs}", kind)
    for ours, theirs, kind in layouts.find_layout("torchvision").modules if ours != "head") + tuple(
    (f"pyramid/{ours}", f"backbone.fpn.{theirs}", "conv with bias") for ours, theirs in (
        ("inner{i}", "inner_blocks.{i}.0"), ("layer{i}", "layer_blocks.{i}.0"), ("extra0", "extra_blocks.p6"),
        ("extra1", "extra_blocks.p7")))
_TOWERS = (("classes", "head.classification_head", "cls_logits"), ("boxes", "head.regression_head", "bbox_reg"))
_LAYOUTS = {
    "retinanet": Layout(
        name="torchvision_retinanet",
        marks=("head.classification_head.cls_logits.weight", "backbone.fpn.extra_blocks.p6.weight"),
        modules=_SHARED + tuple(
            row for ours, theirs, out in _TOWERS for row in (
                (f"{ours}/conv{{i}}", f"{theirs}.conv.{{i}}.0", "conv with bias"),
                (f"{ours}/out", f"{theirs}.{out}", "conv with bias"))),
        preprocessing=prep.TORCHVISION),
    "faster_rcnn": Layout(
        name="torchvision_faster_rcnn",
        marks=("rpn.head.cls_logits.weight", "roi_heads.box_predictor.cls_score.weight"),
        modules=_SHARED + (
            ("proposals/conv", "rpn.head.conv.0.0", "conv with bias"),
            ("proposals/logits", "rpn.head.cls_logits", "conv with bias"),
            ("proposals/boxes", "rpn.head.bbox_pred", "conv with bias"),
            ("head/hidden0", "roi_heads.box_head.fc6", "dense on 7x7"),
            ("head/hidden1", "roi_heads.box_head.fc7", "dense"),
            ("head/logits", "roi_heads.box_predictor.cls_score", "dense"),
            ("head/boxes", "roi_heads.box_predictor.bbox_pred", "dense")),
        preprocessing=prep.TORCHVISION)}
_OF_CLASSES = {"retinanet": "head.classification_head.cls_logits.weight",
               "faster_rcnn": "roi_heads.box_predictor.cls_score.weight"}
_BOXES = "roi_heads.box_predictor.bbox_pred."
# As torchvision was before 0.14 (the files that it publishes are older): pattern -> what it became.
_OLD = ((r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", lambda m: f"{m[1]}.0.{m[2]}"),
        (r"(rpn\.head\.conv)\.(weight|bias)", lambda m: f"{m[1]}.0.0.{m[2]}"),
        (r"(head\.\w+_head\.conv)\.([0246])\.(weight|bias)", lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}"))
# Keys of torchvision's other detectors, which look like these.
_OTHERS = (
    ("roi_heads.mask_head.", "a Mask R-CNN"), ("roi_heads.keypoint_head.", "a Keypoint R-CNN"),
    ("roi_heads.box_head.0.0.", "fasterrcnn_resnet50_fpn_v2, whose second stage has convolutions; take "
     "fasterrcnn_resnet50_fpn"),
    ("head.classification_head.conv.0.1.", "retinanet_resnet50_fpn_v2, whose heads have group norms; take "
     "retinanet_resnet50_fpn"),
    ("head.regression_head.bbox_ctrness.", "an FCOS"))
# SHA-256, first digits, of COCO_V1's files: only of them torchvision takes the batch norms' epsilon for 0.
_WITHOUT_EPSILON = ("258fb6c6", "eeacb38b")
_EPSILON = 1e-5


def load(
    path: str | os.PathLike, num_classes: int | None = None, *, dtype: Any = None, norm_epsilon: float | None = None
) -> tuple[Detector, dict[str, Any]]:
  """A detector of torchvision with its weights: `fasterrcnn_resnet50_fpn`, `retinanet_resnet50_fpn`, or trained so.

  Which it is, its backbone (any ResNet that is here too) and its widths, the file's keys and shapes say. Images are
  normalised with ImageNet's mean and standard deviation; torchvision's COCO weights were trained with a shorter side of
  800 pixels, a longer of 1333 at most.

  Labels are torchvision's less one for Faster R-CNN, whose background is 0 there and has no label here: label 0 is
  COCO's 1, person. RetinaNet's are torchvision's, 0 of its 91 COCO classes never occurs: label 1 is a person.

  Args:
    path: of a `state_dict`, .pth or any file that `weights.read_tensors` reads.
    num_classes: for a check, as here; None for the file's own.
    dtype: of the computation.
    norm_epsilon: of the batch norms. None for what torchvision takes: 0 for the files that it publishes as COCO_V1,
      which are known by their hash, 1e-5 for others. Another than 1e-5 goes into the norms' scales.

  Returns:
    The module, of layout 'torchvision' and with its number of detections in an image (100, of RetinaNet 300), and its
    variables, NumPy float32.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file cannot be read, or is of another network; the message says what does not fit.
  """
  path = os.fspath(path)
  tensors = _modern(read_tensors(path))
  kind = _kind(tensors, path)
  if norm_epsilon is None:
    norm_epsilon = 0.0 if _hash(path).startswith(_WITHOUT_EPSILON) else _EPSILON
  detector = _build(tensors, kind, path, dtype)
  if num_classes not in (None, detector.num_classes):
    raise ValueError(f"{path} has {detector.num_classes} classes, not {num_classes}")
  if kind == "faster_rcnn":  # torchvision has deltas for the background too, which it never reads
    tensors |= {key: value[4:] for key, value in tensors.items() if key.startswith(_BOXES) and value.ndim}
  variables = fill(abstract_variables(detector, (64, 64, 3)), tensors, _LAYOUTS[kind], path).variables
  if norm_epsilon != _EPSILON:
    _move_epsilon(variables["params"], variables["batch_stats"], norm_epsilon)
  return detector, variables


def to_torchvision(detector: Detector, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The inverse of `load`: what the same network of torchvision has in its `state_dict`, {key: array}.

  Deltas for the background, which torchvision has in Faster R-CNN and never reads, are 0, and so are counts of batches.

  Raises:
    ValueError: for a detector that is of another layout, or has another backbone than a plain ResNet.
  """
  if not detector.as_torchvision:
    raise ValueError(f"layout={detector.layout!r}: with these weights torchvision's network would compute something "
                     "else; its own layout is 'torchvision'")
  kind = {RetinaNet: "retinanet", FasterRCNN: "faster_rcnn"}[type(detector)]
  tensors = layouts.to_layout(variables, _LAYOUTS[kind])
  for key in [key for key in tensors if key.startswith(_BOXES)]:
    tensors[key] = np.concatenate([np.zeros_like(tensors[key][:4]), tensors[key]])
  return tensors


def _modern(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  renamed = {}
  # Of RetinaNet's towers both numberings have a 0; only the new one has a third number.
  for key, value in tensors.items():
    for pattern, new in _OLD:
      if match := re.fullmatch(pattern, key):
        key = new(match)
        break
    renamed[key] = value
  return renamed


def _kind(tensors: Mapping[str, np.ndarray], path: str) -> str:
  for start, what in _OTHERS:
    if any(key.startswith(start) for key in tensors):
      raise ValueError(f"{path}: torchvision's weights of {what}, which is not here")
  for kind, layout in _LAYOUTS.items():
    if all(mark in tensors for mark in layout.marks):
      return kind
  if layouts.recognise(tensors):
    raise ValueError(f"{path}: a network for classification, no detector; weights.load reads it")
  marks = "; ".join(f"{kind} (has {', '.join(layout.marks)})" for kind, layout in _LAYOUTS.items())
  raise ValueError(f"{path}: neither of torchvision's detectors that are here; its {len(tensors)} tensors begin with "
                   f"{', '.join(list(tensors)[:5])}. Known: {marks}")


def _build(tensors: Mapping[str, np.ndarray], kind: str, path: str, dtype: Any) -> Detector:
  """The module that the shapes are of."""
  body = {key.removeprefix(_BODY): value for key, value in tensors.items() if key.startswith(_BODY)}
  backbone = guess_network(body)
  if backbone is None:
    raise ValueError(f"{path}: its backbone is none of the ResNets that are here; its tensors begin with "
                     f"{', '.join(list(body)[:5]) or 'another name than ' + _BODY}")
  sizes = {key: len(np.atleast_1d(tensors[key])) for key in (
      "backbone.fpn.layer_blocks.0.0.weight", "roi_heads.box_head.fc6.bias", _OF_CLASSES[kind]) if key in tensors}
  widths = {"channels": sizes.get("backbone.fpn.layer_blocks.0.0.weight", 256)}
  if kind == "retinanet":
    widths["limit"] = 300
    classes, rest = divmod(sizes[_OF_CLASSES[kind]], 9)
    if rest:
      raise ValueError(f"{path}: {_OF_CLASSES[kind]} has {9 * classes + rest} outputs, which 9 anchors in a cell "
                       "do not divide")
  else:
    classes = sizes[_OF_CLASSES[kind]] - 1
    widths["width"] = sizes.get("roi_heads.box_head.fc6.bias", 1024)
  try:
    return create_detector(kind, backbone[0], classes, layout="torchvision", dtype=dtype, backbone_options=backbone[1],
                           **widths)
  except ValueError as error:
    raise ValueError(f"{path} ({_LAYOUTS[kind].name} layout): {error}") from error


def _move_epsilon(params: dict[str, Any], statistics: Mapping[str, Any], epsilon: float) -> None:
  """Changes the norms' scales so that with our epsilon they compute what they did with this one."""
  for name, below in statistics.items():
    if "var" in below:
      var = below["var"].astype(np.float64)
      with np.errstate(divide="ignore", invalid="ignore"):
        params[name]["scale"] = (params[name]["scale"] * np.sqrt((var + _EPSILON) / (var + epsilon))).astype(np.float32)
      if not np.isfinite(params[name]["scale"]).all():
        raise ValueError(f"norm_epsilon={epsilon}: {name} has variances of 0, by whose root it divides")
    else:
      _move_epsilon(params[name], below, epsilon)


def _hash(path: str) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
