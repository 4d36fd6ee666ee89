"""Depthwise convolutions, and the AND of two of them that FP-nets are made of."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bionets_jax.ops.derivatives import own_rules
from bionets_jax.ops.padding import Pads
from bionets_jax.ops.split import batch_parts, split_batch

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
  return (_filters if own_rules() else _plain_filters)(
      x, (kernel,), _window(x, kernel, strides, padding, kernel_dilation), "")


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
  return (_filters if own_rules() else _plain_filters)(
      x, (kernel_a, kernel_b), _window(x, kernel_a, strides, padding, None), combine)


def check_combine(combine: str) -> None:
  """Raises ValueError for a word that is not in `COMBINES`."""
  if combine not in COMBINES:
    raise ValueError(f"combine={combine!r}: give one of {', '.join(map(repr, COMBINES))}")


class _Window(NamedTuple):
  """Where the taps of a filter lie."""

  taps: tuple[int, ...]
  strides: tuple[int, ...]
  padding: Pads
  dilation: tuple[int, ...]
  out: tuple[int, ...]

  def starts(self) -> list[tuple[tuple[int, ...], list[int]]]:
    """(tap, where its pixels begin in the padded image) of each tap."""
    return [(tap, [t * d for t, d in zip(tap, self.dilation, strict=True)]) for tap in np.ndindex(*self.taps)]


def _window(x, kernel, strides, padding, kernel_dilation) -> _Window:
  window = kernel.shape[:-2]
  dilation = tuple(kernel_dilation or (1,) * len(window))
  extents = tuple((k - 1) * d + 1 for k, d in zip(window, dilation, strict=True))
  padded = tuple(size + lo + hi for size, (lo, hi) in zip(x.shape[1:-1], padding, strict=True))
  if any(size < e for size, e in zip(padded, extents, strict=True)):
    raise ValueError(f"a depthwise window of {extents} does not fit into {padded}, padding included")
  out = tuple((size - e) // s + 1 for size, e, s in zip(padded, extents, strides, strict=True))
  return _Window(window, tuple(strides), tuple(map(tuple, padding)), dilation, out)


# The functions below are compiled each on its own: networks have many layers of one shape, and each is
# long to trace.


def _plain_filters(x: jax.Array, kernels: tuple[jax.Array, ...], window: _Window, combine: str) -> jax.Array:
  """The filters' responses, combined; of one filter its response. In the dtype of x."""
  responses = _responses(x, kernels, window)
  y = COMBINES[combine](*responses) if combine else responses[0]
  return y.astype(x.dtype)


_filters = jax.custom_vjp(_plain_filters, nondiff_argnums=(2, 3))


def _forward(x, kernels, window, combine):
  # The responses are cheaper to compute again than to keep.
  return _plain_filters(x, kernels, window, combine), (x, kernels)


def _backward(window, combine, saved, g):
  return _gradients(*saved, g, window, combine)


_filters.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnames=("window",))
def _responses(x: jax.Array, kernels: tuple[jax.Array, ...], window: _Window) -> list[jax.Array]:
  """Several depthwise filters over one input, (N, *out, C) each, in float32 at least."""
  return _shifted_sums(_pad(x, window.padding), kernels, window)


def _shifted_sums(padded: jax.Array, kernels: Sequence[jax.Array], window: _Window) -> list[jax.Array]:
  wide = jnp.promote_types(padded.dtype, jnp.float32)
  sums = [0] * len(kernels)
  for tap, start in window.starts():
    part = _shifted(padded, start, window).astype(wide)
    sums = [total + part * kernel[tap][0].astype(wide) for total, kernel in zip(sums, kernels, strict=True)]
  return sums


@functools.partial(jax.jit, static_argnames=("window", "combine"))
def _gradients(
    x: jax.Array, kernels: tuple[jax.Array, ...], g: jax.Array, window: _Window, combine: str
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  """The gradients of `_plain_filters` with respect to x and the kernels."""
  wide = jnp.promote_types(x.dtype, jnp.float32)
  g = g.astype(wide)
  cotangents = [g]
  if combine:
    _, pull = jax.vjp(COMBINES[combine], *_responses(x, kernels, window))
    cotangents = pull(g)
  dx = _to_input(x.shape[1:-1], cotangents, kernels, window).astype(x.dtype)
  dkernels = lax.platform_dependent(
      x, *cotangents, cpu=functools.partial(_kernel_gradients, window, True),
      default=functools.partial(_kernel_gradients, window, False))
  shape = (*window.taps, 1, x.shape[-1])
  return dx, tuple(d.reshape(shape).astype(k.dtype) for d, k in zip(dkernels, kernels, strict=True))


def _to_input(size, cotangents, kernels, window: _Window) -> jax.Array:
  """The filters turned around, over their cotangents with zeros between the strides."""
  extents = [(k - 1) * d + 1 for k, d in zip(window.taps, window.dilation, strict=True)]
  spread = [(o - 1) * s + 1 for o, s in zip(window.out, window.strides, strict=True)]
  low = [e - 1 - lo for e, (lo, _) in zip(extents, window.padding, strict=True)]
  pads = [(lo, n + e - 1 - m - lo, s - 1)
          for n, e, m, lo, s in zip(size, extents, spread, low, window.strides, strict=True)]
  back = _Window(window.taps, (1,) * len(size), (), window.dilation, tuple(size))
  zero = np.zeros((), cotangents[0].dtype)
  axes = tuple(range(len(size)))
  return sum(
      _shifted_sums(lax.pad(g, zero, ((0, 0, 0), *pads, (0, 0, 0))), [jnp.flip(kernel, axes)], back)[0]
      for g, kernel in zip(cotangents, kernels, strict=True))


def _kernel_gradients(window: _Window, split: bool, x: jax.Array, *cotangents: jax.Array) -> list[jax.Array]:
  """For each cotangent (taps, C): what every tap saw, times the cotangent, summed over all pixels.

  XLA on CPUs sums a fused product over pixels with one thread. The sum over parts of the batch is an
  elementwise loop, which it runs on all; stacked, their results are in memory, and the rest is a plain sum.
  """
  padded = _pad(x, window.padding)
  parts = batch_parts(x.shape[0], 16) if split else 1
  found = []
  for g in cotangents:
    terms = []
    for _, start in window.starts():
      product = _shifted(padded, start, window).astype(g.dtype) * g
      if split:
        terms.append(sum(split_batch(product, parts)))
      else:
        terms.append(product.sum(tuple(range(product.ndim - 1))))
    stacked = jnp.stack(terms)
    found.append(stacked.reshape(len(terms), -1, x.shape[-1]).sum(1) if split else stacked)
  return found


def _pad(x: jax.Array, padding: Pads) -> jax.Array:
  # lax.pad takes negative padding, as a convolution does; jnp.pad does not.
  return lax.pad(x, np.zeros((), x.dtype), ((0, 0, 0), *((lo, hi, 0) for lo, hi in padding), (0, 0, 0)))


def _shifted(padded: jax.Array, start: Sequence[int], window: _Window) -> jax.Array:
  """What one tap sees of a padded image, (N, *out, C)."""
  stop = [b + (o - 1) * s + 1 for b, o, s in zip(start, window.out, window.strides, strict=True)]
  return lax.slice(padded, (0, *start, 0), (padded.shape[0], *stop, padded.shape[-1]), (1, *window.strides, 1))
