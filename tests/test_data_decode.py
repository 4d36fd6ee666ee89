import io

import numpy as np
import pytest
from PIL import Image

from bionets_jax.data.decode import decode, decode_gray, decode_rgb


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


def test_unreadable_bytes_are_an_error_that_names_the_example(rgb):
  data = encode(Image.fromarray(rgb), format="JPEG")
  for bad in (b"", b"no image", data[: len(data) // 2], data[:3]):
    with pytest.raises(ValueError, match="not a readable image"):
      decode_rgb(bad)
  with pytest.raises(ValueError, match=r"Example cats/7\.jpg: not a readable image"):
    decode(b"no image", 3, "cats/7.jpg")


def test_arrays_pass_through(rgb):
  assert decode(rgb, 3, "key") is rgb
