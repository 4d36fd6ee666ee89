"""RetinaNet against torchvision's, with the same weights: predictions, detections and losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.golden_weights import golden_images
from golden_detectors import GOLDEN, OBJECTS, SIZE, SIZES, golden_file, knowing, make

from bionets_jax.detection import boxes as box
from bionets_jax.detection import from_torchvision, retinanet
from bionets_jax.detection.anchors import Anchors
from bionets_jax.detection.matching import match
from bionets_jax.detection.pyramid import FeaturePyramid, nearest
from bionets_jax.detection.retinanet import Predictions


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  return from_torchvision.load(golden_file("retinanet", tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="module")
def images():
  return golden_images("retinanet", (2, *SIZE, 3))


@pytest.fixture(scope="module")
def found(loaded, images):
  """(predictions, detections, losses)"""
  detector, variables = loaded

  @jax.jit
  def apply(variables):
    predicted = detector.apply(variables, images)
    with knowing(__call__=predicted):
      return (predicted, detector.apply(variables, images, SIZES, method="detect"),
              detector.apply(variables, images, OBJECTS, SIZES, method="losses"))

  return apply(variables)


def test_predictions(found):
  for have, key in zip(found[0], ("logits", "deltas"), strict=True):
    want = GOLDEN[f"retinanet/{key}"]
    assert have.shape == want.shape and have.dtype == jnp.float32
    assert np.linalg.norm(have - want) <= 1e-5 * np.linalg.norm(want)


def test_detections(found):
  boxes, scores, labels, present = found[1]
  assert present.all()
  for i in range(2):
    np.testing.assert_allclose(scores[i], GOLDEN[f"retinanet/scores/{i}"], rtol=1e-4)
    np.testing.assert_allclose(boxes[i], GOLDEN[f"retinanet/boxes/{i}"], rtol=1e-4, atol=2e-3)
    np.testing.assert_array_equal(labels[i], GOLDEN[f"retinanet/labels/{i}"])


def test_losses(found):
  losses = found[2]
  np.testing.assert_allclose([losses["classes"].mean(), losses["boxes"].mean()], GOLDEN["retinanet/losses"], rtol=1e-5)


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def of_the_batch(predicted, present):
  """The losses divided as in mmdetection."""
  losses = retinanet.losses_of(
      predicted, GOLDEN["anchors"], OBJECTS._replace(present=present), jnp.ones((2, len(GOLDEN["anchors"])), bool),
      rescue="nearest", each_image=False)
  return sum(x.mean() for x in losses.values()), losses


def test_images_without_objects(found):
  """They have a loss of the background alone, and gradients without NaN, whatever the padding holds."""
  (_, losses), gradients = of_the_batch(found[0], jnp.zeros((2, 3), bool))
  assert (losses["classes"] > 0).all() and not losses["boxes"].any() and not gradients.deltas.any()
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_mmdetection_divides_by_the_mean_number_of_positive_anchors(found):
  @jax.jit
  @jax.vmap
  def count(boxes, present):
    overlap = box.iou(boxes, GOLDEN["anchors"])
    return match(overlap, present, high=0.5, low=0.4, rescue="nearest").positive.sum()

  numbers = np.asarray(count(OBJECTS.boxes, OBJECTS.present))
  assert numbers.min() > 0 and numbers[0] != numbers[1]
  (_, mean), _ = of_the_batch(found[0], OBJECTS.present)
  for key, each in found[2].items():  # torchvision divides by each image's own
    np.testing.assert_allclose(mean[key], each * numbers / numbers.mean(), rtol=1e-5)


def test_mmdetection_leaves_out_anchors_on_padding():
  detector, theirs = make("retinanet"), make("retinanet", layout="torchvision")
  anchors = np.concatenate(detector.anchors((64, 96)))
  inside = detector.inside(anchors, jnp.array([[64, 96], [33, 56], [0, 0]]))
  cells = [(-(-33 // s), -(-56 // s)) for s in detector.anchors.strides]
  np.testing.assert_array_equal(np.asarray(inside).sum(1), [len(anchors), 9 * sum(h * w for h, w in cells), 0])
  assert theirs.inside(anchors, jnp.array([[0, 0]])).all()


def test_what_is_not_there_is_not_detected():
  nothing = Predictions(jnp.full((1, 27, 2), -9.0), jnp.zeros((1, 27, 4)))
  levels = Anchors((8,), ((8.0, 16.0, 32.0),))((8, 24))
  find = jax.jit(functools.partial(retinanet.detections_of, anchors=levels, limit=7))
  found = find(nothing, sizes=jnp.array([[8, 24]]), usable=jnp.ones((1, 27), bool))
  assert found.boxes.shape == (1, 7, 4) and not found.present.any() and (found.scores == 0).all()


def test_nearest_is_pytorchs():
  """Where sizes are no multiples PyTorch takes floor(i * in / out)."""
  x = jnp.arange(5.0).reshape(1, 1, 5, 1)
  np.testing.assert_array_equal(nearest(x, (1, 8))[0, 0, :, 0], [0, 0, 1, 1, 2, 3, 3, 4])
  np.testing.assert_array_equal(nearest(x, (2, 10))[0, 1, :, 0], np.repeat(np.arange(5), 2))


def test_pyramids_of_each_kind():
  features = [jnp.zeros((1, 13, 9, 8)), jnp.zeros((1, 7, 5, 16))]
  def shapes(extra):
    return [x.shape for x in jax.eval_shape(FeaturePyramid(extra, 32).init_with_output, jax.random.key(0), features)[0]]
  assert shapes("") == [(1, 13, 9, 32), (1, 7, 5, 32)]
  assert shapes("pool")[2:] == [(1, 4, 3, 32)]
  assert shapes("convs_on_input")[2:] == shapes("convs_on_output")[2:] == [(1, 4, 3, 32), (1, 2, 2, 32)]
  with pytest.raises(ValueError, match="extra='p6': give '' or one of 'pool'"):
    shapes("p6")
