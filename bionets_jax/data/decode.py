"""Encoded bytes to uint8 arrays, without TensorFlow or OpenCV.

JPEGs go through simplejpeg (libjpeg-turbo), everything that it refuses through PIL: PNG (also
when named .JPEG, as one ImageNet file is), CMYK, damaged but readable JPEGs. EXIF rotation is
ignored, as in tf.io.decode_jpeg and torchvision's ImageFolder, so pixels agree with those. Of
several frames the first is taken. What a file's name says of its format does not matter.
"""

import io

import numpy as np
import PIL.TiffImagePlugin  # noqa: F401 (these two make their formats known to PIL)
import PIL.WebPImagePlugin  # noqa: F401
import simplejpeg
from PIL import Image, UnidentifiedImageError

# A small file may say that it is any size. Up to this one decoding takes half a GiB, and no more.
MAX_PIXELS = 2**26
# What PIL is let loose on. It would run Ghostscript for an EPS file, and its rarer readers are used by few.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_JPEG_MAGIC = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_JPEG_SCAN = b"\xff\xda"
# Each scan of a progressive JPEG runs over the whole image, and may be a few bytes long; ten are usual.
_USUAL_SCANS = 32
# Markers: of frames, by their coding; of the first scan and of the end.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE = 0xC0
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_NO_FRAME = frozenset((0xD9, 0xDA))
# Where colours are stored at half the height, a row of pixels mixes two of theirs: the one it lies in and the
# next above or below.
_ROWS_BELOW = 2


def decode_rgb(data):
  """Decodes an image of any mode to RGB.

  Args:
    data: bytes of an image in one of `FORMATS`.

  Returns:
    uint8 (height, width, 3). Transparency is dropped; 16 bits are cut to the upper 8.

  Raises:
    ValueError: the bytes are not a readable image, it has pixels of 32 bits, or more of them than MAX_PIXELS.
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


def size_of(data):
  """Returns the (height, width) that `decode_rgb` would make of an image; its header alone is read.

  Raises:
    ValueError: no known format.
  """
  if data[:3] == _JPEG_MAGIC:
    try:
      height, width, *_ = simplejpeg.decode_jpeg_header(data)
      return height, width
    except ValueError:
      pass  # as in _decode
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      return image.height, image.width
  except Exception as error:  # noqa: BLE001 (as in _decode)
    raise _unreadable(data, "no known format") from error


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
    if why := _too_large(*frame[1:]):
      raise _unreadable(data, why)
    try:
      # Not strict: the rest of the data is then one more flaw.
      top = simplejpeg.decode_jpeg(shortened, colorspace, strict=False)
      if not _may_be_filler(top):
        return top
    except ValueError:
      pass  # as in _decode
  return _decode(data, colorspace)


def decode(image, channels, key, rows=None):
  """Decodes what `Source.read` gives, and names the example if that fails.

  Args:
    image: encoded bytes, or an array, which is passed through.
    channels: 1 or 3.
    key: the example's key, for the message.
    rows: how many rows are needed, from the top; None for all.

  Returns:
    uint8 (h, w, channels); with `rows` those below may be missing.

  Raises:
    ValueError: undecodable, or an array that is not uint8 (h, w, channels); the message holds the key.
  """
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != channels:
      raise ValueError(f"Example {key}: the image is {image.dtype} {image.shape}, expected uint8 (height, width,"
                       f" {channels}).")
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
  marker, at = _frame(data)
  if marker != _BASELINE:
    return None
  height, width = (int.from_bytes(data[at + i:at + i + 2], "big") for i in (5, 7))
  return (at + 5, height, width) if height and width else None


def _frame(data):
  """Returns the marker of a JPEG's frame and where it is; (0, 0) if there is none before the first scan."""
  at = 2
  while at + 9 <= len(data) and data[at] == 0xFF:
    marker = data[at + 1]
    if marker in _FRAMES:
      return marker, at
    if marker in _NO_FRAME:
      break
    # A marker may be led in by any number of 0xFF; else it is followed by the length of its segment.
    at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2:at + 4], "big")
  return 0, 0


def _too_large(height, width):
  """Returns why an image of this size is not decoded, '' if it is."""
  if height * width <= MAX_PIXELS:
    return ""
  return f"it says that it is {width} x {height} pixels, and at most {MAX_PIXELS:,} are read"


def _unreadable(data, why):
  """Returns the ValueError that says so."""
  start = f", starts with {data[:8].hex()}" if data else ""
  return ValueError(f"not a readable image ({len(data)} bytes{start}): {why}")


def _may_be_filler(image):
  """Whether the last quarter of the rows has one colour.

  That is what libjpeg puts where a JPEG's data end before the image does. Some images are like this.
  """
  rows = image[-max(len(image) // 4, 1):]
  colour = rows[-1, -1]
  return bool((rows[-1, ::16] == colour).all() and (rows == colour).all())


def _check_jpeg(data):
  """Raises ValueError for a JPEG that would take too much memory or time."""
  try:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
  except ValueError:
    return  # PIL says what it is
  if why := _too_large(height, width):
    raise _unreadable(data, why)
  if _frame(data)[0] not in _PROGRESSIVE:
    return
  scans = data.count(_JPEG_SCAN)  # inside a scan 0xFF is followed by 0
  if scans > _USUAL_SCANS and scans * height * width > _USUAL_SCANS * 2**20:
    raise _unreadable(data, f"a JPEG of {width} x {height} pixels in {scans} scans")


def _decode(data, colorspace):
  ends_early = False
  if data[:3] == _JPEG_MAGIC:
    _check_jpeg(data)
    try:
      return simplejpeg.decode_jpeg(data, colorspace)
    except ValueError as error:  # CMYK, or a flaw that PIL reads past; PIL decides
      ends_early = "premature end" in str(error).lower()
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      if why := _too_large(image.height, image.width):
        raise ValueError(why)
      image.load()
      if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("its pixels have 32 bits, and nothing says what is white")
      if image.mode.startswith("I"):  # 16 bits; PIL's convert would clip them to white
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
      mode = "L" if colorspace == "GRAY" else "RGB"
      array = np.asarray(image if image.mode == mode else image.convert(mode))
  # On damaged files PIL's readers raise whatever comes up: OSError, SyntaxError, struct.error, KeyError,
  # AssertionError, DecompressionBombError, MemoryError where a file lies about a size, ...
  except Exception as error:  # noqa: BLE001
    # PIL's own message for this one names an object in memory.
    unknown = isinstance(error, UnidentifiedImageError)
    raise _unreadable(data, "no known format" if unknown else str(error) or type(error).__name__) from error
  if ends_early and _may_be_filler(array):
    raise _unreadable(data, "its data end before the image does")
  return array[..., None] if colorspace == "GRAY" else array
