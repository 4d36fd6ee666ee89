"""RetinaNet (Lin et al. 2017, "Focal Loss for Dense Object Detection")."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bionets_jax.detection import boxes as box
from bionets_jax.detection.anchors import Anchors, octaves
from bionets_jax.detection.losses import absolute, focal
from bionets_jax.detection.matching import match
from bionets_jax.detection.nms import nms_of_labels
from bionets_jax.detection.pyramid import FeaturePyramid
from bionets_jax.detection.types import Detections, Objects
from bionets_jax.layers import Conv

STRIDES = (8, 16, 32, 64, 128)
ANCHORS = Anchors(STRIDES, tuple(octaves(4.0 * stride, 3) for stride in STRIDES))
STAGES = ("stage2", "stage3", "stage4")
_INIT = nn.initializers.normal(0.01)


class Predictions(NamedTuple):
  """logits: (N, A, K) of the classes; deltas: (N, A, 4) of the anchors."""

  logits: jax.Array
  deltas: jax.Array


class Tower(nn.Module):
  """Four 3x3 convolutions with ReLU and one more: (N, H, W, C) to (N, H * W * per_cell, values)."""

  per_cell: int
  values: int
  bias: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(4):
      x = nn.relu(Conv(x.shape[-1], (3, 3), padding=1, kernel_init=_INIT, dtype=self.dtype, name=f"conv{i}")(x))
    x = Conv(self.per_cell * self.values, (3, 3), padding=1, kernel_init=_INIT, dtype=self.dtype,
             bias_init=nn.initializers.constant(self.bias), name="out")(x)
    return x.reshape(x.shape[0], -1, self.values).astype(jnp.float32)


class RetinaNet(nn.Module):
  """Images (N, H, W, 3) to `Predictions` for each anchor of each level; the same towers for all levels.

  Attributes:
    backbone: a network of `create_model` with num_classes=None; its endpoints of `STAGES` are used.
    num_classes: K; there is none for the background.
    anchors: of five levels.
    extra: of the pyramid.
    dtype: of the computation; predictions are float32.
  """

  backbone: nn.Module
  num_classes: int
  anchors: Anchors = ANCHORS
  extra: str = "convs_on_input"
  dtype: Any = None

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> Predictions:
    _, found = self.backbone(images, train=train, endpoints=STAGES)
    levels = FeaturePyramid(self.extra, dtype=self.dtype, name="pyramid")([found[stage] for stage in STAGES])
    # Rare classes begin with a probability of 0.01, so that the many negative anchors do not swamp the loss.
    classes = Tower(self.anchors.per_cell, self.num_classes, -math.log(99.0), self.dtype, name="classes")
    deltas = Tower(self.anchors.per_cell, 4, dtype=self.dtype, name="boxes")
    return Predictions(*(jnp.concatenate([tower(x) for x in levels], axis=1) for tower in (classes, deltas)))

  def anchors_of(self, size: Sequence[int]) -> jax.Array:
    """(A, 4) for images of this height and width."""
    return jnp.concatenate(self.anchors(self.anchors.shapes(size)))


def losses(
    predicted: Predictions, anchors: jax.Array, objects: Objects, *, high: float = 0.5, low: float = 0.4,
    rescue: str = "own", each_image: bool = False,
) -> dict[str, jax.Array]:
  """{'classes', 'boxes'}: focal loss and absolute differences for each image, (N,), whose mean is the batch's.

  Args:
    predicted: of N images.
    anchors: (A, 4).
    objects: of N images.
    high, low, rescue: see `matching.match`.
    each_image: an image's sums are divided by its own number of positive anchors, as in torchvision; if not by the mean
      number over the batch, as in mmdetection.
  """
  one = functools.partial(_sums, anchors=anchors, high=high, low=low, rescue=rescue)
  classes, deltas, positive = jax.vmap(one)(predicted.logits, predicted.deltas, objects)
  number = jnp.maximum(positive, 1.0) if each_image else jnp.maximum(positive.sum(), 1.0) / len(positive)
  return {"classes": classes / number, "boxes": deltas / number}


def _sums(logits, deltas, objects, *, anchors, high, low, rescue):
  """(sum of the focal losses, sum of the differences, number of positive anchors) of one image."""
  found = match(box.iou(objects.boxes, anchors), objects.present, high=high, low=low, rescue=rescue)
  wanted = jax.nn.one_hot(objects.labels[found.index], logits.shape[-1]) * found.positive[:, None]
  classes = focal(logits, wanted).sum(-1)
  off = absolute(deltas, box.encode(objects.boxes[found.index], anchors)).sum(-1)
  return (jnp.where(found.positive | found.negative, classes, 0.0).sum(),
          jnp.where(found.positive, off, 0.0).sum(), found.positive.sum().astype(jnp.float32))


def detect(
    predicted: Predictions, anchors: Sequence[jax.Array], sizes: jax.Array, *, candidates: int = 1000,
    least: float = 0.05, threshold: float = 0.5, limit: int = 100,
) -> Detections:
  """The boxes that predictions stand for.

  Args:
    predicted: of N images.
    anchors: for each level (A_i, 4).
    sizes: (N, 2), height and width of what of each image is no padding.
    candidates: of each level the best pairs of anchor and class.
    least: their lowest score.
    threshold: of `nms`, within each class.
    limit: of detections in an image.
  """
  return jax.vmap(functools.partial(
      _detect, anchors=anchors, candidates=candidates, least=least, threshold=threshold, limit=limit))(predicted, sizes)


def _detect(predicted, size, *, anchors, candidates, least, threshold, limit):
  classes = predicted.logits.shape[-1]
  cuts = [sum(map(len, anchors[:i])) for i in range(1, len(anchors))]
  found = []
  for logits, deltas, level in zip(
      *(jnp.split(x, cuts) for x in predicted), anchors, strict=True):
    scores = jax.nn.sigmoid(logits).ravel()
    scores, at = jax.lax.top_k(jnp.where(scores > least, scores, -jnp.inf), min(candidates, scores.size))
    of = at // classes
    found.append((box.clip(box.decode(deltas[of], jnp.asarray(level)[of]), size), scores, at % classes))
  boxes, scores, labels = (jnp.concatenate(x) for x in zip(*found, strict=True))
  kept = nms_of_labels(boxes, scores, labels, threshold=threshold, limit=limit)
  return Detections(boxes[kept.index], jnp.where(kept.present, scores[kept.index], 0.0),
                    labels[kept.index].astype(jnp.int32), kept.present)
