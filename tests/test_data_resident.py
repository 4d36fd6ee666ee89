import io

import jax
import numpy as np
import pytest
from data_tools import digits, one_device, real_data, take
from PIL import Image

from bionets_jax.data import BatchPlan, make_pipeline, open_source, parse_transforms
from bionets_jax.data.device_transforms import DEVICE_TRANSFORMS
from bionets_jax.data.resident import ResidentSet, load


@pytest.fixture(scope="module")
def mesh():
  return one_device()


def test_resident_batches_hold_the_planned_examples(mesh):
  pipeline = digits(mesh)
  assert pipeline.resident
  assert (pipeline.num_train, pipeline.num_eval, pipeline.num_classes) == (1442, 355, 10)
  assert pipeline.image_shape == pipeline.eval_image_shape == (8, 8, 1)
  assert (pipeline.steps_per_epoch, pipeline.batch_sizes()) == (12, (128, 34))
  source = open_source("digits", "train")
  plan = BatchPlan(1442, 128, 0, False)
  batches = take(pipeline.train_batches(11), 2)
  assert [len(batch["label"]) for batch in batches] == [34, 128]
  for step, batch in zip((11, 12), batches, strict=True):
    assert set(batch) == {"image", "label"}
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
    for row, index in enumerate(plan.indices(step)[1]):
      image, label, _ = source.read(int(index))
      np.testing.assert_array_equal(batch["image"][row], image)
      assert batch["label"][row] == label


def test_resident_evaluation_is_exact(mesh):
  source = open_source("digits", "test")
  batches = take(digits(mesh).eval_batches(), 99)
  assert [batch["image"].shape for batch in batches] == [(100, 8, 8, 1)] * 4
  mask = np.concatenate([batch["mask"] for batch in batches])
  assert mask.dtype == np.float32
  np.testing.assert_array_equal(mask, [1] * 355 + [0] * 45)
  images = np.concatenate([batch["image"] for batch in batches])
  labels = np.concatenate([batch["label"] for batch in batches])
  for i in range(355):
    np.testing.assert_array_equal(images[i], source.read(i)[0])
    assert labels[i] == source.read(i)[1]
  assert not images[355:].any() and not labels[355:].any()


def test_pad_crop_and_flip_give_windows_of_the_padded_image(mesh):
  images = np.random.RandomState(0).randint(1, 256, (40, 6, 5, 3)).astype(np.uint8)
  transforms = parse_transforms("pad_crop(2)|flip", DEVICE_TRANSFORMS)
  resident = ResidentSet(images, np.arange(40, dtype=np.int32), mesh, transforms)
  out = np.asarray(resident.batch(3, 0, np.arange(40))["image"])
  padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
  seen = set()
  for i in range(40):
    matches = [
        (top, left, flip)
        for top in range(5) for left in range(5) for flip in (1, -1)
        if np.array_equal(out[i], padded[i, top:top + 6, left:left + 5][:, ::flip])
    ]
    assert len(matches) == 1
    seen.update(matches)
  # All of the five offsets each way, and both directions.
  tops, lefts, flips = map(set, zip(*seen, strict=True))
  assert (tops, lefts, flips) == (set(range(5)), set(range(5)), {1, -1})


def test_device_augmentation_follows_from_seed_epoch_and_index_alone(mesh):
  images = np.random.RandomState(0).randint(1, 256, (20, 9, 9, 1)).astype(np.uint8)
  labels = np.zeros(20, np.int32)
  transforms = parse_transforms("pad_crop(4)|flip", DEVICE_TRANSFORMS)
  resident = ResidentSet(images, labels, mesh, transforms)
  all_at_once = np.asarray(resident.batch(3, 5, np.arange(20))["image"])
  others = np.array([7, 3, 7, 19])
  np.testing.assert_array_equal(resident.batch(3, 5, others)["image"], all_at_once[others])
  assert (np.asarray(resident.batch(3, 6, np.arange(20))["image"]) != all_at_once).any()
  assert (np.asarray(resident.batch(4, 5, np.arange(20))["image"]) != all_at_once).any()


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_device_augmentation_is_of_keys_folded_from_the_seed(mesh, seed):
  # Written out once more from jax's primitives: another stream would make runs irreproducible.
  image = np.random.RandomState(0).randint(1, 256, (9, 9, 1)).astype(np.uint8)
  epoch, index = 3, 5
  key = jax.random.key(seed, impl="threefry2x32")
  for number in (epoch, index):
    key = jax.random.fold_in(key, number)
  top, left = jax.random.randint(jax.random.fold_in(key, 0), (2,), 0, 9)
  expected = np.pad(image, ((4, 4), (4, 4), (0, 0)))[top:top + 9, left:left + 9]
  if jax.random.bernoulli(jax.random.fold_in(key, 1)):
    expected = expected[:, ::-1]
  transforms = parse_transforms("pad_crop(4)|flip", DEVICE_TRANSFORMS)
  resident = ResidentSet(np.stack([image] * 6), np.zeros(6, np.int32), mesh, transforms)
  np.testing.assert_array_equal(resident.batch(seed, epoch, [index])["image"][0], expected)


def test_loading_names_the_example_that_is_broken():
  class Broken(type(open_source("digits", "train"))):

    def read(self, index):
      image, label, key = super().read(index)
      return (b"no image" if index == 600 else image), label, f"number {index}"

  with pytest.raises(ValueError, match="Example number 600: not a readable image"):
    load(Broken("train"), (), (8, 8, 1))


# Real data, where there are any.


def test_cifar10_lives_on_the_device(mesh):
  pipeline = make_pipeline(
      name="cifar10", dir=real_data(), train_split="train[90%:]", eval_split="test[:500]",
      batch_size=128, eval_batch_size=200, seed=2, mesh=mesh,
  )
  assert pipeline.resident and pipeline.num_train == 5000
  source = open_source("cifar10", "train[90%:]", real_data())
  batch, = take(pipeline.train_batches(40), 1)
  indices = BatchPlan(5000, 128, 2, False).indices(40)[1]
  for row in range(0, 128, 16):
    image, label, _ = source.read(int(indices[row]))
    np.testing.assert_array_equal(batch["image"][row], np.asarray(Image.open(io.BytesIO(image))))
    assert batch["label"][row] == label
  assert sum(b["mask"].sum() for b in take(pipeline.eval_batches(), 9)) == 500
