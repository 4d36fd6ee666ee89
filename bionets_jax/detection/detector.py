"""What the detectors share: a backbone, the pyramid on it, and where anchors count."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bionets_jax.detection.nms import nms
from bionets_jax.detection.types import Detections

LAYOUTS = ("mmdetection", "torchvision")
STRIDES = (4, 8, 16, 32)
STAGES = ("stage1", "stage2", "stage3", "stage4")
# Boxes that the suppression of detections looks at, see `nms`.
_MOST = 2000


class Detector(nn.Module):
  """A detector: its fields, and what the networks have in common. See `create_detector`.

  A subclass has `__call__(images, train=False)`, its raw predictions; and for `apply(..., method=)`
  `losses(images, objects, sizes, train, rng)`, {name: (N,) float32}, whose sum is the loss and whose means over the
  images are the batch's; and `detect(images, sizes)`, `Detections` in pixels of the images. Images are (N, H, W, 3),
  normalised; sizes (N, 2) are the height and width of what of each is no padding.

  Attributes:
    backbone: a network of `create_model` without its head.
    num_classes: K; the background is none of them.
    layout: whose choices it makes where the two differ, 'mmdetection' or 'torchvision': anchors, the pyramid's last
      levels, which anchors an object that none overlaps well gets, what losses are divided by, where a region's
      features lie. In the first, anchors on padding are in no loss and no detections.
    stages: endpoints of the backbone that the pyramid begins with.
    strides: theirs, pixels of the image per cell.
    anchor_scale: of the smallest anchor of a level, its size (the square root of its area) in strides of the level.
    channels: of the pyramid.
    least: lowest score of a detection.
    nms_threshold: of detections of a class, see `nms`.
    limit: of detections in an image.
    dtype: of the computation; predictions, boxes and losses are float32.

  Raises:
    ValueError: for another layout, or features that are not of these strides.
  """

  backbone: nn.Module
  num_classes: int
  layout: str = "mmdetection"
  stages: Sequence[str] = STAGES
  strides: Sequence[int] = STRIDES
  anchor_scale: float = 8.0
  channels: int = 256
  least: float = 0.05
  nms_threshold: float = 0.5
  limit: int = 100
  dtype: Any = None

  @property
  def as_torchvision(self) -> bool:
    if self.layout not in LAYOUTS:
      raise ValueError(f"layout={self.layout!r}: give {' or '.join(map(repr, LAYOUTS))}")
    return self.layout == "torchvision"

  def features(self, images: jax.Array, train: bool) -> list[jax.Array]:
    """The pyramid's levels, (N, H_i, W_i, channels) each."""
    _, found = self.backbone(images, train=train, endpoints=self.stages)
    for stage, stride in zip(self.stages, self.strides, strict=True):
      have, want = found[stage].shape[1:3], tuple(-(-side // stride) for side in images.shape[1:3])
      if have != want:
        raise ValueError(f"{stage} of the backbone has {have[0]} x {have[1]} cells for images of {images.shape[1]} x "
                         f"{images.shape[2]}; with a stride of {stride} it has {want[0]} x {want[1]}")
    return self.pyramid([found[stage] for stage in self.stages])

  def inside(self, anchors: jax.Array, sizes: jax.Array) -> jax.Array:
    """(N, A) bool: which anchors (A, 4) count in images whose pictures have sizes (N, 2)."""
    if self.as_torchvision:
      return jnp.ones((len(sizes), len(anchors)), bool)
    centre = (anchors[:, 1::-1] + anchors[:, 3:1:-1]) / 2  # (A, 2) of y and x
    return (centre < sizes[:, None]).all(-1)


def whole(images: jax.Array) -> jax.Array:
  """Sizes (N, 2) of images without padding."""
  return jnp.broadcast_to(jnp.asarray(images.shape[1:3], jnp.float32), (len(images), 2))


def kept_of(
    boxes: jax.Array, scores: jax.Array, labels: jax.Array, *, threshold: float, limit: int
) -> Detections:
  """Detections of one image: boxes (M, 4), scores (M,), -inf for what is not there, labels (M,) int32."""
  kept = nms(boxes, scores, labels, threshold=threshold, limit=limit, most=_MOST)
  return Detections(boxes[kept.index], jnp.where(kept.present, scores[kept.index], 0.0),
                    labels[kept.index].astype(jnp.int32), kept.present)
