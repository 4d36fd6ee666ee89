"""mixup and CutMix against their papers' definitions, written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bionets_jax.training.mixing import check_mixing, mix

CLASSES, SHAPE = 5, (12, 16, 20, 3)
IMAGES = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
LABELS = np.arange(SHAPE[0]) % CLASSES
PARTNER = (np.arange(SHAPE[0]) - 1) % SHAPE[0]


@functools.cache
def mixer(mixup, cutmix):
  return jax.jit(jax.vmap(
      lambda key: mix(key, IMAGES, LABELS, CLASSES, mixup=mixup, cutmix=cutmix)))


def draw(mixup, cutmix, n=24, seed=0):
  return jax.device_get(mixer(mixup, cutmix)(jax.random.split(jax.random.key(seed), n)))


def boxes_of(images):
  """For each batch whose every pixel is the image's or the partner's: the mask of the partner's."""
  own, other = images == IMAGES, images == IMAGES[PARTNER]
  assert (own | other).all()
  assert (own == own[:, :1, :, :, :1]).all(), "one box for all images and channels of a batch"
  return ~own[:, 0, :, :, 0]


def reference_box(lam, x, y, width, height):
  """rand_bbox of the CutMix authors' code, with the centre given. All four may be arrays."""
  cut_w, cut_h = (np.int32(n * np.sqrt(1 - lam)) for n in (width, height))
  x1, y1 = np.clip(x - cut_w // 2, 0, width), np.clip(y - cut_h // 2, 0, height)
  x2, y2 = np.clip(x + cut_w // 2, 0, width), np.clip(y + cut_h // 2, 0, height)
  return x1, y1, x2, y2


def test_mixup_is_equation_1():
  images, labels = draw(0.4, 0.0)
  one_hot = np.eye(CLASSES)[LABELS]
  shares = labels[:, 0, LABELS[0]]  # the first image's partner has another label
  assert len(set(shares.tolist())) == len(shares)
  for lam, x, y in zip(shares.astype(np.float64), images, labels, strict=True):
    np.testing.assert_allclose(x, lam * IMAGES + (1 - lam) * IMAGES[PARTNER], atol=1e-6)
    np.testing.assert_allclose(y, lam * one_hot + (1 - lam) * one_hot[PARTNER], atol=1e-6)


def test_cutmix_is_algorithm_1():
  """Every batch has a box that the authors' code can draw, and labels by its area."""
  images, labels = draw(0.0, 1.0)
  _, height, width, _ = SHAPE
  one_hot = np.eye(CLASSES)[LABELS]
  grid = np.meshgrid(np.linspace(0, 1, 500), np.arange(width), np.arange(height))
  possible = set(zip(*(np.ravel(edge).tolist() for edge in reference_box(*grid, width, height)), strict=True))
  areas = []
  for box, soft in zip(boxes_of(images), labels, strict=True):
    lam = 1 - box.sum() / box.size
    np.testing.assert_allclose(soft, lam * one_hot + (1 - lam) * one_hot[PARTNER], atol=1e-6)
    areas.append(int(box.sum()))
    if not box.any():
      continue
    rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
    assert box.sum() == len(rows) * len(columns), "a rectangle"
    assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) in possible
  assert min(areas) < 0.2 * height * width < 0.6 * height * width < max(areas)


def test_the_law_of_the_box_is_that_of_the_authors_code():
  """Area and centre over many draws against their code over as many; 5 standard errors."""
  n = 2000
  _, height, width, _ = SHAPE
  random = np.random.RandomState(1)
  theirs = np.zeros((n, height, width))
  boxes = reference_box(random.beta(1, 1, n), random.randint(width, size=n),
                        random.randint(height, size=n), width, height)
  for mask, x1, y1, x2, y2 in zip(theirs, *boxes, strict=True):
    mask[y1:y2, x1:x2] = 1
  marks = jnp.zeros((2, height, width, 1)).at[0].set(1)  # the second image takes its box from the first

  def one(key):
    return 1 - mix(key, marks, jnp.arange(2), 2, mixup=0.0, cutmix=1.0)[0][0, ..., 0]
  ours = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), n)))
  for statistic in (lambda m: m.mean((1, 2)), lambda m: m.mean((1, 2)) ** 2,
                    lambda m: m[:, :, 0].mean(1), lambda m: m[:, 8, 10], lambda m: m[:, 15, 19]):
    a, b = statistic(ours), statistic(theirs)
    assert abs(a.mean() - b.mean()) < 5 * np.sqrt((a.var() + b.var()) / n)


def test_lambda_is_beta_distributed():
  """Moments of Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); 5 standard errors."""
  n = 2000
  for a in (0.2, 4.0):
    def share(key, a=a):
      return mix(key, jnp.zeros((2, 1, 1, 1)), jnp.arange(2), 2, mixup=a, cutmix=0.0)[1][0, 0]
    lam = np.asarray(jax.jit(jax.vmap(share))(jax.random.split(jax.random.key(5), n)), np.float64)
    variance = 1 / (4 * (2 * a + 1))
    assert abs(lam.mean() - 0.5) < 5 * np.sqrt(variance / n)
    squares = (lam - 0.5) ** 2
    assert abs(squares.mean() - variance) < 5 * squares.std() / np.sqrt(n)


def test_with_both_a_batch_gets_one_of_them():
  images, _ = draw(1.0, 1.0, n=200)
  cut = ((images == IMAGES) | (images == IMAGES[PARTNER])).all((1, 2, 3, 4))
  # What is not cut is mixed everywhere. 200 coins: 100 +- 5 * 7.
  changed = images[~cut] != IMAGES
  assert changed.mean() > 0.99 and abs(cut.sum() - 100) < 35


@pytest.mark.parametrize("mixup, cutmix", [(0.4, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_labels_are_distributions_and_keys_decide(mixup, cutmix):
  images, labels = draw(mixup, cutmix)
  assert images.dtype == labels.dtype == np.float32 and (labels >= 0).all()
  np.testing.assert_allclose(labels.sum(-1), 1, atol=1e-6)
  again = draw(mixup, cutmix)
  np.testing.assert_array_equal(images, again[0])
  np.testing.assert_array_equal(labels, again[1])
  assert (draw(mixup, cutmix, seed=1)[0] != images).any()


def test_a_batch_over_four_devices_is_mixed_alike_and_not_gathered():
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec("data"))
  function = functools.partial(mix, num_classes=CLASSES, mixup=1.0, cutmix=1.0)
  over = jax.jit(function, out_shardings=(split, split))
  inputs = jax.random.key(2), jax.device_put(IMAGES, split), jax.device_put(LABELS, split)
  want = jax.jit(function)(inputs[0], IMAGES, LABELS)
  compiled = over.lower(*inputs).compile()
  for a, b in zip(compiled(*inputs), want, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
  text = compiled.as_text()
  assert "collective-permute" in text and "all-gather" not in text


def test_what_cannot_be_mixed():
  for arguments, message in (
      (dict(mixup=-1.0, cutmix=0.0), r"config\.mixup=-1\.0"),
      (dict(mixup=0.0, cutmix=float("nan")), r"config\.cutmix=nan"),
      (dict(mixup=0.0, cutmix=0.0), "nothing to mix")):
    with pytest.raises(ValueError, match=message):
      mix(jax.random.key(0), IMAGES, LABELS, CLASSES, **arguments)
  with pytest.raises(ValueError, match="images of uint8"):
    mix(jax.random.key(0), IMAGES.astype(np.uint8), LABELS, CLASSES, mixup=1.0, cutmix=0.0)
  check_mixing(0.0, 0.0)
