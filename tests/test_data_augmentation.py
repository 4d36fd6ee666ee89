"""Augmentation against Keras, torchvision, PIL and OpenCV."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bionets_jax.data import device_rand_augment, rand_augment
from bionets_jax.data.device_transforms import (
    Affine,
    ChannelShift,
    ResizeTo,
    affine_map,
    channel_shift,
)
from bionets_jax.data.transforms import HOST_TRANSFORMS, PadSquare, TenCrop, nearest_positions

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))

from make_augmentation_fixtures import MAGNITUDES, NEAREST, TEN_CROPS, golden_picture  # noqa: E402


@pytest.fixture(scope="module")
def golden():
  with np.load(FIXTURES / "augmentation.npz") as file:
    return dict(file)


# Keras' ImageDataGenerator.


@jax.jit
def keras_affine(image, parameters):
  """`affine_map` with Keras' parameters: tx, the shift along the rows, moves columns there."""
  rotation, tx, ty, shear, zoom_x, zoom_y = parameters
  height, width, _ = image.shape
  return affine_map(image, rotation, tx / width, ty / height, shear, zoom_x, zoom_y)


def test_affine_equals_keras(golden):
  picture = golden_picture(24, 24)
  parameters = golden["affine/parameters"]
  ours = jax.vmap(keras_affine, (None, 0))(picture, parameters)
  np.testing.assert_array_equal(ours[0], picture)
  np.testing.assert_allclose(ours, golden["affine/images"], atol=1e-3)  # of 255 levels


def test_affine_then_channel_shift_then_flip_is_keras_order(golden):
  picture = golden_picture(24, 24)
  for parameters, expected in zip(
      golden["generator/parameters"], golden["generator/images"], strict=True):
    ours = channel_shift(keras_affine(picture, parameters[:6]), parameters[6])
    ours = ours[:, ::-1] if parameters[7] else ours
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_affine_of_an_image_that_is_not_square_turns_about_its_centre():
  image = np.zeros((5, 9, 1), np.uint8)
  image[2, 4] = 200
  image[2, 6] = 100
  turned = np.asarray(jax.jit(affine_map)(image, 90.0, 0.0, 0.0, 0.0, 1.0, 1.0))[..., 0]
  expected = np.zeros((5, 9))
  expected[2, 4] = 200
  expected[0, 4] = 100  # what was two to the right is two above: y points down
  np.testing.assert_allclose(turned, expected, atol=0.01)


def test_parameters_are_drawn_from_the_whole_of_their_ranges(monkeypatch):
  transform = Affine(20, 0.3, 0.7, 1.3, 0.2)
  monkeypatch.setattr(
      "bionets_jax.data.device_transforms.affine_map", lambda image, *p: jnp.stack(p))
  keys = jax.random.split(jax.random.key(0), 4000)
  drawn = np.asarray(jax.jit(jax.vmap(lambda key: transform(None, key)))(keys))
  low, high = np.array([-20, -0.3, -0.3, -0.2, 0.7, 0.7]), np.array([20, 0.3, 0.3, 0.2, 1.3, 1.3])
  span = high - low
  assert (drawn >= low).all() and (drawn <= high).all()
  np.testing.assert_array_less(drawn.min(0), low + 0.01 * span)
  np.testing.assert_array_less(high - 0.01 * span, drawn.max(0))
  np.testing.assert_allclose(drawn.mean(0), (low + high) / 2, atol=0.03 * span.max())
  # All six are independent, the two zooms too.
  assert np.abs(np.corrcoef(drawn.T) - np.eye(6)).max() < 0.06


def test_channel_shift_adds_one_number_within_the_image_s_own_range():
  image = np.array([[[50, 100, 150]], [[60, 110, 200]]], np.uint8)
  for seed in range(8):
    shifted = np.asarray(ChannelShift(0.1)(image, jax.random.key(seed)))
    shift = shifted[0, 0, 1] - 100
    assert abs(shift) <= 25.5
    np.testing.assert_allclose(shifted, np.clip(image + shift, 50, 200), atol=1e-3)


# Resizing and cropping.


@pytest.mark.parametrize("old, new", NEAREST)
def test_nearest_is_opencv_s(golden, old, new):
  np.testing.assert_array_equal(nearest_positions(old, new), golden[f"nearest/{old}_{new}"])


def test_nearest_is_pil_s_where_the_size_is_a_multiple():
  picture = golden_picture(32, 32)
  expected = np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.NEAREST))
  np.testing.assert_array_equal(HOST_TRANSFORMS["resize_to"](224, "nearest")(picture, None), expected)
  np.testing.assert_array_equal(ResizeTo(224, "nearest")(picture, None), expected)


@pytest.mark.parametrize("size", [7, 20, 64])
def test_nearest_is_the_same_on_host_and_device(size):
  picture = golden_picture(20, 31)
  on_host = HOST_TRANSFORMS["resize_to"](size, "nearest")(picture, None)
  assert on_host.shape == (size, size, 3)
  np.testing.assert_array_equal(ResizeTo(size, "nearest")(jnp.asarray(picture), None), on_host)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_to_is_pil_s_with_both_sides_given(interpolation):
  picture = golden_picture(20, 31)
  expected = Image.fromarray(picture).resize((16, 16), getattr(Image.Resampling, interpolation.upper()))
  ours = HOST_TRANSFORMS["resize_to"](16, interpolation)(picture, None)
  np.testing.assert_array_equal(ours, np.asarray(expected))


def test_pad_square_puts_the_image_in_the_middle():
  image = np.ones((3, 6, 1), np.uint8)
  np.testing.assert_array_equal(PadSquare()(image, None)[:, 0, 0], [0, 1, 1, 1, 0, 0])
  np.testing.assert_array_equal(PadSquare()(image.transpose(1, 0, 2), None)[0, :, 0], [0, 1, 1, 1, 0, 0])
  assert PadSquare().output_size((3, 6)) == (6, 6)
  assert PadSquare().output_size((None, None)) == (None, None)


