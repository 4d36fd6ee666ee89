"""Odd, damaged and gigantic images: decoded right or refused, in little time and memory."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bionets_jax.data.decode import MAX_PIXELS, decode, decode_gray, decode_rgb, decode_top
from bionets_jax.data.grammar import parse_transforms
from bionets_jax.data.transforms import HOST_TRANSFORMS, apply_all

GREY = (np.arange(30 * 20).reshape(30, 20) % 251).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], -1)


def encode(image, kind, **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def png_chunk(kind, data):
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows):
  """A PNG written by hand from the standard; `rows` are bytes without filter types."""
  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  data = zlib.compress(b"".join(b"\0" + row for row in rows))
  return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


# Decoded right ---------------------------------------------------------------------------------------------


def test_sixteen_bits_of_every_kind_keep_the_upper_eight():
  deep = RGB.astype(np.uint16) * 256 + 77
  big_endian = deep.astype(">u2")
  rows = [row.tobytes() for row in big_endian]
  np.testing.assert_array_equal(decode_rgb(png(20, 30, 16, 2, rows)), RGB)
  with_alpha = np.concatenate([big_endian, np.full((30, 20, 1), 7, ">u2")], -1)
  rows = [row.astype(">u2").tobytes() for row in with_alpha]
  np.testing.assert_array_equal(decode_rgb(png(20, 30, 16, 6, rows)), RGB)
  grey = [row.tobytes() for row in big_endian[..., 0]]
  np.testing.assert_array_equal(decode_gray(png(20, 30, 16, 0, grey))[..., 0], GREY)
  grey = np.stack([GREY] * 3, -1)
  np.testing.assert_array_equal(decode_rgb(encode(Image.fromarray(deep[..., 0]), "TIFF")), grey)
  np.testing.assert_array_equal(decode_rgb(b"P5 20 30 65535\n" + big_endian[..., 0].tobytes()), grey)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several(kind):
  frames = [Image.fromarray(image) for image in (RGB, 255 - RGB)]
  if kind == "GIF":  # of 256 colours
    frames = [frame.quantize(256) for frame in frames]
  options = dict(lossless=True) if kind == "WEBP" else {}
  data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
  assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
  np.testing.assert_array_equal(decode_rgb(data), np.asarray(frames[0].convert("RGB")))


def test_one_bit_palette_alpha_and_grey_with_alpha():
  bits = Image.fromarray(GREY > 100)
  np.testing.assert_array_equal(decode_gray(encode(bits, "PNG"))[..., 0], 255 * (GREY > 100))
  both = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())])
  np.testing.assert_array_equal(decode_rgb(encode(both, "PNG")), np.stack([GREY] * 3, -1))


# Refused ---------------------------------------------------------------------------------------------------


def jpeg_of(width, height):
  """A JPEG whose header says that it is of this size."""
  data = bytearray(encode(Image.fromarray(RGB), "JPEG"))
  at = data.index(b"\xff\xc0") + 5
  data[at:at + 4] = struct.pack(">HH", height, width)
  return bytes(data)


def tiff_of(width, height):
  data = bytearray(encode(Image.fromarray(GREY), "TIFF"))
  for tag, value in ((256, width), (257, height)):  # entries of the first directory: tag, type LONG or SHORT, count
    for kind in (3, 4):
      at = data.find(struct.pack("<HHI", tag, kind, 1))
      if at >= 0:
        data[at:at + 12] = struct.pack("<HHII", tag, 4, 1, value)
  return bytes(data)


GIGANTIC = {
    "png": png(60000, 60000, 8, 2, [bytes(60)]),
    "png just below PIL's limit": png(13000, 13000, 8, 2, [bytes(60)]),
    "jpeg": jpeg_of(65500, 65500),
    "jpeg of one line": jpeg_of(65500, 1100),
    "gif": b"GIF89a" + struct.pack("<HHBBB", 60000, 60000, 0, 0, 0) + b"," + struct.pack(
        "<HHHHB", 0, 0, 60000, 60000, 0) + b"\2\2L\1\0;",
    "bmp": b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + struct.pack(
        "<IiiHHIIiiII", 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(60),
    "ppm": b"P6 60000 60000 255\n" + bytes(60),
    "tiff": tiff_of(60000, 60000),
    "webp": b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4)
            + b"\xff\x3f\0\xff\x3f\0",
}  # fmt: skip


@pytest.mark.parametrize("kind", GIGANTIC)
def test_an_image_that_says_it_is_gigantic(kind):
  for read in (decode_rgb, decode_gray, lambda data: decode_top(data, 3, 40)):
    with pytest.raises(ValueError, match=r"not a readable image \(\d+ bytes"):
      read(GIGANTIC[kind])


def test_the_largest_image_that_is_read():
  side = int(MAX_PIXELS**0.5)
  assert decode_gray(png(side, side, 1, 0, [bytes(side // 8)] * side)).shape == (side, side, 1)
  with pytest.raises(ValueError, match=rf"{side} x {side + 1} pixels, and at most"):
    decode_gray(png(side, side + 1, 1, 0, [bytes(side // 8)] * (side + 1)))


def test_a_line_that_would_be_enlarged_without_bounds():
  line = np.zeros((1, 60000, 3), np.uint8)
  for text in ("resize(256)|center_crop(8)", "pad_square|resize_to(8)", "resize(256, bicubic)"):
    with pytest.raises(ValueError, match="the image would become .* pixels; at most"):
      apply_all(parse_transforms(text, HOST_TRANSFORMS), line, None)
  cut = apply_all(parse_transforms("random_resized_crop(8)", HOST_TRANSFORMS), line, np.random.default_rng(0))
  assert cut.shape == (8, 8, 3)
  for text in ("resize(99999)", "center_crop(10000000000)", "resize(nan)", "resize(1e400)",
               f"resize({'9' * 5000})"):
    with pytest.raises(ValueError, match="does not fit|is not an argument"):
      parse_transforms(text, HOST_TRANSFORMS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_every_truncation_is_an_error_or_the_whole_image(kind):
  noise = np.random.RandomState(0).randint(0, 256, (30, 20, 3)).astype(np.uint8)
  data = encode(Image.fromarray(noise), kind, **(dict(lossless=True) if kind == "WEBP" else {}))
  whole = decode_rgb(data)
  refused = 0
  for part in range(20):
    try:
      found = decode_rgb(data[:len(data) * part // 20])
    except ValueError as error:
      assert "not a readable image" in str(error)
      refused += 1
    else:
      np.testing.assert_array_equal(found, whole)
  assert refused >= 19


def test_a_jpeg_with_a_hole_is_not_filled_with_grey():
  """As a file system leaves it: the end is there, what comes before it is not. PIL reads on in one colour."""
  noise = np.random.RandomState(0).randint(0, 256, (96, 64, 3)).astype(np.uint8)
  data = encode(Image.fromarray(noise), "JPEG", quality=90)
  cut = data[:len(data) // 2] + b"\xff\xd9"
  assert (np.asarray(Image.open(io.BytesIO(cut)))[-16:] == np.asarray(Image.open(io.BytesIO(cut)))[-1, -1]).all()
  for read in (decode_rgb, lambda data: decode_top(data, 3, 90)):
    with pytest.raises(ValueError, match="its data end before the image does"):
      read(cut)
  # What lies above the hole is read, and so is an image that has one colour there.
  np.testing.assert_array_equal(decode_top(cut, 3, 20)[:20], decode_rgb(data)[:20])
  noise[64:] = 200
  white = encode(Image.fromarray(noise), "JPEG", quality=90)
  np.testing.assert_array_equal(decode_top(white, 3, 90)[:90], decode_rgb(white)[:90])


@pytest.mark.parametrize("data, reason", [
    (b"", r"0 bytes"),
    (b"<html>404 Not Found</html>", "no known format"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "no known format"),  # Ghostscript's
    (png(20, 30, 8, 2, [bytes(60)] * 30)[:-20] + bytes(20), "not a readable image"),
    (encode(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"), "its pixels have 32 bits"),
    (encode(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "its pixels have 32 bits"),
])
def test_what_is_no_image_is_refused(data, reason):
  with pytest.raises(ValueError, match=reason):
    decode_rgb(data)


def test_a_progressive_jpeg_of_very_many_scans():
  large = Image.fromarray(np.zeros((1024, 1024), np.uint8))
  data = encode(large, "JPEG", progressive=True)
  assert decode_gray(data).shape == (1024, 1024, 1)
  scan = data[data.rindex(b"\xff\xda"):-2]
  with pytest.raises(ValueError, match="a JPEG of 1024 x 1024 pixels in 2"):
    decode_gray(data[:-2] + scan * 200 + b"\xff\xd9")


def test_arrays_of_another_kind():
  for array in (RGB.astype(np.float32), RGB[..., :1], RGB[..., 0], np.dstack([RGB, GREY])):
    with pytest.raises(ValueError, match=r"Example a: the image is .*, expected uint8 \(height, width, 3\)"):
      decode(array, 3, "a")
