"""RetinaNet (Lin et al. 2017, "Focal Loss for Dense Object Detection")."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bionets_jax.detection import boxes as box
from bionets_jax.detection.anchors import Anchors, octaves
from bionets_jax.detection.detector import STAGES, STRIDES, Detector, kept_of
from bionets_jax.detection.losses import absolute, focal, over_batch
from bionets_jax.detection.matching import match
from bionets_jax.detection.pyramid import FeaturePyramid
from bionets_jax.detection.types import Detections, Objects
from bionets_jax.layers import Conv

_INIT = nn.initializers.normal(0.01)


class Predictions(NamedTuple):
  """logits: (N, A, K) of the classes; deltas: (N, A, 4) of the anchors."""

  logits: jax.Array
  deltas: jax.Array


class Tower(nn.Module):
  """3x3 convolutions with ReLU and one more: (N, H, W, C) to (N, H * W * per_cell, values)."""

  per_cell: int
  values: int
  bias: float = 0.0
  depth: int = 4
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(self.depth):
      x = nn.relu(Conv(x.shape[-1], (3, 3), padding=1, kernel_init=_INIT, dtype=self.dtype, name=f"conv{i}")(x))
    x = Conv(self.per_cell * self.values, (3, 3), padding=1, kernel_init=_INIT, dtype=self.dtype,
             bias_init=nn.initializers.constant(self.bias), name="out")(x)
    return x.reshape(x.shape[0], -1, self.values).astype(jnp.float32)


class RetinaNet(Detector):
  """Images (N, H, W, 3) to `Predictions` for each anchor of each level; the same towers for all levels.

  Attributes beside `Detector`'s:
    tower_depth: convolutions of a tower before the last.
    candidates: pairs of anchor and class of each level, the best, that detections are chosen from.
  """

  stages: Sequence[str] = STAGES[1:]
  strides: Sequence[int] = STRIDES[1:]
  anchor_scale: float = 4.0
  tower_depth: int = 4
  candidates: int = 1000

  def setup(self):
    extra = "convs_on_output" if self.as_torchvision else "convs_on_input"
    self.pyramid = FeaturePyramid(extra, self.channels, dtype=self.dtype)
    # Rare classes begin with a probability of 0.01, so that the many negative anchors do not swamp the loss.
    self.classes = Tower(self.anchors.per_cell, self.num_classes, -math.log(99.0), self.tower_depth, self.dtype)
    self.boxes = Tower(self.anchors.per_cell, 4, depth=self.tower_depth, dtype=self.dtype)

  @property
  def anchors(self) -> Anchors:
    """Three sizes and three ratios in a cell; those of torchvision are whole numbers."""
    strides = (*self.strides, 2 * self.strides[-1], 4 * self.strides[-1])
    kind = float if not self.as_torchvision else math.floor
    sizes = tuple(tuple(kind(size) for size in octaves(self.anchor_scale * stride, 3)) for stride in strides)
    return Anchors(strides, sizes, rounded=self.as_torchvision, fitted=self.as_torchvision)

  def __call__(self, images: jax.Array, train: bool = False) -> Predictions:
    levels = self.features(images, train)
    return Predictions(*(jnp.concatenate([tower(x) for x in levels], axis=1) for tower in (self.classes, self.boxes)))

  def losses(
      self, images: jax.Array, objects: Objects, sizes: jax.Array, train: bool = False, rng: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    """{'classes', 'boxes'}, see `losses_of`; nothing is drawn from `rng`."""
    anchors = jnp.concatenate(self.anchors(images.shape[1:3]))
    return losses_of(
        self(images, train), anchors, objects, self.inside(anchors, sizes),
        rescue="nearest" if self.as_torchvision else "own", each_image=self.as_torchvision)

  def detect(self, images: jax.Array, sizes: jax.Array) -> Detections:
    """See `Detector`."""
    levels = self.anchors(images.shape[1:3])
    return detections_of(
        self(images), levels, sizes, self.inside(jnp.concatenate(levels), sizes), candidates=self.candidates,
        least=self.least, threshold=self.nms_threshold, limit=self.limit)


def losses_of(
    predicted: Predictions, anchors: jax.Array, objects: Objects, usable: jax.Array, *, rescue: str, each_image: bool,
    high: float = 0.5, low: float = 0.4,
) -> dict[str, jax.Array]:
  """{'classes', 'boxes'}: focal loss and absolute differences for each image, (N,), whose mean is the batch's.

  Args:
    predicted: of N images.
    anchors: (A, 4).
    objects: of N images.
    usable: (N, A) bool, which anchors are in a loss.
    high, low, rescue: see `matching.match`.
    each_image: an image's sums are divided by its own number of positive anchors, as in torchvision; if not by the
      mean number over the batch, as in mmdetection. Images without any count as one.
  """
  one = functools.partial(_sums, anchors=anchors, high=high, low=low, rescue=rescue)
  classes, deltas, positive = jax.vmap(one)(predicted.logits, predicted.deltas, objects, usable)
  positive = jnp.maximum(positive, 1.0)
  if each_image:
    return {"classes": classes / positive, "boxes": deltas / positive}
  return {"classes": over_batch(classes, positive), "boxes": over_batch(deltas, positive)}


def _sums(logits, deltas, objects, usable, *, anchors, high, low, rescue):
  """(sum of the focal losses, sum of the differences, number of positive anchors) of one image."""
  found = match(box.iou(objects.boxes, anchors), objects.present, high=high, low=low, rescue=rescue, usable=usable)
  wanted = jax.nn.one_hot(objects.labels[found.index], logits.shape[-1]) * found.positive[:, None]
  classes = focal(logits, wanted).sum(-1)
  off = absolute(deltas, box.encode(objects.boxes[found.index], anchors)).sum(-1)
  return (jnp.where(found.positive | found.negative, classes, 0.0).sum(),
          jnp.where(found.positive, off, 0.0).sum(), found.positive.sum().astype(jnp.float32))


def detections_of(
    predicted: Predictions, anchors: Sequence[np.ndarray], sizes: jax.Array, usable: jax.Array, *,
    candidates: int = 1000, least: float = 0.05, threshold: float = 0.5, limit: int = 100,
) -> Detections:
  """The boxes that predictions stand for.

  Args:
    predicted: of N images.
    anchors: for each level (A_i, 4).
    sizes: (N, 2), height and width of what of each image is no padding.
    usable: (N, A) bool, which anchors are looked at.
    candidates: of each level the best pairs of anchor and class.
    least: their lowest score.
    threshold: of `nms`, within each class.
    limit: of detections in an image.
  """
  return jax.vmap(functools.partial(
      _detections, anchors=anchors, candidates=candidates, least=least, threshold=threshold, limit=limit))(
          predicted, sizes, usable)


def _detections(predicted, size, usable, *, anchors, candidates, least, threshold, limit):
  classes = predicted.logits.shape[-1]
  cuts = [sum(map(len, anchors[:i])) for i in range(1, len(anchors))]
  found = []
  for logits, deltas, wanted, level in zip(
      *(jnp.split(x, cuts) for x in (*predicted, usable)), anchors, strict=True):
    scores = jnp.where(wanted[:, None], jax.nn.sigmoid(logits), 0.0).ravel()
    scores, at = jax.lax.top_k(jnp.where(scores > least, scores, -jnp.inf), min(candidates, scores.size))
    of = at // classes
    found.append((box.clip(box.decode(deltas[of], jnp.asarray(level)[of]), size), scores, at % classes))
  boxes, scores, labels = (jnp.concatenate(x) for x in zip(*found, strict=True))
  return kept_of(boxes, scores, labels, threshold=threshold, limit=limit)
