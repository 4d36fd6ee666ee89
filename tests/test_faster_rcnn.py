"""Faster R-CNN against torchvision's, with the same weights: both stages, detections and losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.golden_weights import golden_images
from golden_detectors import GOLDEN, OBJECTS, SIZE, SIZES, golden_file, knowing, make

from bionets_jax.detection import from_torchvision
from bionets_jax.detection.faster_rcnn import (
  Regions,
  region_detections,
  region_losses,
  sample_regions,
)
from bionets_jax.detection.proposals import Objectness, Proposals, propose
from bionets_jax.detection.types import Objects

ALL = 10_000  # samples, more than there are anchors: none is left out
LABELS = OBJECTS._replace(labels=OBJECTS.labels - 1)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  detector, variables = from_torchvision.load(golden_file("faster_rcnn", tmp_path_factory.mktemp("weights")))
  return detector.clone(limit=50, proposals_train=200, proposals_test=100, anchor_samples=ALL,
                        region_samples=4 * ALL), variables


@pytest.fixture(scope="module")
def images():
  return golden_images("faster_rcnn", (2, *SIZE, 3))


@pytest.fixture(scope="module")
def seen(loaded, images):
  """What the backbone makes of the images."""
  detector, variables = loaded
  of = {name: tree["backbone"] for name, tree in variables.items()}
  return jax.jit(lambda of: detector.backbone.apply(of, images, train=False, endpoints=detector.stages))(of)


def close(have, want):
  assert have.shape == want.shape and have.dtype == jnp.float32
  assert np.linalg.norm(have - want) <= 1e-5 * np.linalg.norm(want)


def test_both_stages_and_detections(loaded, images, seen):
  detector, variables = loaded

  @jax.jit
  def apply(variables, seen):
    with knowing(backbone=seen):
      stages = detector.apply(variables, images, SIZES, method="_predict")
    with knowing(_predict=stages):
      return stages, detector.apply(variables, images, SIZES, method="detect")

  stages, found = apply(variables, seen)
  first = Objectness(*(np.concatenate(x, axis=1) for x in zip(*stages.first, strict=True)))
  close(first.logits, GOLDEN["faster_rcnn/objectness"])
  close(first.deltas, GOLDEN["faster_rcnn/proposal_deltas"])
  close(stages.logits.reshape(200, -1), GOLDEN["faster_rcnn/logits"])
  close(stages.deltas.reshape(200, -1, 4), GOLDEN["faster_rcnn/deltas"])
  assert stages.proposals.present.all() and found.present.all()
  for i in range(2):
    np.testing.assert_allclose(stages.proposals.boxes[i], GOLDEN[f"faster_rcnn/proposals/{i}"], rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(found.scores[i], GOLDEN[f"faster_rcnn/scores/{i}"], rtol=1e-4)
    np.testing.assert_allclose(found.boxes[i], GOLDEN[f"faster_rcnn/boxes/{i}"], rtol=1e-4, atol=2e-3)
    np.testing.assert_array_equal(found.labels[i] + 1, GOLDEN[f"faster_rcnn/labels/{i}"])


def test_losses(loaded, images, seen):
  """Of all anchors and proposals; and without objects of the background alone, whatever the padding holds."""
  detector, variables = loaded

  def total(above, present, seen):
    with knowing(backbone=seen):
      found = detector.apply({"params": above}, images, LABELS._replace(present=present), SIZES,
                             rng=jax.random.key(0), method="losses")
    return sum(x.mean() for x in found.values()), found

  # The backbone's own gradients would take longer to compile than all else.
  above = {name: x for name, x in variables["params"].items() if name != "backbone"}
  find = jax.jit(jax.value_and_grad(total, has_aux=True))
  (_, found), gradients = find(above, LABELS.present, seen)
  assert {x.shape for x in found.values()} == {(2,)}
  means = [found[name].mean() for name in ("objectness", "proposals", "classes", "boxes")]
  np.testing.assert_allclose(means, GOLDEN["faster_rcnn/losses"], rtol=2e-5)
  assert all(np.isfinite(x).all() and x.any() for x in jax.tree.leaves(gradients))
  (_, found), gradients = find(above, jnp.zeros((2, 3), bool), seen)
  assert not found["boxes"].any() and not found["proposals"].any() and found["classes"].all()
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_samples_need_a_key(loaded, images):
  detector, variables = loaded
  with pytest.raises(ValueError, match="give rng="):
    jax.eval_shape(lambda: detector.apply(variables, images, LABELS, SIZES, method="losses"))


def test_proposals_of_each_level_and_of_the_picture_alone():
  """Within a level the better of two is proposed; what lies on padding, or has no side, is not."""
  anchors = [np.array([[0, 0, 10, 10], [0, 0, 10, 11], [30, 30, 40, 40], [30, 0, 40, 10]], np.float32),
             np.array([[0, 0, 10, 10]], np.float32)]
  deltas = [jnp.zeros((4, 4)).at[3, 0].set(-4.5), jnp.zeros((1, 4))]  # the last of the first level leaves the image
  predicted = [Objectness(jnp.array([1.0, 2.0, 3.0, 9.0]), deltas[0]), Objectness(jnp.array([0.5]), deltas[1])]
  usable = [jnp.array([True, True, False, True]), jnp.array([True])]
  find = functools.partial(propose, anchors=anchors, number=3, threshold=0.7, least_side=0.0)
  found = jax.jit(find)(predicted, usable, jnp.array([20.0, 20.0]))
  np.testing.assert_array_equal(found.present, [True, True, False])
  np.testing.assert_array_equal(found.boxes[:2], [[0, 0, 10, 11], [0, 0, 10, 10]])


def test_objects_are_proposals_too():
  """Even where nothing was proposed; a quarter of the sample at most."""
  objects = Objects(jnp.array([[0.0, 0, 10, 10], [50, 50, 90, 90], [0, 0, 0, 0]]), jnp.array([2, 0, 1]),
                    jnp.array([True, True, False]))
  none = Proposals(jnp.zeros((5, 4)), jnp.zeros(5, bool))
  find = jax.jit(functools.partial(sample_regions, number=8, share=0.25))
  found = find(jax.random.key(0), none, objects)
  np.testing.assert_array_equal(found.present, [True, True, False, False, False, False, False, False])
  np.testing.assert_array_equal(found.positive, found.present)
  assert {tuple(b) for b in np.asarray(found.boxes[:2])} == {(0, 0, 10, 10), (50, 50, 90, 90)}
  near = Proposals(jnp.array([[0.0, 0, 10, 8], [0, 0, 10, 4], [20, 20, 30, 30], [51, 50, 90, 90], [0, 0, 0, 0]]),
                   jnp.arange(5) < 4)
  found = find(jax.random.key(0), near, objects)
  assert int(found.positive.sum()) == 2 and int(found.present.sum()) == 4


def test_losses_of_regions_in_float64(float64):
  """Against the sums written out."""
  random = np.random.default_rng(0)
  logits, deltas = random.normal(size=(4, 4)), random.normal(size=(4, 3, 4))
  objects = Objects(jnp.array([[0.0, 0, 10, 20]]), jnp.array([2]), jnp.array([True]))
  regions = Regions(jnp.array([[1.0, 2, 9, 20], [0, 0, 5, 5], [7, 7, 9, 9], [0, 0, 1, 1]]), jnp.zeros(4, int),
                    jnp.array([True, False, False, False]), jnp.array([True, True, True, False]))
  find = jax.jit(functools.partial(region_losses, beta=0.0))
  classes, boxes, number = find(jnp.asarray(logits), jnp.asarray(deltas), regions, objects)
  chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  np.testing.assert_allclose(classes, -np.log([chance[0, 3], chance[1, 0], chance[2, 0]]).sum(), rtol=1e-6)
  wanted = [(5 - 5) / 8 / 0.1, (10 - 11) / 18 / 0.1, np.log(10 / 8) / 0.2, np.log(20 / 18) / 0.2]
  np.testing.assert_allclose(boxes, np.abs(deltas[0, 2] - wanted).sum(), rtol=1e-6)
  assert number == 3


def test_absent_proposals_are_not_detected():
  proposals = Proposals(jnp.array([[0.0, 0, 10, 10], [20, 20, 40, 40]]), jnp.array([True, False]))
  logits = jnp.array([[0.0, 4, 0], [0, 0, 9]])
  find = jax.jit(functools.partial(region_detections, least=0.05, threshold=0.5, limit=3, least_side=0.0))
  found = find(logits, jnp.zeros((2, 2, 4)), proposals, jnp.array([50.0, 50.0]))
  np.testing.assert_array_equal(found.present, [True, False, False])
  assert found.labels[0] == 0 and tuple(found.boxes[0]) == (0, 0, 10, 10)
  np.testing.assert_allclose(found.scores, [np.exp(4) / (np.exp(4) + 2), 0, 0], rtol=1e-6)


def test_mmdetections_choices_differ():
  """Whole differences in place of smooth ones, anchors that are not rounded, features between cells."""
  ours, theirs = make("faster_rcnn"), make("faster_rcnn", layout="torchvision")
  assert (ours.beta, theirs.beta) == (0.0, 1 / 9)
  ours, theirs = (np.concatenate(x.anchors((64, 64))) for x in (ours, theirs))
  np.testing.assert_allclose(ours[0], [-16 * 2**0.5, -8 * 2**0.5, 16 * 2**0.5, 8 * 2**0.5], rtol=1e-6)
  np.testing.assert_array_equal(theirs[0], [-23, -11, 23, 11])
