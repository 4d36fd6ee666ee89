import sys

import numpy as np
import pytest
from PIL import Image

from bionets_jax.data import HOST_TRANSFORMS, fast_resize, parse_transforms
from bionets_jax.data.transforms import (
    CenterCrop,
    Flip,
    RandomResizedCrop,
    Resize,
    ResizeTo,
    apply_all,
    example_rng,
    output_size,
)


class Scripted:
  """A generator that returns the given numbers, the last one for ever."""

  def __init__(self, *numbers):
    self._numbers = list(numbers)
    self.drawn = 0

  def random(self):
    self.drawn += 1
    return self._numbers.pop(0) if len(self._numbers) > 1 else self._numbers[0]


@pytest.fixture
def image():
  return np.random.RandomState(0).randint(0, 256, (100, 200, 3)).astype(np.uint8)


def test_random_resized_crop_by_hand(image):
  # First try: area 20000 * (.08 + .92 * .5) = 10800, aspect 1, so 104 x 104: too high. Second:
  # area 20000 * (.08 + .92 * .1) = 3440, so 59 x 59; top 42 * .25 = 10, left 142 * .5 = 71.
  rng = Scripted(0.5, 0.5, 0.1, 0.5, 0.25, 0.5)
  assert RandomResizedCrop(32).box(100, 200, rng) == (10, 71, 59, 59)
  assert rng.drawn == 6
  result = RandomResizedCrop(32)(image, Scripted(0.5, 0.5, 0.1, 0.5, 0.25, 0.5))
  crop = Image.fromarray(image).crop((71, 10, 71 + 59, 10 + 59))
  expected = np.asarray(crop.resize((32, 32), Image.Resampling.BILINEAR))
  np.testing.assert_array_equal(result, expected)


def test_random_resized_crop_falls_back_to_the_centre():
  # Always large and wide: never fits into 10 x 100. Ten tries of two draws.
  rng = Scripted(0.99)
  assert RandomResizedCrop(32).box(10, 100, rng) == (0, 43, 10, 13)
  assert rng.drawn == 20
  assert RandomResizedCrop(32).box(100, 10, Scripted(0.99)) == (43, 0, 13, 10)


def test_random_resized_crop_has_the_published_distribution():
  crop = RandomResizedCrop(8)
  boxes = np.array([crop.box(300, 400, example_rng(0, 0, i)) for i in range(3000)])
  top, left, h, w = boxes.T
  assert (top >= 0).all() and (left >= 0).all()
  assert (top + h <= 300).all() and (left + w <= 400).all()
  area, log_ratio = h * w / 120_000, np.log(w / h)
  assert area.min() < 0.09 and 0.9 < area.max() <= 1
  assert abs(log_ratio).max() <= np.log(4 / 3) + 0.02
  # Every ratio fits where the area is small, so there both are uniform.
  small = area < 0.5
  np.testing.assert_allclose(area[small].mean(), (0.08 + 0.5) / 2, atol=0.02)
  np.testing.assert_allclose(log_ratio[small].mean(), 0, atol=0.02)
  np.testing.assert_allclose(log_ratio[small].std(), np.log(16 / 9) / 12**0.5, atol=0.01)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape, size, expected", [
    ((333, 500, 3), 256, (256, 384)),  # int(256 * 500 / 333) = int(384.38)
    ((500, 333, 3), 256, (384, 256)),
    ((7, 7, 3), 20, (20, 20)),
    ((61, 47, 1), 30, (38, 30)),
])
def test_resize_equals_pil(shape, size, expected, interpolation):
  image = np.random.RandomState(1).randint(0, 256, shape).astype(np.uint8)
  resized = Resize(size, interpolation)(image, None)
  pil = Image.fromarray(image[..., 0] if shape[-1] == 1 else image)
  reference = pil.resize(expected[::-1], getattr(Image.Resampling, interpolation.upper()))
  np.testing.assert_array_equal(resized.reshape(*expected, -1).squeeze(), np.asarray(reference))
  assert resized.shape == (*expected, shape[-1])
  assert Resize(size).output_size(shape[:2]) == expected


def test_resize_leaves_the_right_size_alone(image):
  assert Resize(100)(image, None) is image


