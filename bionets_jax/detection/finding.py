"""What a trained detector finds in an image of any size."""

import io
from typing import NamedTuple

import jax
import numpy as np
from PIL import ExifTags, Image

from bionets_jax.data.decode import FORMATS, decode_rgb
from bionets_jax.data.image_file import read_image_file
from bionets_jax.detection.images import normalized
from bionets_jax.detection.loading import LoadedDetector
from bionets_jax.detection.types import Detections

# How an image is to be turned to be seen upright, by its EXIF orientation.
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}


class Found(NamedTuple):
  """What was found in one image, by falling score.

  boxes: float32 (n, 4), in pixels of the image as it was given; scores: float32 (n,); labels: int32 (n,).
  """

  boxes: np.ndarray
  scores: np.ndarray
  labels: np.ndarray


class Finder:
  """Calls a detector on one image after the other, compiled once for each of the letterbox's shapes.

      find = Finder(detection.load(workdir))
      found = find(read_upright('street.jpg'))
  """

  def __init__(self, detector: LoadedDetector, *, least: float | None = None):
    """
    Args:
      detector: of `load`.
      least: the lowest score of a detection; None for the detector's own.
    """
    model = detector.model if least is None else detector.model.clone(least=least)
    prep = detector.preprocessing

    def detect(variables, images, sizes):
      return model.apply(variables, normalized(images, sizes, prep.mean, prep.std), sizes, method="detect")

    self._letterbox = detector.letterbox
    self._variables = jax.device_put(detector.variables)
    self._detect = jax.jit(detect)

  def __call__(self, image: np.ndarray) -> Found:
    """
    Args:
      image: uint8 (h, w, 3).
    """
    padded, size, scale = self._letterbox.fit(image)
    found = Detections(*(np.asarray(x)[0] for x in self._detect(self._variables, padded[None], size[None])))
    height, width = image.shape[:2]
    boxes = np.clip(found.boxes / scale[[1, 0, 1, 0]], 0, np.array([width, height, width, height], np.float32))
    return Found(*(np.asarray(x)[found.present] for x in (boxes, found.scores, found.labels)))


def read_upright(path: str) -> np.ndarray:
  """An image file as viewers show it, turned as its EXIF orientation says: uint8 (h, w, 3).

  Raises:
    OSError: it cannot be read.
    ValueError: it is no image that `data.decode` reads, or no file: a device or a pipe need never end.
  """
  data = read_image_file(path)
  image = decode_rgb(data)
  turn = _TURNS.get(_orientation(data))
  return image if turn is None else np.asarray(Image.fromarray(image).transpose(turn))


def _orientation(data: bytes) -> int:
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      # PIL's reader of TIFF has turned the image already.
      return 1 if image.format == "TIFF" else image.getexif().get(ExifTags.Base.Orientation, 1)
  except Exception:  # noqa: BLE001 (damaged metadata of a readable image make PIL raise whatever comes up)
    return 1
