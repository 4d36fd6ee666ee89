"""Results that XLA on CPUs keeps in memory."""

from collections.abc import Sequence

import jax
import numpy as np
from jax import lax


def in_memory(x: jax.Array) -> jax.Array:
  """x, computed once however many read it; see `pad_in_memory`."""
  return pad_in_memory(x, ((0, 0, 0),) * x.ndim)


def pad_in_memory(x: jax.Array, padding: Sequence[tuple[int, int, int]]) -> jax.Array:
  """`lax.pad` with zeros, computed once however many read it.

  XLA on CPUs fuses a pad, and the elementwise operations before it, into each of its consumers, which then
  compute all of them again: nine times for nine taps. It drops `lax.optimization_barrier` before it does so. A window
  sum is fused into nothing; here the window has two elements of an axis that has one, and the other is a zero.
  That costs a pass over the array.

  Args:
    x: of any floating dtype.
    padding: (low, high, interior) per axis; low and high not negative.
  """
  zero = np.zeros((), x.dtype)

  def summed(x):
    ones = (1,) * (x.ndim + 1)
    return lax.reduce_window(
        x[None], zero, lax.add, (2, *ones[1:]), ones, ((0, 1), *((lo, hi) for lo, hi, _ in padding)),
        base_dilation=(1, *(interior + 1 for *_, interior in padding)))[0]

  if any(lo < 0 or hi < 0 for lo, hi, _ in padding):
    return lax.pad(x, zero, padding)
  return lax.platform_dependent(x, cpu=summed, default=lambda x: lax.pad(x, zero, padding))