@pytest.mark.parametrize("height, width, crop", TEN_CROPS)
def test_ten_crop_is_torchvision_s(golden, height, width, crop):
  crops = TenCrop(crop)(golden_picture(height, width), None)
  np.testing.assert_array_equal(crops, golden[f"crops/{height}x{width}_{crop}"])


def test_ten_crop_of_too_small_an_image():
  with pytest.raises(ValueError, match="31 x 40 pixels is too small for 32 x 32"):
    TenCrop(32)(golden_picture(31, 40), None)


# RandAugment.


def directions(golden, mode):
  """Yields (operation, magnitude, backwards, torchvision's result (h, w, c))."""
  for operation in rand_augment.OPERATIONS:
    images = iter(golden[f"rand/{mode}/{operation}"])
    for magnitude in MAGNITUDES:
      for backwards in (False, True):
        image = next(images)
        yield operation, magnitude, backwards, image.reshape(*image.shape[:2], -1)


def test_rand_augment_has_torchvision_s_operations_and_strengths(golden):
  assert list(rand_augment.OPERATIONS) == golden["rand/operations"].tolist()
  ours = [[rand_augment.strength(name, magnitude, 33, 40) for magnitude in range(31)]
          for name in rand_augment.OPERATIONS]
  np.testing.assert_array_equal(np.float32(ours), golden["rand/strengths"])


@pytest.mark.parametrize("mode", ["rgb", "gray"])
def test_rand_augment_on_the_host_equals_torchvision(golden, mode):
  picture = golden_picture(33, 40)
  image = Image.fromarray(picture if mode == "rgb" else picture[..., 0])
  for operation, magnitude, backwards, expected in directions(golden, mode):
    amount = rand_augment.strength(operation, magnitude, 33, 40)
    if backwards and operation in rand_augment.SIGNED:
      amount = -amount
    ours = np.asarray(rand_augment.apply_operation(image, operation, amount)).reshape(expected.shape)
    np.testing.assert_array_equal(ours, expected, err_msg=f"{operation} {magnitude} {backwards}")


@pytest.mark.parametrize("mode", ["rgb", "gray"])
def test_rand_augment_on_the_device_equals_torchvision(golden, mode):
  picture = golden_picture(33, 40) if mode == "rgb" else golden_picture(33, 40)[..., :1]
  cases = list(directions(golden, mode))
  # Batched, as it is run.
  results = {}
  for magnitude in MAGNITUDES:
    which = [(rand_augment.OPERATIONS.index(name), backwards)
             for name, m, backwards, _ in cases if m == magnitude]
    operations, backwards = map(np.array, zip(*which, strict=True))
    ours = jax.jit(jax.vmap(
        lambda o, b, m=magnitude: device_rand_augment.apply_operation(jnp.asarray(picture), o, m, b)
    ))(operations, backwards)
    results |= {(*key, magnitude): image for key, image in zip(which, np.asarray(ours), strict=True)}
  for name, magnitude, backwards, expected in cases:
    ours = results[rand_augment.OPERATIONS.index(name), backwards, magnitude]
    difference = np.abs(ours.astype(int) - expected)
    rounded = (*rand_augment.BLENDED, "AutoContrast")
    assert difference.max() <= (name in rounded), (name, magnitude, backwards, difference.max())
    assert (difference > 0).mean() < 0.005, (name, magnitude, backwards)


def test_rand_augment_draws_every_operation_both_ways():
  class Recorded:
    """Counts up in steps that fall into every operation and either direction."""

    def __init__(self, *numbers):
      self._numbers = iter(numbers)

    def random(self):
      return next(self._numbers)

  picture = golden_picture(33, 40)
  for i, name in enumerate(rand_augment.OPERATIONS):
    for direction in (0.2, 0.7):
      ours = rand_augment.RandAugment(1, 9)(picture, Recorded((i + 0.5) / 14, direction))
      amount = rand_augment.strength(name, 9, 33, 40)
      amount *= -1 if direction < 0.5 and name in rand_augment.SIGNED else 1
      expected = rand_augment.apply_operation(Image.fromarray(picture), name, amount)
      np.testing.assert_array_equal(ours, np.asarray(expected), err_msg=name)


def test_rand_augment_on_the_device_applies_operations_in_turn():
  picture = golden_picture(33, 40)
  keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), 48)
  transform = device_rand_augment.RandAugment(2, 9)
  ours = jax.jit(jax.vmap(lambda key: transform(jnp.asarray(picture), key)))(keys)
  assert ours.dtype == jnp.uint8
  drawn = {name: 0 for name in rand_augment.OPERATIONS}
  far = 0
  which, direction = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  operations = np.asarray(jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 14))(which))
  signs = np.asarray(jax.vmap(lambda key: jax.random.bernoulli(key, shape=(2,)))(direction))
  for image, pair, both in zip(np.asarray(ours), operations, signs, strict=True):
    expected = Image.fromarray(picture)
    for i, backwards in zip(pair, both, strict=True):
      name = rand_augment.OPERATIONS[int(i)]
      drawn[name] += 1
      amount = rand_augment.strength(name, 9, 33, 40)
      sign = -1 if backwards and name in rand_augment.SIGNED else 1
      expected = rand_augment.apply_operation(expected, name, sign * amount)
    # A level that the first operation rounds otherwise can become several in the second.
    far += (np.abs(image.astype(int) - np.asarray(expected)) > 2).mean() > 0.01
  assert far == 0
  assert min(drawn.values()) > 0
