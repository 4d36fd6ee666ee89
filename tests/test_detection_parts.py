"""Boxes, anchors, matching, suppression and RoIAlign against torchvision's."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.golden_weights import golden_images
from jax.test_util import check_grads

from bionets_jax.detection import boxes as box
from bionets_jax.detection.anchors import Anchors, octaves
from bionets_jax.detection.losses import absolute, focal
from bionets_jax.detection.matching import Match, match, sample
from bionets_jax.detection.nms import nms
from bionets_jax.detection.roi_align import pyramid_level, roi_align

GOLDEN = np.load(pathlib.Path(__file__).parent / "fixtures" / "detection.npz")
A, B = GOLDEN["boxes/a"], GOLDEN["boxes/b"]
STD = (0.1, 0.1, 0.2, 0.2)


def test_overlaps_and_coding():
  np.testing.assert_allclose(box.iou(A, B), GOLDEN["boxes/iou"], atol=1e-6)
  np.testing.assert_allclose(box.encode(A, B[:20], STD), GOLDEN["boxes/encoded"], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(box.decode(GOLDEN["boxes/deltas"], A, STD), GOLDEN["boxes/decoded"], rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(box.decode(box.encode(A, B[:20], STD), B[:20], STD), A, rtol=1e-4, atol=1e-4)


def test_boxes_without_area():
  nothing = jnp.zeros((2, 4))
  assert (box.iou(nothing, A) == 0).all() and (box.iou(nothing, nothing) == 0).all()
  assert np.isfinite(box.encode(nothing, jnp.asarray(A[:2]))).all()
  np.testing.assert_array_equal(box.clip(jnp.array([[-3.0, 2, 50, 90]]), jnp.array([60, 40])), [[0, 2, 40, 60]])
  np.testing.assert_array_equal(box.flip(box.flip(A, 99.0), 99.0)[:, 1::2], A[:, 1::2])
  np.testing.assert_allclose(box.flip(jnp.array([[10.0, 0, 30, 5]]), 100.0), [[70, 0, 90, 5]])


def test_anchors():
  sizes = tuple(tuple(float(int(s)) for s in octaves(32.0 * 2**i, 3)) for i in range(5))
  # The last level has one row, 128 pixels high, and two columns, 96 wide.
  anchors = Anchors((8, 16, 32, 64, 128), sizes, rounded=True, fitted=True)
  assert anchors.per_cell == 9 and anchors.shapes((128, 192)) == ((16, 24), (8, 12), (4, 6), (2, 3), (1, 2))
  made = anchors((128, 192))
  assert [len(level) for level in made] == [9 * h * w for h, w in anchors.shapes((128, 192))]
  np.testing.assert_allclose(np.concatenate(made), GOLDEN["anchors"], atol=1e-4)
  assert Anchors((8, 16), ((1.0,), (2.0,))).shapes((60, 65)) == ((8, 9), (4, 5))
  # Areas and ratios are what was asked for.
  (free,) = Anchors((10,), ((20.0, 40.0),), (0.5, 2.0))((10, 10))
  np.testing.assert_allclose(box.area(free), [400, 1600, 400, 1600], rtol=1e-5)
  sides = free[:, 2:] - free[:, :2]
  np.testing.assert_allclose(sides[:, 1] / sides[:, 0], [0.5, 0.5, 2, 2], rtol=1e-5)


@pytest.mark.parametrize("call,message", [
    (lambda: Anchors((8,), ((1.0,), (2.0,))), "1 strides and sizes for 2 levels"),
    (lambda: Anchors((8, 16), ((1.0,), (2.0, 3.0))), "each level needs as many"),
    (lambda: match(jnp.ones((1, 2)), jnp.ones(1, bool), high=0.5, low=0.6), "high=0.5 is less than low=0.6"),
    (lambda: match(jnp.ones((1, 2)), jnp.ones(1, bool), high=0.5, low=0.4, rescue="all"), "rescue='all': give"),
])
def test_what_makes_no_sense_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


CASES = {"rpn": (0.7, 0.3, "nearest"), "retinanet": (0.5, 0.4, "nearest"), "roi": (0.5, 0.5, "")}


@pytest.mark.parametrize("name", CASES)
def test_matching(name):
  high, low, rescue = CASES[name]
  padded = np.concatenate([GOLDEN["boxes/iou"], np.full((3, 300), 0.99, np.float32)])
  found = match(padded, np.arange(23) < 20, high=high, low=low, rescue=rescue)
  index = np.where(found.positive, found.index, np.where(found.negative, -1, -2))
  np.testing.assert_array_equal(index, GOLDEN[f"match/{name}"])


def test_boxes_that_are_not_to_be_used():
  """They are neither, and an object whose best box is one of them is rescued by the next."""
  overlap = jnp.array([[0.9, 0.45, 0.1, 0.0]])
  found = match(overlap, jnp.ones(1, bool), high=0.7, low=0.3, rescue="own",
                usable=jnp.array([False, True, True, False]))
  np.testing.assert_array_equal(found.positive, [False, True, False, False])
  np.testing.assert_array_equal(found.negative, [False, False, True, False])


def test_rescue_as_mmdetection_has_it():
  # Object 1 overlaps most with box 0, which overlaps more with object 0; object 2 overlaps too little with any.
  overlap = jnp.array([[0.9, 0.1, 0.0, 0.0], [0.45, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.25]])
  find = functools.partial(match, overlap, jnp.ones(3, bool), high=0.5, low=0.3, least=0.3)
  own = find(rescue="own")
  np.testing.assert_array_equal(own.positive, [True, False, False, False])
  np.testing.assert_array_equal(own.negative, [False, True, True, True])
  assert own.index[0] == 1 and find(rescue="nearest").index[0] == 0
  none = match(overlap, jnp.zeros(3, bool), high=0.5, low=0.3, rescue="own")
  assert none.negative.all() and not none.positive.any()


@pytest.mark.parametrize("positives,negatives,want", [(3, 90, (3, 13)), (40, 90, (4, 12)), (40, 5, (4, 5)), (0, 3, (0, 3))])
def test_sampling(positives, negatives, want):
  kind = np.r_[np.ones(positives), np.zeros(negatives), np.full(7, 2)]
  kind = np.random.default_rng(0).permutation(kind)
  found = Match(jnp.zeros(len(kind), jnp.int32), jnp.asarray(kind == 1), jnp.asarray(kind == 0))
  drawn = [sample(jax.random.key(i), found, 16, 0.25) for i in range(3)]
  for one in drawn:
    index = np.asarray(one.index)[one.present]
    assert len(set(index)) == len(index) and (one.positive <= one.present).all()
    np.testing.assert_array_equal(kind[index] == 1, np.asarray(one.positive)[one.present])
    assert (int(one.positive.sum()), int((one.present & ~one.positive).sum())) == want
  assert positives + negatives < 16 or len({tuple(np.asarray(one.index)) for one in drawn}) == 3


def test_suppression():
  scores = GOLDEN["nms/scores"]
  kept = jax.jit(functools.partial(nms, threshold=0.3, limit=200))(B, scores)
  assert kept.index.shape == (200,)
  np.testing.assert_array_equal(np.asarray(kept.index)[kept.present], GOLDEN["nms/kept"])
  best = nms(B, scores, threshold=0.3, limit=5)
  np.testing.assert_array_equal(best.index, GOLDEN["nms/kept"][:5])
  apart = nms(B, scores, GOLDEN["nms/labels"], threshold=0.5, limit=300)
  np.testing.assert_array_equal(np.asarray(apart.index)[apart.present], GOLDEN["nms/by_label"])
  few = nms(B, np.where(np.arange(300) < 2, scores, -np.inf), threshold=0.99, limit=300)
  assert int(few.present.sum()) == 2


def test_suppression_of_the_best():
  """Looking at fewer boxes changes nothing before they are used up."""
  scores = GOLDEN["nms/scores"]
  best = nms(B, scores, threshold=0.3, limit=20, most=60)
  assert best.present.all()
  np.testing.assert_array_equal(best.index, GOLDEN["nms/kept"][:20])
  among = np.argsort(-scores)[:40]
  few = nms(B, scores, threshold=0.3, limit=40, most=30)  # never fewer than may be kept
  want = [i for i in GOLDEN["nms/kept"] if i in among]
  np.testing.assert_array_equal(np.asarray(few.index)[few.present], want)


def test_suppression_of_a_chain():
  """Each box overlaps with its neighbours: every second one stays, after as many rounds as there are boxes."""
  left = np.arange(30.0)[:, None] * 4
  chain = np.concatenate([left, 0 * left, left + 10, 0 * left + 10], axis=1)
  kept = nms(chain, -np.arange(30.0), threshold=0.4, limit=30)
  np.testing.assert_array_equal(np.asarray(kept.index)[kept.present], np.arange(0, 30, 2))


LEVELS = [golden_images(f"roi_align/{i}", (1, side, side + 5, 6))[0] for i, side in enumerate((40, 20, 10))]
ALIGN = dict(strides=(8, 16, 32), size=7, samples=2)


@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align(aligned):
  regions, level = GOLDEN["roi_align/boxes"], GOLDEN["roi_align/level"]
  np.testing.assert_array_equal(pyramid_level(jnp.asarray(regions), levels=3, finest=28.0), level)
  align = jax.jit(functools.partial(roi_align, aligned=aligned, **ALIGN))
  made = np.asarray(align(LEVELS, regions, level))
  for i in range(3):
    want = GOLDEN[f"roi_align/{i}/{aligned}"]
    assert len(want) > 1
    np.testing.assert_allclose(made[level == i], want, atol=3e-5)


def test_gradient_of_roi_align(float64):
  """Against central differences, which are exact for what is linear in the features."""
  regions = jnp.asarray([[3.0, 5, 40, 30], [10, 2, 90, 70]])
  levels = [jnp.asarray(x[:9, :12, :2], jnp.float64) for x in LEVELS[:2]]
  f = functools.partial(roi_align, boxes=regions, level=jnp.array([0, 1]), strides=(8, 16), size=3)
  check_grads(lambda *levels: f(levels), levels, order=1, modes=["rev"], eps=1e-2)


def test_losses():
  logits, targets = jnp.array([-2.0, 0.5, 3.0, 40.0]), jnp.array([0.0, 1.0, 1.0, 0.0])
  p = jax.nn.sigmoid(logits)
  want = np.where(targets == 1, -0.25 * (1 - p) ** 2 * jnp.log(p), 0.75 * p**2 * jax.nn.softplus(logits))
  np.testing.assert_allclose(focal(logits, targets), want, rtol=1e-5, atol=1e-12)
  assert np.isfinite(jax.grad(lambda x: focal(x, targets).sum())(logits)).all()
  np.testing.assert_allclose(absolute(jnp.array([0.0, 0.05, 2.0]), jnp.zeros(3), beta=1 / 9),
                             [0, 0.05**2 * 9 / 2, 2 - 1 / 18], rtol=1e-5)
  np.testing.assert_allclose(absolute(jnp.array([-2.0]), jnp.zeros(1)), [2.0])
