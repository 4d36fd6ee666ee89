"""The first stage of Faster R-CNN, which proposes boxes (Ren et al. 2015)."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bionets_jax.detection import boxes as box
from bionets_jax.detection.losses import absolute
from bionets_jax.detection.matching import match, sample
from bionets_jax.detection.nms import nms
from bionets_jax.detection.types import Objects
from bionets_jax.layers import Conv


class Objectness(NamedTuple):
  """logits: (N, A) of there being something; deltas: (N, A, 4) of the anchors."""

  logits: jax.Array
  deltas: jax.Array


class Proposals(NamedTuple):
  """boxes: (N, R, 4) in pixels, by falling logit; present: (N, R) bool."""

  boxes: jax.Array
  present: jax.Array


class ProposalHead(nn.Module):
  """A 3x3 convolution and two 1x1: (N, H, W, C) to `Objectness` of its H * W * per_cell anchors, float32."""

  per_cell: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> Objectness:
    conv = functools.partial(Conv, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype)
    x = nn.relu(conv(x.shape[-1], (3, 3), padding=1, name="conv")(x))
    logits, deltas = conv(self.per_cell, (1, 1), name="logits")(x), conv(4 * self.per_cell, (1, 1), name="boxes")(x)
    return Objectness(logits.reshape(len(x), -1).astype(jnp.float32), deltas.reshape(len(x), -1, 4).astype(jnp.float32))


def propose(
    predicted: Sequence[Objectness], usable: Sequence[jax.Array], size: jax.Array, *, anchors: Sequence[jax.Array],
    number: int, threshold: float, least_side: float,
) -> Proposals:
  """The boxes of one image in which the first stage sees something; no gradient flows through them.

  Args:
    predicted: of each level, without the axis of images.
    usable: of each level (A_i,) bool, which anchors are looked at.
    size: (2,), height and width of what of the image is no padding.
    anchors: of each level (A_i, 4).
    number: of candidates of each level, the best, and of all proposals.
    threshold: of `nms`, within each level.
    least_side: boxes that are not wider and higher than this are none.
  """
  found = []
  for one, wanted, level in zip(jax.lax.stop_gradient(predicted), usable, anchors, strict=True):
    scores, at = jax.lax.top_k(jnp.where(wanted, one.logits, -jnp.inf), min(number, len(level)))
    boxes = box.clip(box.decode(one.deltas[at], jnp.asarray(level)[at]), size)
    scores = jnp.where((boxes[:, 2:] - boxes[:, :2] > least_side).all(-1), scores, -jnp.inf)
    kept = nms(boxes, scores, threshold=threshold, limit=len(at))
    found.append((boxes[kept.index], jnp.where(kept.present, scores[kept.index], -jnp.inf)))
  boxes, scores = (jnp.concatenate(x) for x in zip(*found, strict=True))
  scores, at = jax.lax.top_k(scores, min(number, len(scores)))
  return Proposals(boxes[at], scores > -jnp.inf)


def proposal_losses(
    rng: jax.Array, predicted: Objectness, usable: jax.Array, objects: Objects, *, anchors: jax.Array, rescue: str,
    least: float, number: int, share: float, beta: float, high: float = 0.7, low: float = 0.3,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Of one image and its sampled anchors: sums of the cross-entropies and of the differences, and their number.

  Args:
    rng: a key, for the sample.
    predicted: of all levels, without the axis of images.
    usable: (A,) bool, which anchors may be in the sample.
    objects: without the axis of images.
    anchors: (A, 4).
    rescue, least, high, low: see `matching.match`.
    number, share: of the sample and of the positive ones in it.
    beta: of the differences, see `absolute`.
  """
  found = match(box.iou(objects.boxes, anchors), objects.present, high=high, low=low, rescue=rescue, least=least,
                usable=usable)
  taken = sample(rng, found, number, share)
  entropy = optax.sigmoid_binary_cross_entropy(predicted.logits[taken.index], taken.positive.astype(jnp.float32))
  wanted = box.encode(objects.boxes[found.index[taken.index]], anchors[taken.index])
  off = absolute(predicted.deltas[taken.index], wanted, beta=beta).sum(-1)
  return (jnp.where(taken.present, entropy, 0.0).sum(), jnp.where(taken.positive, off, 0.0).sum(),
          taken.present.sum().astype(jnp.float32))