@pytest.mark.parametrize("shape, size, top, left", [
    ((5, 8), 2, 2, 3),  # round(1.5) is 2
    ((7, 9), 4, 2, 2),  # and round(2.5) is 2 as well
    ((256, 341), 224, 16, 58),
])
def test_center_crop_rounds_as_torchvision(shape, size, top, left):
  image = np.arange(shape[0] * shape[1]).reshape(*shape, 1)
  cropped = CenterCrop(size)(image, None)
  np.testing.assert_array_equal(cropped, image[top:top + size, left:left + size])


def test_center_crop_pads_small_images_with_black():
  image = np.ones((3, 6, 3), np.uint8)
  cropped = CenterCrop(6)(image, None)
  np.testing.assert_array_equal(cropped[..., 0].sum(1), [0, 6, 6, 6, 0, 0])


def test_flip(image):
  np.testing.assert_array_equal(Flip()(image, Scripted(0.49)), image[:, ::-1])
  assert Flip()(image, Scripted(0.5)) is image


def test_the_augmentation_is_a_function_of_seed_epoch_and_index(image):
  transforms = parse_transforms("random_resized_crop(8)|flip", HOST_TRANSFORMS)
  results = {
      key: apply_all(transforms, image, example_rng(*key)).tobytes()
      for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
  }
  assert len(set(results.values())) == 4
  assert apply_all(transforms, image, example_rng(0, 1, 0)).tobytes() == results[0, 1, 0]
  # Written down once; another stream would make runs irreproducible.
  assert example_rng(5, 6, 7).random() == pytest.approx(0.019330015565560577, abs=1e-15)


@pytest.mark.parametrize("channels", [1, 3])
def test_fast_bilinear_is_pil_s_but_for_a_level_or_two(image, channels):
  pytest.importorskip("cykooz_resizer")
  view = image[3:80, 20:191, :channels]  # not contiguous
  for size in (32, 120, 400):  # smaller, mixed and larger
    exact, fast = (
        ResizeTo(size, name)(view, None).astype(int) for name in ("bilinear", "fast_bilinear"))
    assert fast.shape == (size, size, channels)
    assert abs(fast - exact).max() <= 2 and abs(fast - exact).mean() < 0.4
  crop, = parse_transforms("random_resized_crop(32, fast_bilinear)", HOST_TRANSFORMS)
  numbers = 0.5, 0.5, 0.1, 0.5, 0.25, 0.5
  plain = RandomResizedCrop(32)(image, Scripted(*numbers))
  assert abs(crop(image, Scripted(*numbers)).astype(int) - plain).max() <= 2


def test_fast_bilinear_without_its_package_says_what_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
  fast_resize._package.cache_clear()
  with pytest.raises(ValueError, match="'resize.256, fast_bilinear.' .*pip install cykooz-resizer"):
    parse_transforms("resize(256, fast_bilinear)", HOST_TRANSFORMS)


def test_parse():
  assert parse_transforms("", HOST_TRANSFORMS) == ()
  assert parse_transforms(" resize( 256 , bicubic ) | center_crop(224)|flip ", HOST_TRANSFORMS) == (
      Resize(256, "bicubic"), CenterCrop(224), Flip()
  )


@pytest.mark.parametrize("text, message", [
    ("random_resize_crop(224)", "Did you mean 'random_resized_crop'"),
    ("resize(256", "Cannot read the transform 'resize"),
    ("resize(256)||flip", "Cannot read the transform ''"),
    ("resize(256)flip", "Cannot read the transform"),
    ("resize", r"'resize' does not fit resize\(size\[, bilinear\|bicubic\|fast_bilinear\]\)"),
    ("flip(0.5)", r"'flip\(0.5\)' does not fit flip\."),
    ("resize(25.6)", "whole number of pixels"),
    ("resize(0)", "whole number of pixels"),
    ("resize(256, lanczos)", "interpolation must be one of bilinear, bicubic, fast_bilinear, got 'lanczos'"),
    ("resize('a')", "not an argument"),
])
def test_parse_errors(text, message):
  with pytest.raises(ValueError, match=message):
    parse_transforms(text, HOST_TRANSFORMS)


@pytest.mark.parametrize("text, size", [
    ("random_resized_crop(32)|flip", (32, 32)),
    ("resize(256)", (None, None)),
    ("resize(256)|center_crop(224)", (224, 224)),
    ("", (None, None)),
])
def test_output_size(text, size):
  assert output_size(parse_transforms(text, HOST_TRANSFORMS), (None, None)) == size
