"""Depthwise convolutions, and the AND of two of them that FP-nets are made of."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bionets_jax.ops.padding import Pads

COMBINES = {"product": jnp.multiply, "min": jnp.minimum}


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Sequence[int],
    padding: Pads,
    kernel_dilation: Sequence[int] | None = None,
) -> jax.Array:
  """Each channel by a filter of its own, as a sum of shifted products.

  XLA's depthwise convolution takes 5 to 30 times as long on CPUs, forward and backward, and on GPUs its
  gradients run at the cost of a dense convolution's. Sums are in float32 at least.

  Args:
    x: (N, *spatial, C).
    kernel: (*window, 1, C).
    strides: per spatial axis.
    padding: explicit (low, high) pairs per spatial axis.
    kernel_dilation: per spatial axis.

  Returns:
    (N, *out, C) in the dtype of x.
  """
  return _sum_of_taps(x, (kernel,), *_hashable(strides, padding, kernel_dilation))[0].astype(x.dtype)


def paired_depthwise_product(
    x: jax.Array,
    kernel_a: jax.Array,
    kernel_b: jax.Array,
    *,
    strides: Sequence[int] = (1, 1),
    padding: Pads = ((1, 1), (1, 1)),
    combine: str = "product",
) -> jax.Array:
  """The AND of two depthwise filters on the same input, `(a * x)(b * x)` (FP-nets, Eq. 3).

  Args:
    x: (N, *spatial, C).
    kernel_a, kernel_b: (*window, 1, C).
    strides: per spatial axis.
    padding: explicit (low, high) pairs per spatial axis.
    combine: 'product'; or 'min', the smaller of the two responses (Min-Nets).

  Returns:
    (N, *out, C) in the dtype of x; half precision is rounded once, after the product.

  Raises:
    ValueError: on another `combine`, or kernels that differ in shape or do not fit x.
  """
  check_combine(combine)
  if kernel_a.shape != kernel_b.shape or kernel_a.shape[-2:] != (1, x.shape[-1]):
    raise ValueError(f"paired_depthwise_product: kernels of {kernel_a.shape} and {kernel_b.shape}; for an input "
                     f"of {x.shape} both are (*window, 1, {x.shape[-1]})")
  a, b = _sum_of_taps(x, (kernel_a, kernel_b), *_hashable(strides, padding, None))
  return COMBINES[combine](a, b).astype(x.dtype)


def check_combine(combine: str) -> None:
  """Raises ValueError for a word that is not in `COMBINES`."""
  if combine not in COMBINES:
    raise ValueError(f"combine={combine!r}: give one of {', '.join(map(repr, COMBINES))}")


def _hashable(strides, padding, kernel_dilation):
  return tuple(strides), tuple(map(tuple, padding)), kernel_dilation and tuple(kernel_dilation)


# Compiled as a function of its own: networks have many layers of one shape, and each is long to trace.
@functools.partial(jax.jit, static_argnames=("strides", "padding", "kernel_dilation"))
def _sum_of_taps(x, kernels, strides, padding, kernel_dilation):
  """Several depthwise filters over one input, (N, *out, C) each, in float32 at least."""
  window = kernels[0].shape[:-2]
  n = len(window)
  dilation = tuple(kernel_dilation or (1,) * n)
  # lax.pad takes negative padding, as a convolution does; jnp.pad does not.
  x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((lo, hi, 0) for lo, hi in padding), (0, 0, 0)))
  extents = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
  if any(size < e for size, e in zip(x.shape[1:-1], extents, strict=True)):
    raise ValueError(f"a depthwise window of {tuple(extents)} does not fit into {x.shape[1:-1]}, padding included")
  out = [max(0, (size - e) // s + 1) for size, e, s in zip(x.shape[1:-1], extents, strides, strict=True)]
  wide = jnp.promote_types(x.dtype, jnp.float32)
  sums = [None] * len(kernels)
  for tap in np.ndindex(*window):
    start = [t * d for t, d in zip(tap, dilation, strict=True)]
    stop = [b + max(0, (o - 1) * s + 1) for b, o, s in zip(start, out, strides, strict=True)]
    part = lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *strides, 1)).astype(wide)
    for i, kernel in enumerate(kernels):
      term = part * kernel[tap][0].astype(wide)
      sums[i] = term if sums[i] is None else sums[i] + term
  return sums
