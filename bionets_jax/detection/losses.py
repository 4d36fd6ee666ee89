"""Losses of detectors, one value for each prediction; what is summed, the detectors say."""

import jax
import jax.numpy as jnp
import optax


def focal(logits: jax.Array, targets: jax.Array, *, alpha: float = 0.25, gamma: float = 2.0) -> jax.Array:
  """Cross-entropy of sigmoids that counts what is classified well already for less (Lin et al. 2017, Eq. 5).

  Args:
    logits: (...).
    targets: (...), 0 or 1.
    alpha: weight of targets of 1; 1 - alpha is that of 0.
    gamma: power of the error by which the loss is multiplied.

  Returns:
    (...), float32.
  """
  logits = logits.astype(jnp.float32)
  error = jnp.abs(jax.nn.sigmoid(logits) - targets)
  weight = (alpha * targets + (1 - alpha) * (1 - targets)) * error**gamma
  return weight * optax.sigmoid_binary_cross_entropy(logits, targets)


def absolute(predicted: jax.Array, wanted: jax.Array, *, beta: float = 0.0) -> jax.Array:
  """Absolute differences (...), float32; those below `beta` squared over 2 beta, less beta / 2 above ("smooth L1")."""
  off = jnp.abs(predicted.astype(jnp.float32) - wanted)
  return jnp.where(off < beta, off * off / (2 * beta), off - beta / 2) if beta else off


def over_batch(sums: jax.Array, numbers: jax.Array) -> jax.Array:
  """Losses (N,) of images, whose mean is the batch's sum over its number of terms.

  Args:
    sums: (N,) over each image's terms.
    numbers: (N,) of the terms; of a batch without any 1.
  """
  return sums * len(numbers) / jnp.maximum(numbers.sum(), 1.0)
