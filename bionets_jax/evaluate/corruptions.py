"""Disturbances of a network's input: what comes out is again uint8, and a function of the image and a seed.

The image is what the network sees, after the transform: a large photograph is resized first.
"""

import concurrent.futures
import functools
import io
import os
from collections.abc import Callable

import numpy as np
from PIL import Image

from bionets_jax.data.transforms import example_rng


def jpeg(images: np.ndarray, quality: int) -> np.ndarray:
  """The images after a round through JPEG, with 4:2:0 subsampled colours, by PIL.

  Args:
    images: uint8 (N, H, W, C), C = 3 or 1.
    quality: 1 to 100.
  """
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    return np.stack(list(pool.map(lambda image: _jpeg(image, quality), images)))


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
  gray = image.shape[-1] == 1
  file = io.BytesIO()
  Image.fromarray(image[..., 0] if gray else image).save(
      file, "JPEG", quality=quality, **({} if gray else {"subsampling": "4:2:0"}))
  return np.asarray(Image.open(file)).reshape(image.shape)


def gaussian_blur(images: np.ndarray, sigma: float) -> np.ndarray:
  """A Gaussian filter with the images mirrored at their borders, cut off at 4 sigma.

  Args:
    images: uint8 (N, H, W, C).
    sigma: standard deviation in pixels.
  """
  radius = int(4 * sigma + 0.5)
  weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
  weights = (weights / weights.sum()).astype(np.float32)
  blurred = images.astype(np.float32)
  for axis in (1, 2):
    padding = [(0, 0)] * 4
    padding[axis] = (radius, radius)
    padded = np.pad(blurred, padding, mode="symmetric")
    length = images.shape[axis]
    take = functools.partial(np.take, padded, axis=axis)
    blurred = sum(w * take(range(i, i + length)) for i, w in enumerate(weights))
  return _to_uint8(blurred)


def gaussian_noise(
    images: np.ndarray, deviation: float, *, indices: np.ndarray, seed: int
) -> np.ndarray:
  """Noise of each pixel and channel of its own, clipped to 0..255.

  An example has the same noise at any deviation, times that; the batch makes no difference.

  Args:
    images: uint8 (N, H, W, C).
    deviation: standard deviation, in units of the 256 levels.
    indices: (N,), number of each example; rows below 0 are no example.
    seed: int in [0, 2**32).
  """
  out = images.copy()
  for row, index in enumerate(indices):
    if index >= 0:
      out[row] = _to_uint8(images[row] + deviation * _normal(images[row].shape, seed, int(index)))
  return out


def _normal(shape: tuple[int, ...], seed: int, index: int) -> np.ndarray:
  """Standard normal numbers, of uniform ones by Box and Muller: those do not change with NumPy's version."""
  rng = example_rng(seed, 0, index)
  first, second = rng.random(shape), rng.random(shape)
  return np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)


def _to_uint8(x: np.ndarray) -> np.ndarray:
  return np.clip(np.rint(x), 0, 255).astype(np.uint8)


# name: (images, level, indices, seed) -> images
ON_HOST: dict[str, Callable] = {
    "jpeg": lambda images, level, indices, seed: jpeg(images, int(level)),
    "blur": lambda images, level, indices, seed: gaussian_blur(images, level),
    "noise": lambda images, level, indices, seed: gaussian_noise(images, level, indices=indices, seed=seed),
}
