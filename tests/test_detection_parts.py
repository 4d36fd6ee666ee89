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
  @jax.jit
  def find(a, b, deltas):
    encoded = box.encode(a, b[:20], STD)
    return box.iou(a, b), encoded, box.decode(deltas, a, STD), box.decode(encoded, b[:20], STD)

  overlaps, encoded, decoded, again = find(A, B, GOLDEN["boxes/deltas"])
  np.testing.assert_allclose(overlaps, GOLDEN["boxes/iou"], atol=1e-6)
  np.testing.assert_allclose(encoded, GOLDEN["boxes/encoded"], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(decoded, GOLDEN["boxes/decoded"], rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(again, A, rtol=1e-4, atol=1e-4)


def test_boxes_without_area():
  @jax.jit
  def find(nothing, a):
    return (box.iou(nothing, a), box.iou(nothing, nothing), box.encode(nothing, a), box.encode(a, nothing),
            box.clip(jnp.array([[-3.0, 2, 50, 90]]), jnp.array([60, 40])), box.flip(box.flip(a, 99.0), 99.0),
            box.flip(jnp.array([[10.0, 0, 30, 5]]), 100.0))

  *overlaps, encoded, wild, clipped, twice, flipped = find(np.zeros((2, 4), np.float32), A[:2])
  assert not any(x.any() for x in map(np.asarray, overlaps))
  assert np.isfinite(encoded).all() and np.isfinite(wild).all()
  np.testing.assert_array_equal(clipped, [[0, 2, 40, 60]])
  np.testing.assert_array_equal(twice[:, 1::2], A[:2, 1::2])
  np.testing.assert_allclose(flipped, [[70, 0, 90, 5]])


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


DRAW = jax.jit(functools.partial(sample, number=16, share=0.25))


@pytest.mark.parametrize("positives,negatives,want", [(3, 90, (3, 13)), (40, 90, (4, 12)), (40, 5, (4, 5)), (0, 3, (0, 3))])
def test_sampling(positives, negatives, want):
  room = 137 if positives + negatives > 16 else 10  # more and fewer than are wanted, of one shape each
  kind = np.r_[np.ones(positives), np.zeros(negatives), np.full(room - positives - negatives, 2)]
  kind = np.random.default_rng(0).permutation(kind)
  found = Match(np.zeros(len(kind), np.int32), kind == 1, kind == 0)
  drawn = [DRAW(jax.random.key(i), found) for i in range(3)]
  for one in drawn:
    index = np.asarray(one.index)[one.present]
    assert len(set(index)) == len(index) and (one.positive <= one.present).all()
    np.testing.assert_array_equal(kind[index] == 1, np.asarray(one.positive)[one.present])
    assert (int(one.positive.sum()), int((one.present & ~one.positive).sum())) == want
  assert positives + negatives < 16 or len({tuple(np.asarray(one.index)) for one in drawn}) == 3


def test_suppression():
  scores, labels = GOLDEN["nms/scores"], GOLDEN["nms/labels"]
  find = jax.jit(functools.partial(nms, limit=310))
  kept = find(B, scores, 0 * labels, threshold=0.3)
  assert kept.index.shape == (310,)
  np.testing.assert_array_equal(np.asarray(kept.index)[kept.present], GOLDEN["nms/kept"])
  apart = find(B, scores, labels, threshold=0.5)
  np.testing.assert_array_equal(np.asarray(apart.index)[apart.present], GOLDEN["nms/by_label"])
  few = find(B, np.where(np.arange(300) < 2, scores, -np.inf), labels, threshold=0.99)
  assert int(few.present.sum()) == 2
  # It ends whatever it is given: what is not a number overlaps with nothing, or is not there.
  odd = find(np.where(np.arange(300)[:, None] % 3, B, np.nan), np.where(np.arange(300) % 7, scores, np.nan), labels,
             threshold=0.3)
  assert set(np.asarray(odd.index)[odd.present]) >= {i for i in range(0, 300, 3) if i % 7}
  assert not any(i % 7 == 0 for i in np.asarray(odd.index)[odd.present])


def test_suppression_of_the_best():
  """Looking at fewer boxes changes nothing before they are used up."""
  scores = GOLDEN["nms/scores"]
  best = jax.jit(functools.partial(nms, threshold=0.3, limit=20, most=60))(B, scores)
  assert best.present.all()
  np.testing.assert_array_equal(best.index, GOLDEN["nms/kept"][:20])
  among = np.argsort(-scores)[:40]
  few = jax.jit(functools.partial(nms, threshold=0.3, limit=40, most=30))(B, scores)  # never fewer than may be kept
  want = [i for i in GOLDEN["nms/kept"] if i in among]
  np.testing.assert_array_equal(np.asarray(few.index)[few.present], want)


def test_suppression_of_a_chain():
  """Each box overlaps with its neighbours: every second one stays, after as many rounds as there are boxes."""
  left = np.arange(30.0)[:, None] * 4
  chain = np.concatenate([left, 0 * left, left + 10, 0 * left + 10], axis=1)
  kept = jax.jit(functools.partial(nms, threshold=0.4, limit=30))(chain, -np.arange(30.0))
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
  check_grads(jax.jit(lambda *levels: f(levels)), levels, order=1, modes=["rev"], eps=1e-2)


def test_losses():
  logits, targets = np.float32([-2, 0.5, 3, 40, 200]), np.float32([0, 1, 1, 0, 0])

  @jax.jit
  def find(logits, off):
    one = jax.vmap(jax.value_and_grad(focal))(logits, targets)
    return *one, absolute(off, 0 * off, beta=1 / 9), absolute(-off, 0 * off)

  have, slope, smooth, whole = find(logits, np.float32([0, 0.05, 2]))
  p = 1 / (1 + np.exp(-logits.astype(np.float64)))
  want = np.where(targets == 1, -0.25 * (1 - p) ** 2 * np.log(p), 0.75 * p**2 * np.log1p(np.exp(logits.astype(float))))
  np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-12)
  assert np.isfinite(slope).all()
  np.testing.assert_allclose(smooth, [0, 0.05**2 * 9 / 2, 2 - 1 / 18], rtol=1e-5)
  np.testing.assert_allclose(whole, [0, 0.05, 2], rtol=1e-6)
