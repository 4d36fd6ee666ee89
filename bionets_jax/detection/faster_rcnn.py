"""Faster R-CNN with a feature pyramid (Ren et al. 2015; Lin et al. 2017)."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bionets_jax.detection import boxes as box
from bionets_jax.detection.anchors import Anchors
from bionets_jax.detection.detector import Detector, kept_of, whole
from bionets_jax.detection.losses import absolute, over_batch
from bionets_jax.detection.matching import match, sample
from bionets_jax.detection.proposals import (
  Objectness,
  ProposalHead,
  Proposals,
  proposal_losses,
  propose,
)
from bionets_jax.detection.pyramid import FeaturePyramid
from bionets_jax.detection.roi_align import pyramid_level, roi_align
from bionets_jax.detection.types import Detections, Objects

STD = (0.1, 0.1, 0.2, 0.2)  # of the second stage's deltas, see `boxes.encode`


class Predictions(NamedTuple):
  """What both stages say.

  first: `Objectness` of each level.
  proposals: of the first stage.
  logits: (N, R, 1 + K) of the proposals' classes, the background first.
  deltas: (N, R, K, 4) of the proposals, for each class.
  """

  first: list[Objectness]
  proposals: Proposals
  logits: jax.Array
  deltas: jax.Array


class BoxHead(nn.Module):
  """(R, 7, 7, C) to logits (R, 1 + K), the background first, and deltas (R, K, 4), float32."""

  num_classes: int
  width: int = 1024
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = x.reshape(len(x), -1)
    for name in ("hidden0", "hidden1"):
      x = nn.relu(nn.Dense(self.width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)(x))
    dense = functools.partial(nn.Dense, dtype=self.dtype)
    logits = dense(1 + self.num_classes, kernel_init=nn.initializers.normal(0.01), name="logits")(x)
    deltas = dense(4 * self.num_classes, kernel_init=nn.initializers.normal(0.001), name="boxes")(x)
    return logits.astype(jnp.float32), deltas.astype(jnp.float32).reshape(len(x), -1, 4)


class FasterRCNN(Detector):
  """Two stages: boxes in which there may be something, then what it is and where exactly. Gives `Predictions`.

  Attributes beside `Detector`'s:
    width: of the second stage's two hidden layers.
    proposals_train, proposals_test: of an image, and candidates of each level that they are chosen from.
    proposal_threshold: of `nms` among the proposals of a level.
    anchor_samples: anchors of an image in the loss of the first stage, half of them positive at most.
    region_samples: proposals of an image in the loss of the second stage, a quarter of them positive at most.
  """

  width: int = 1024
  proposals_train: int = 2000
  proposals_test: int = 1000
  proposal_threshold: float = 0.7
  anchor_samples: int = 256
  region_samples: int = 512

  def setup(self):
    self.pyramid = FeaturePyramid("pool", self.channels, dtype=self.dtype)
    self.proposals = ProposalHead(self.anchors.per_cell, self.dtype)
    self.head = BoxHead(self.num_classes, self.width, self.dtype)

  @property
  def anchors(self) -> Anchors:
    """One size and three ratios in a cell."""
    strides = (*self.strides, 2 * self.strides[-1])
    return Anchors(strides, tuple((self.anchor_scale * stride,) for stride in strides), rounded=self.as_torchvision,
                   fitted=self.as_torchvision)

  @property
  def beta(self) -> float:
    """Of the differences in both losses, see `absolute`."""
    return 1 / 9 if self.as_torchvision else 0.0

  def __call__(self, images: jax.Array, train: bool = False) -> Predictions:
    return self._predict(images, whole(images), train)

  def _predict(self, images, sizes, train=False) -> Predictions:
    levels = self.features(images, train)
    first = [self.proposals(x) for x in levels]
    found = self._propose(first, self.anchors(images.shape[1:3]), sizes, self.proposals_test)
    return Predictions(first, found, *self._classify(levels, found.boxes))

  def _propose(self, first, anchors, sizes, number) -> Proposals:
    usable = [self.inside(level, sizes) for level in anchors]
    one = functools.partial(propose, anchors=anchors, number=number, threshold=self.proposal_threshold,
                            least_side=1e-3 if self.as_torchvision else 0.0)
    return jax.vmap(one)(first, usable, sizes)

  def _classify(self, levels: Sequence[jax.Array], boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits (N, R, 1 + K) and deltas (N, R, K, 4) of boxes (N, R, 4)."""
    fine = levels[:len(self.strides)]  # the pooled level is for anchors alone

    def regions(levels, boxes):
      # A box of the size of ImageNet's images, 224, is looked at where its classifiers end.
      level = pyramid_level(boxes, levels=len(levels), finest=14.0 * self.strides[0])
      return roi_align(levels, boxes, level, strides=self.strides, aligned=not self.as_torchvision)

    found = jax.vmap(regions)(fine, boxes)
    logits, deltas = self.head(found.reshape(-1, *found.shape[2:]))
    return logits.reshape(*boxes.shape[:2], -1), deltas.reshape(*boxes.shape[:2], -1, 4)

  def losses(
      self, images: jax.Array, objects: Objects, sizes: jax.Array, train: bool = False, rng: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    """{'objectness', 'proposals'} of the first stage, {'classes', 'boxes'} of the second, see `Detector`.

    Each is the sum over an image's sample, divided by the mean number of samples in the batch's images.
    """
    if rng is None:
      raise ValueError("FasterRCNN.losses: give rng=, a key; anchors and proposals are sampled")
    rngs = jax.random.split(rng, (2, len(images)))
    levels, anchors = self.features(images, train), self.anchors(images.shape[1:3])
    first = [self.proposals(x) for x in levels]
    every = jnp.concatenate(anchors)
    rescue, least = ("nearest", 0.0) if self.as_torchvision else ("own", 0.3)
    one = functools.partial(proposal_losses, anchors=every, number=self.anchor_samples, share=0.5, beta=self.beta,
                            rescue=rescue, least=least)
    objectness, off, number = jax.vmap(one)(
        rngs[0], Objectness(*(jnp.concatenate(x, axis=1) for x in zip(*first, strict=True))),
        self.inside(every, sizes), objects)
    found = self._propose(first, anchors, sizes, self.proposals_train)
    taken = jax.vmap(functools.partial(sample_regions, number=self.region_samples, share=0.25))(rngs[1], found, objects)
    second = jax.vmap(functools.partial(region_losses, beta=self.beta))
    classes, boxes, regions = second(*self._classify(levels, taken.boxes), taken, objects)
    return {"objectness": over_batch(objectness, number), "proposals": over_batch(off, number),
            "classes": over_batch(classes, regions), "boxes": over_batch(boxes, regions)}

  def detect(self, images: jax.Array, sizes: jax.Array) -> Detections:
    """See `Detector`."""
    found = self._predict(images, sizes)
    one = functools.partial(region_detections, least=self.least, threshold=self.nms_threshold, limit=self.limit,
                            least_side=1e-2 if self.as_torchvision else 0.0)
    return jax.vmap(one)(found.logits, found.deltas, found.proposals, sizes)


class Regions(NamedTuple):
  """Sampled boxes of an image.

  boxes: (S, 4); object: (S,) int32, that they are compared with; positive: (S,) bool, they stand for it; present: (S,)
  bool, there were no more for the others.
  """

  boxes: jax.Array
  object: jax.Array
  positive: jax.Array
  present: jax.Array


def sample_regions(rng: jax.Array, proposals: Proposals, objects: Objects, *, number: int, share: float) -> Regions:
  """A sample of one image's proposals, and of its objects themselves: those hold where proposals are bad yet."""
  boxes = jnp.concatenate([proposals.boxes, objects.boxes])
  found = match(box.iou(objects.boxes, boxes), objects.present, high=0.5, low=0.5,
                usable=jnp.concatenate([proposals.present, objects.present]))
  taken = sample(rng, found, number, share)
  return Regions(boxes[taken.index], found.index[taken.index], taken.positive, taken.present)


def region_losses(
    logits: jax.Array, deltas: jax.Array, regions: Regions, objects: Objects, *, beta: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Of one image: sums of the cross-entropies and of the differences, and the number of regions.

  Args:
    logits: (S, 1 + K), the background first.
    deltas: (S, K, 4).
    regions, objects: without the axis of images.
    beta: of the differences, see `absolute`.
  """
  label = objects.labels[regions.object]
  entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(regions.positive, 1 + label, 0))
  wanted = box.encode(objects.boxes[regions.object], regions.boxes, STD)
  off = absolute(jnp.take_along_axis(deltas, label[:, None, None], axis=1)[:, 0], wanted, beta=beta).sum(-1)
  return (jnp.where(regions.present, entropy, 0.0).sum(), jnp.where(regions.positive, off, 0.0).sum(),
          regions.present.sum().astype(jnp.float32))


def region_detections(
    logits: jax.Array, deltas: jax.Array, proposals: Proposals, size: jax.Array, *, least: float, threshold: float,
    limit: int, least_side: float,
) -> Detections:
  """Detections of one image.

  Args:
    logits: (R, 1 + K), the background first.
    deltas: (R, K, 4).
    proposals: without the axis of images.
    size: (2,), height and width of what of the image is no padding.
    least, threshold, limit: see `Detector`.
    least_side: boxes that are not wider and higher than this are none.
  """
  scores = jax.nn.softmax(logits)[:, 1:]
  boxes = box.clip(box.decode(deltas, proposals.boxes[:, None], STD), size)
  there = proposals.present[:, None] & (scores > least) & (boxes[..., 2:] - boxes[..., :2] > least_side).all(-1)
  labels = jnp.broadcast_to(jnp.arange(scores.shape[1]), scores.shape)
  return kept_of(boxes.reshape(-1, 4), jnp.where(there, scores, -jnp.inf).ravel(), labels.ravel(),
                 threshold=threshold, limit=limit)
