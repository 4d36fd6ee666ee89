"""Which transforms run where."""

import jax
import numpy as np
import pytest
from data_tools import NUM_VAL, digits, streamed, take
from PIL import Image

from bionets_jax.data import open_source, parse_transforms
from bionets_jax.data.device_transforms import DEVICE_TRANSFORMS
from bionets_jax.data.placement import place
from bionets_jax.data.resident import ResidentSet
from bionets_jax.data.transforms import HOST_TRANSFORMS, apply_all

AUGMENTATION = "affine(20, 0.3, 0.7, 1.3, 0.2)|channel_shift(0.1)|flip"


class Images:
  """What `place` asks of a source."""

  name = "images"

  def __init__(self, number, *image_shape):
    self._number = number
    self.image_shape = image_shape

  def __len__(self):
    return self._number


def where(text, source, others=()):
  """The placement of a training split whose transforms are `text`."""
  return place([("train_transform", text, source), *others])[0]


@pytest.mark.parametrize("shape, text, on_host, stored, final", [
    # Of one size: everything on the device.
    ((32, 32, 3), "", "", (32, 32), (32, 32)),
    ((32, 32, 3), "pad_crop(4)|flip", "", (32, 32), (32, 32)),
    ((32, 32, 3), "rand_augment(2, 9)|pad_crop(4)", "", (32, 32), (32, 32)),
    # Enlarged on the device, where the small images are kept; made smaller before.
    ((32, 32, 3), "resize_to(224, nearest)|" + AUGMENTATION, "", (32, 32), (224, 224)),
    ((32, 32, 3), "resize_to(16, nearest)|flip", "resize_to(16, nearest)", (16, 16), (16, 16)),
    ((32, 32, 3), "resize_to(224)|flip", "resize_to(224)", (224, 224), (224, 224)),
    # Of many sizes: first what gives them one.
    ((None, None, 3), "pad_square|resize_to(224, nearest)|" + AUGMENTATION,
     "pad_square|resize_to(224, nearest)", (224, 224), (224, 224)),
    ((None, None, 3), "resize(40)|center_crop(32)|pad_crop(4)|flip", "resize(40)|center_crop(32)",
     (32, 32), (32, 32)),
    ((None, None, 1), "resize(40)|center_crop(32)", "resize(40)|center_crop(32)", (32, 32), (32, 32)),
])
def test_on_the_device(shape, text, on_host, stored, final):
  placement = where(text, Images(1000, *shape))
  assert placement.resident
  assert placement.host == parse_transforms(on_host, HOST_TRANSFORMS)
  rest = text.removeprefix(on_host).removeprefix("|")
  assert placement.device == parse_transforms(rest, DEVICE_TRANSFORMS)
  assert placement.host_shape == (*stored, shape[-1])
  assert placement.image_shape == (*final, shape[-1])


@pytest.mark.parametrize("shape, text, final", [
    ((None, None, 3), "random_resized_crop(24)|flip", (24, 24, 3)),
    ((32, 32, 3), "random_resized_crop(24)|rand_augment(2, 9)", (24, 24, 3)),
    ((32, 32, 3), "flip|resize(24)", (24, 24, 3)),  # what is random must not come before the rest
    ((None, None, 3), "rand_augment(2, 9)|resize_to(24, nearest)", (24, 24, 3)),
    ((32, 40, 3), "pad_square|ten_crop(24)", (10, 24, 24, 3)),
])
def test_on_the_host(shape, text, final):
  placement = where(text, Images(1000, *shape))
  assert not placement.resident
  assert placement.transforms == placement.host == parse_transforms(text, HOST_TRANSFORMS)
  assert placement.image_shape == placement.host_shape == final


def test_two_gibibytes_of_all_splits_together_are_the_limit():
  text = "resize_to(256, nearest)"
  gibibyte = 2**30 // (256 * 256)
  half = Images(gibibyte, None, None, 1)
  more = Images(gibibyte + 1, None, None, 1)
  for other, resident in ((half, True), (more, False)):
    placements = place([("train_transform", text, half), ("eval_transform", text, other)])
    assert [placement.resident for placement in placements] == [resident] * 2
  # The 7,349 pictures of Oxford-IIIT Pet and the 8,883 of Cropped-PlantDoc fit at 224 pixels.
  text = "pad_square|resize_to(224, nearest)"
  assert where(text, Images(8883, None, None, 3)).resident
  with pytest.raises(ValueError, match="all splits together are 2.0 GiB, more than 2"):
    where("resize_to(256, nearest)|channel_shift(0.1)", Images(2 * gibibyte + 1, None, None, 1))


