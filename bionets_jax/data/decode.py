"""Encoded bytes to uint8 arrays, without TensorFlow or OpenCV.

JPEGs go through simplejpeg (libjpeg-turbo), everything that it refuses through PIL: PNG (also
when named .JPEG, as one ImageNet file is), CMYK, damaged but readable JPEGs. EXIF rotation is
ignored, as in tf.io.decode_jpeg and torchvision's ImageFolder, so pixels agree with those.
"""

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

_JPEG_MAGIC = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
# Markers of frames in other codings than the baseline's, of the first scan, and of the end.
_NOT_BASELINE = frozenset(range(0xC1, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xD9, 0xDA}
# Where colours are stored at half the height, a row of pixels mixes two of theirs: the one it lies in and the
# next above or below.
_ROWS_BELOW = 2


def decode_rgb(data):
  """Decodes an image of any mode to RGB.

  Args:
    data: bytes of a JPEG, PNG or any other format that PIL reads.

  Returns:
    uint8 (height, width, 3). Transparency is dropped; 16 bits are cut to the upper 8.

  Raises:
    ValueError: the bytes are not a readable image.
  """
  return _decode(data, "RGB")


def decode_gray(data):
  """Like `decode_rgb`, to luminance: uint8 (height, width, 1)."""
  return _decode(data, "GRAY")


def size_of_baseline_jpeg(data):
  """Returns (height, width) of a JPEG from its header, None if `decode_top` can save nothing there.

  That is the case of progressive JPEGs (each scan runs over the whole image), of files that go on behind the
  end or stop before it, and of what is no JPEG.
  """
  frame = _baseline_frame(data)
  return frame and frame[1:]


def decode_top(data, channels, rows):
  """Decodes the upper part of an image, where that is faster than the whole.

  A JPEG's rows follow from top to bottom, so that what lies below the rows in question need not be decoded:
  the header is made to say that the image ends there. The pixels are those of the whole image. Like PIL,
  and unlike `decode_rgb`'s first attempt, this reads past flaws in the data.

  Args:
    data: bytes, as in `decode_rgb`.
    channels: 3 or 1.
    rows: int >= 1, how many are needed.

  Returns:
    uint8 (at least `rows` or all there are, width, channels).

  Raises:
    ValueError: as `decode_rgb`.
  """
  colorspace = "RGB" if channels == 3 else "GRAY"
  frame = _baseline_frame(data)
  if frame and rows + _ROWS_BELOW < frame[1]:
    shortened = bytearray(data)
    shortened[frame[0]:frame[0] + 2] = (rows + _ROWS_BELOW).to_bytes(2, "big")
    try:
      # Not strict: the rest of the data is then one more flaw.
      return simplejpeg.decode_jpeg(shortened, colorspace, strict=False)
    except ValueError:
      pass  # as in _decode
  return _decode(data, colorspace)


def decode(image, channels, key, rows=None):
  """Decodes what `Source.read` gives, and names the example if that fails.

  Args:
    image: encoded bytes, or a uint8 array (h, w, channels), which is passed through.
    channels: 1 or 3.
    key: the example's key, for the message.
    rows: how many rows are needed, from the top; None for all.

  Returns:
    uint8 (h, w, channels); with `rows` those below may be missing.

  Raises:
    ValueError: undecodable; the message holds the key.
  """
  if isinstance(image, np.ndarray):
    return image
  try:
    if rows is not None:
      return decode_top(image, channels, rows)
    return decode_rgb(image) if channels == 3 else decode_gray(image)
  except ValueError as error:
    raise ValueError(f"Example {key}: {error}") from error


def _baseline_frame(data):
  """Returns (where the height is stored, height, width) of a whole baseline JPEG, else None."""
  if data[:3] != _JPEG_MAGIC or data[-2:] != _JPEG_END:
    return None
  at = 2
  while at + 9 <= len(data) and data[at] == 0xFF:
    marker = data[at + 1]
    if marker == 0xC0:
      height, width = (int.from_bytes(data[at + i:at + i + 2], "big") for i in (5, 7))
      return (at + 5, height, width) if height and width else None
    if marker in _NOT_BASELINE:
      return None
    # A marker may be led in by any number of 0xFF; else it is followed by the length of its segment.
    at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2:at + 4], "big")
  return None


def _decode(data, colorspace):
  if data[:3] == _JPEG_MAGIC:
    try:
      return simplejpeg.decode_jpeg(data, colorspace)
    except ValueError:
      pass  # CMYK, or a flaw that PIL reads past; PIL decides
  try:
    with Image.open(io.BytesIO(data)) as image:
      image.load()
      if image.mode.startswith("I"):  # 16 bits; PIL's convert would clip them to white
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
      array = np.asarray(image.convert("L" if colorspace == "GRAY" else "RGB"))
  # PIL's readers raise all of these on damaged files, depending on the format.
  except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError,
          Image.DecompressionBombError) as error:
    # PIL's own message for this one names an object in memory.
    unknown = isinstance(error, UnidentifiedImageError)
    raise ValueError(
        f"not a readable image ({len(data)} bytes, starts with {data[:8].hex()}): "
        + ("no known format" if unknown else str(error))
    ) from error
  return array[..., None] if colorspace == "GRAY" else array
