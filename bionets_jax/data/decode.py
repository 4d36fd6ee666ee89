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


def decode(image, channels, key):
  """Decodes what `Source.read` gives, and names the example if that fails.

  Args:
    image: encoded bytes, or a uint8 array (h, w, channels), which is passed through.
    channels: 1 or 3.
    key: the example's key, for the message.

  Returns:
    uint8 (h, w, channels).

  Raises:
    ValueError: undecodable; the message holds the key.
  """
  if isinstance(image, np.ndarray):
    return image
  try:
    return decode_rgb(image) if channels == 3 else decode_gray(image)
  except ValueError as error:
    raise ValueError(f"Example {key}: {error}") from error


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
