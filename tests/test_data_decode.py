import io

import numpy as np
import pytest
from PIL import Image

from bionets_jax.data.decode import (
    decode,
    decode_gray,
    decode_rgb,
    decode_top,
    size_of_baseline_jpeg,
)


def encode(image, **kwargs):
  buffer = io.BytesIO()
  image.save(buffer, **kwargs)
  return buffer.getvalue()


@pytest.fixture
def rgb():
  y, x = np.mgrid[:30, :20]
  return np.stack([x * 12, y * 8, (x + y) * 5], -1).astype(np.uint8)


def test_jpeg_equals_pil(rgb):
  data = encode(Image.fromarray(rgb), format="JPEG", quality=90)
  expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
  decoded = decode_rgb(data)
  assert decoded.dtype == np.uint8
  np.testing.assert_array_equal(decoded, expected)


def test_png_under_any_name(rgb):
  np.testing.assert_array_equal(decode_rgb(encode(Image.fromarray(rgb), format="PNG")), rgb)


def test_gray_becomes_three_equal_channels(rgb):
  gray = rgb[..., 0]
  for kind in ("PNG", "JPEG"):
    decoded = decode_rgb(encode(Image.fromarray(gray), format=kind, quality=100))
    assert decoded.shape == (30, 20, 3)
    np.testing.assert_allclose(decoded, np.stack([gray] * 3, -1), atol=2)


def test_gray_set_keeps_one_channel(rgb):
  gray = rgb[..., 0]
  for kind in ("PNG", "JPEG"):
    decoded = decode_gray(encode(Image.fromarray(gray), format=kind, quality=100))
    assert decoded.shape == (30, 20, 1)
    np.testing.assert_allclose(decoded[..., 0], gray, atol=2)


def test_palette_and_alpha(rgb):
  alpha = Image.fromarray(np.dstack([rgb, np.full((30, 20), 7, np.uint8)]))
  np.testing.assert_array_equal(decode_rgb(encode(alpha, format="PNG")), rgb)
  palette = Image.fromarray(rgb).quantize(16)
  np.testing.assert_array_equal(
      decode_rgb(encode(palette, format="PNG")), np.asarray(palette.convert("RGB"))
  )


def test_cmyk_jpeg(rgb):
  image = Image.fromarray(rgb).convert("CMYK")
  decoded = decode_rgb(encode(image, format="JPEG", quality=100, subsampling=0))
  np.testing.assert_allclose(decoded, rgb, atol=12)


def test_sixteen_bits_keep_the_upper_eight():
  deep = (np.arange(600).reshape(30, 20) * 100).astype(np.uint16)
  decoded = decode_rgb(encode(Image.fromarray(deep), format="PNG"))
  np.testing.assert_array_equal(decoded[..., 1], deep >> 8)


def test_exif_rotation_is_ignored(rgb):
  exif = Image.Exif()
  exif[0x0112] = 6  # rotate by 90 degrees
  data = encode(Image.fromarray(rgb), format="JPEG", exif=exif)
  assert decode_rgb(data).shape == (30, 20, 3)


# The upper part of a JPEG.


@pytest.fixture(scope="module")
def noise():
  return np.random.RandomState(0).randint(0, 256, (75, 53, 3)).astype(np.uint8)


@pytest.mark.parametrize("options", [
    dict(subsampling="4:4:4"), dict(subsampling="4:2:2"), dict(subsampling="4:2:0"),
    dict(subsampling="4:2:0", restart_marker_rows=1), dict(subsampling="4:2:0", progressive=True),
])
def test_the_top_has_the_pixels_of_the_whole(noise, options):
  data = encode(Image.fromarray(noise), format="JPEG", quality=80, **options)
  whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
  in_part = not options.get("progressive")
  assert size_of_baseline_jpeg(data) == ((75, 53) if in_part else None)
  for rows in range(1, 76):
    top = decode_top(data, 3, rows)
    assert top.shape == (min(rows + 2, 75) if in_part else 75, 53, 3)
    np.testing.assert_array_equal(top[:rows], whole[:rows])


def test_the_top_of_other_images(noise):
  gray = encode(Image.fromarray(noise[..., 0]), format="JPEG", quality=80)
  np.testing.assert_array_equal(decode_top(gray, 1, 20), decode_gray(gray)[:22])
  np.testing.assert_array_equal(decode_top(gray, 3, 20), decode_rgb(gray)[:22])
  for image, format in ((Image.fromarray(noise), "PNG"), (Image.fromarray(noise).convert("CMYK"), "JPEG")):
    data = encode(image, format=format)
    np.testing.assert_array_equal(decode_top(data, 3, 20)[:20], decode_rgb(data)[:20])


def test_the_top_of_a_jpeg_that_stops_early_is_an_error(noise):
  data = encode(Image.fromarray(noise), format="JPEG")
  for bad in (data[:-2], data[:len(data) // 2], data[:20] + b"\xff\xd9", b""):
    assert size_of_baseline_jpeg(bad) is None
  for bad in (data[:len(data) // 2], data[:20] + b"\xff\xd9"):
    with pytest.raises(ValueError, match=r"Example 7: not a readable image"):
      decode(bad, 3, "7", rows=5)
  # What follows the end does not matter, but is not vouched for.
  longer = data + b"\0\0"
  assert size_of_baseline_jpeg(longer) is None
  np.testing.assert_array_equal(decode_top(longer, 3, 20), decode_rgb(data))


def test_the_top_reads_past_flaws_as_pil_does(noise):
  data = bytearray(encode(Image.fromarray(noise), format="JPEG", quality=80))
  for at in range(len(data) // 2, len(data) // 2 + 40, 4):
    data[at] = 0x55
  expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
  np.testing.assert_array_equal(decode_top(bytes(data), 3, 60)[:60], expected[:60])


def test_unreadable_bytes_are_an_error_that_names_the_example(rgb):
  data = encode(Image.fromarray(rgb), format="JPEG")
  for bad in (b"", b"no image", data[: len(data) // 2], data[:3]):
    with pytest.raises(ValueError, match="not a readable image"):
      decode_rgb(bad)
  with pytest.raises(ValueError, match=r"Example cats/7\.jpg: not a readable image"):
    decode(b"no image", 3, "cats/7.jpg")


def test_arrays_pass_through(rgb):
  assert decode(rgb, 3, "key") is rgb
