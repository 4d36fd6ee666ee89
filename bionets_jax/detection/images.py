"""Images as a detector sees them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bionets_jax.weights.preprocessing import normalize


def normalized(images: jax.Array, sizes: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
  """Images (N, H, W, C) of 0..255, normalised in float32, and 0 where they are padded.

  Args:
    images: uint8, padded on the right and below.
    sizes: (N, 2), height and width of what is no padding.
    mean, std: of `weights.preprocessing.normalize`.
  """
  height, width = images.shape[1:3]
  inside = ((jnp.arange(height)[:, None] < sizes[:, 0, None, None]) & (jnp.arange(width) < sizes[:, 1, None, None]))
  return jnp.where(inside[..., None], normalize(images, mean, std), 0.0)
