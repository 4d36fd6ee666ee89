"""Where the time of a core goes between an encoded photograph and its row of a batch; photographs made up."""

import io
import statistics
import time

import numpy as np
from PIL import Image

from bionets_jax.data.decode import decode_top, size_of_baseline_jpeg
from bionets_jax.data.transforms import Flip, RandomResizedCrop, example_rng

# Of the made-up photographs: with these they have about the bytes of ImageNet's, 130 KB at 500 x 375.
QUALITY, NOISE = 93, 1.5


def photograph(seed: int, height: int, width: int) -> bytes:
  """A JPEG whose spectrum falls off as that of photographs does, with little colour and a camera's noise."""
  random = np.random.default_rng(seed)
  frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) + 1 / width
  spectrum = np.fft.fft2(random.standard_normal((2, height, width))) / frequency**1.3
  light, colour = np.fft.ifft2(spectrum).real / spectrum.std() * np.sqrt(height * width)
  pixels = 128 + 50 * light[..., None] + 15 * colour[..., None] * np.array([1.0, 0.0, -1.0])
  pixels += NOISE * random.standard_normal((height, width, 1))
  file = io.BytesIO()
  Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY, subsampling=0)
  return file.getvalue()


def measure(source, size: int, rounds: int) -> dict[str, float]:
  """Seconds of this process's CPU that each part takes per image, the median over rounds.

  Args:
    source: a `Source` of JPEGs.
    size: of the crops.
    rounds: their number; in each, every part is done for all images, one part after the other.
  """
  crop, flip = RandomResizedCrop(size), Flip()
  batch = np.zeros((len(source), size, size, 3), np.uint8)
  rows = range(len(source))
  found: dict[str, list[float]] = {}

  def timed(name, function, *columns):
    start = time.process_time()
    results = [function(*row) for row in zip(*columns, strict=True)]
    found.setdefault(name, []).append((time.process_time() - start) / len(source))
    return results

  def draw(data, row):
    rng = example_rng(0, 0, row)
    return crop.box(*size_of_baseline_jpeg(data), rng), rng

  def store(row, image):
    batch[row] = image

  for _ in range(rounds):
    data = timed("read the file", lambda row: source.read(row)[0], rows)
    drawn = timed("header, random numbers, box", draw, data, rows)
    boxes, rngs = zip(*drawn, strict=True)
    images = timed("decode the rows down to the box", lambda d, b: decode_top(d, 3, b[0] + b[2]), data, boxes)
    cuts = timed("copy the box to PIL", lambda i, b: Image.fromarray(i[b[0]:b[0] + b[2], b[1]:b[1] + b[3]]),
                 images, boxes)
    resized = timed("resize", lambda cut: cut.resize((size, size), Image.Resampling.BILINEAR), cuts)
    arrays = timed("copy from PIL", np.asarray, resized)
    flipped = timed("flip", flip, arrays, rngs)
    timed("copy to the batch", store, rows, flipped)
    del images, cuts, resized
  return {name: statistics.median(values) for name, values in found.items()}