def test_the_training_split_decides_for_all():
  small = Images(10, 32, 32, 3)
  evaluation = ("eval_transform", "center_crop(24)", small)
  assert [p.resident for p in place([("train_transform", "flip", small), evaluation])] == [True, True]
  train = ("train_transform", "random_resized_crop(24)", small)
  assert [p.resident for p in place([train, evaluation])] == [False, False]
  # But one that is tested on may be streamed beside it.
  test = ("test_transform", "ten_crop(24)", small)
  placements = place([("train_transform", "flip", small), evaluation, test])
  assert [p.resident for p in placements] == [True, True, False]


@pytest.mark.parametrize("shape, text, message", [
    ((None, None, 3), "affine(20)", r"train_transform: affine\(20\) works on a set that lives on the "
     r"device, and images is streamed from the host, for its images differ in size.*pad_square\|"),
    ((32, 32, 3), "pad_crop(4)|resize(24)", r"pad_crop\(4\) works on .* for resize\(24\) works there"),
    ((None, None, 3), "random_resized_crop(24)|affine(9)", r"random_resized_crop\(24\) works there alone"),
    ((None, None, 3), "resize(24)", "differ in size and train_transform does not end in one fixed size"),
    ((None, None, 3), "ten_crop(8)|flip", r"ten_crop\(8\) makes ten images of one and must come last"),
    ((32, 32, 3), "ten_crop(33)", "train_transform: an image of 32 x 32 pixels is too small for 33"),
    ((32, 32, 3), "pad_crop(0)", r"train_transform: 'pad_crop\(0\)' does not fit pad_crop\(pixels\)"),
    ((32, 32, 3), "afine(20)", "train_transform: Unknown transform 'afine'. Did you mean 'affine'"),
    ((32, 32, 3), "affine(20", "Cannot read the transform 'affine.20'"),
    ((32, 32, 3), "flip||flip", "Cannot read the transform ''"),
    ((32, 32, 3), "affine(200)", "rotation must be a number from 0 to 180, got 200"),
    ((32, 32, 3), "affine(20, 0.1, 1.3, 0.7)", "zoom_high must be a number from 1.3"),
    ((32, 32, 3), "affine", r"'affine' does not fit affine\(rotation\[, shift"),
    ((32, 32, 3), "channel_shift(25)", "limit must be a number from 0 to 1"),
    ((32, 32, 3), "rand_augment(2, 31)", "magnitude must be a whole number from 0 to 30, got 31"),
    ((32, 32, 3), "rand_augment(0, 9)", "number of operations must be a whole number >= 1"),
    ((32, 32, 3), "resize_to(24, lanczos)", "must be one of bilinear, bicubic, fast_bilinear, nearest"),
])
def test_refused(shape, text, message):
  with pytest.raises(ValueError, match=message):
    where(text, Images(1000, *shape))


# The same through make_pipeline.


def test_images_of_many_sizes_live_on_the_device_once_prepared(mesh, folder):
  prepare = "pad_square|resize_to(8, nearest)"
  pipeline = streamed(mesh, folder, train_transform=f"{prepare}|flip", eval_transform=prepare)
  assert pipeline.resident and pipeline.image_shape == pipeline.eval_image_shape == (8, 8, 3)
  source = open_source("folder", "val", str(folder))
  images = np.concatenate([batch["image"] for batch in take(pipeline.eval_batches(), 9)])
  transforms = parse_transforms(prepare, HOST_TRANSFORMS)
  for i in range(NUM_VAL):
    pixels = np.asarray(Image.open(source.read(i)[2]))
    np.testing.assert_array_equal(images[i], apply_all(transforms, pixels, None))
  assert f"{(11 + NUM_VAL) * 192 / 2**20:.1f} MiB on every device" in pipeline.describe()


def test_float_images_are_rounded_once_at_the_end(mesh):
  source = open_source("digits", "test")
  image, _, _ = source.read(3)
  transforms = parse_transforms(AUGMENTATION, DEVICE_TRANSFORMS)
  resident = ResidentSet(image[None], np.zeros(1, np.int32), mesh, transforms)
  ours = np.asarray(resident.batch(5, 0, [0])["image"][0])
  assert ours.dtype == np.uint8

  @jax.jit
  def augment(image, key):
    for number in (0, 0):  # epoch and index
      key = jax.random.fold_in(key, number)
    for position, transform in enumerate(transforms):
      image = transform(image, jax.random.fold_in(key, position))
    return image

  exact = augment(image, jax.random.key(5, impl="threefry2x32"))
  assert exact.dtype == np.float32
  np.testing.assert_allclose(ours, exact, atol=0.501)


def test_a_small_set_streams_what_the_device_cannot(mesh):
  pipeline = digits(mesh, train_transform="random_resized_crop(6)|rand_augment(1, 9)", workers=0)
  assert not pipeline.resident and pipeline.image_shape == (6, 6, 1)
  assert take(pipeline.train_batches(), 1)[0]["image"].shape == (128, 6, 6, 1)
