"""Depthwise convolutions, and the AND of two of them that FP-nets are made of."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bionets_jax.ops.derivatives import own_rules, varying_alike
from bionets_jax.ops.kernels import choice
from bionets_jax.ops.kernels import depthwise as on_gpu
from bionets_jax.ops.memory import in_memory, pad_in_memory
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
  return _run(x, (kernel,), _window(x, kernel, strides, padding, kernel_dilation), "")


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
  return _run(x, (kernel_a, kernel_b), _window(x, kernel_a, strides, padding, None), combine)


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


def _run(x: jax.Array, kernels: tuple[jax.Array, ...], window: _Window, combine: str) -> jax.Array:
  if not own_rules():
    return _plain_filters(x, kernels, window, combine)
  how = choice.chosen(
      "product" if combine else "depthwise", x, *window.taps, *window.strides, supported=on_gpu.supports(
          x, kernels[0], strides=window.strides, padding=window.padding, kernel_dilation=window.dilation))
  return _filters(*varying_alike(x, kernels), window, combine, how)


# The functions below are compiled each on its own: networks have many layers of one shape, and each is
# long to trace.


def _plain_filters(x: jax.Array, kernels: tuple[jax.Array, ...], window: _Window, combine: str) -> jax.Array:
  """The filters' responses, combined; of one filter its response. In the dtype of x."""
  responses = _responses(x, kernels, window)
  y = COMBINES[combine](*responses) if combine else responses[0]
  return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _filters(x, kernels, window, combine, how):
  def filters(x, kernels):
    return _kept(_plain_filters(x, kernels, window, combine), combine)

  return choice.either(
      how, lambda *arrays, **options: on_gpu.filters(
          *arrays, strides=window.strides, padding=window.padding, combine=combine, **options)[0],
      filters, x, kernels)


def _forward(x, kernels, window, combine, how):
  # The responses are cheaper to compute again than to keep.
  return _filters(x, kernels, window, combine, how), (x, kernels)


def _backward(window, combine, how, saved, g):
  return choice.either(
      how, functools.partial(on_gpu.gradients, strides=window.strides, padding=window.padding, combine=combine),
      functools.partial(_gradients, window=window, combine=combine), *saved, g)


_filters.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnames=("window",))
def _responses(x: jax.Array, kernels: tuple[jax.Array, ...], window: _Window) -> list[jax.Array]:
  """Several depthwise filters over one input, (N, *out, C) each, in float32 at least."""
  return _shifted_sums(_pad(x, window.padding), kernels, window)


def _shifted_sums(padded: jax.Array, kernels: Sequence[jax.Array], window: _Window) -> list[jax.Array]:
  wide = jnp.promote_types(padded.dtype, jnp.float32)
  sums: list[Any] = [0] * len(kernels)
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
  # Position p of the padded image is seen by the output at p // stride - shift, through the taps that have its phase,
  # p % stride. Those of the image itself are p // stride in [first, last). `wide_g[m - first + most]` is the cotangent
  # at m, 0 outside.
  most = [(k - 1) * d // s for k, d, s in zip(window.taps, window.dilation, window.strides, strict=True)]
  first = [min(max(lo // s, 0), m) for (lo, _), s, m in zip(window.padding, window.strides, most, strict=True)]
  last = [max(-(-(n + lo + min(hi, 0)) // s), o) for n, (lo, hi), s, o in zip(
      x.shape[1:-1], window.padding, window.strides, window.out, strict=True)]
  around = [(m - f, n - o, 0) for m, f, n, o in zip(most, first, last, window.out, strict=True)]
  wide_gs = [pad_in_memory(c, ((0, 0, 0), *around, (0, 0, 0))) for c in cotangents]
  dx = _kept(_input_gradient(x.shape[1:-1], first, last, most, wide_gs, kernels, window).astype(x.dtype), combine)
  dkernels = lax.platform_dependent(
      x, *wide_gs, cpu=functools.partial(_kernel_gradients, window, first, most, True),
      default=functools.partial(_kernel_gradients, window, first, most, False))
  shape = (*window.taps, 1, x.shape[-1])
  return dx, tuple(d.reshape(shape).astype(k.dtype) for d, k in zip(dkernels, kernels, strict=True))


def _kept(x: jax.Array, combine: str) -> jax.Array:
  # One filter stands between norms and swishes, each of which reads it, and its gradient, several times: without this
  # an MBConv block takes up to 1.7 times as long. To an FP-ResNet-20 it makes no difference, and to a pair by itself it costs up to half of its time.
  return x if combine else in_memory(x)


def _input_gradient(
    size: Sequence[int], first: Sequence[int], last: Sequence[int], most: Sequence[int],
    wide_gs: Sequence[jax.Array], kernels: Sequence[jax.Array], window: _Window
) -> jax.Array:
  """Phase by phase, which leaves out the zeros that a transposed convolution puts between strides."""
  length = [n - f for f, n in zip(first, last, strict=True)]
  phases: dict[tuple[int, ...], Any] = {phase: 0 for phase in np.ndindex(*window.strides)}
  for tap, start in window.starts():
    phase = tuple(p % s for p, s in zip(start, window.strides, strict=True))
    behind = [m - p // s for m, p, s in zip(most, start, window.strides, strict=True)]
    for wide_g, kernel in zip(wide_gs, kernels, strict=True):
      phases[phase] += _part(wide_g, behind, length) * kernel[tap][0].astype(wide_g.dtype)
  shape = (wide_gs[0].shape[0], *length, wide_gs[0].shape[-1])
  parts = [jnp.broadcast_to(jnp.asarray(part, wide_gs[0].dtype), shape) for part in phases.values()]
  for axis, s in reversed(list(enumerate(window.strides))):
    parts = [jnp.stack(parts[i:i + s], axis + 2) for i in range(0, len(parts), s)]
  whole = parts[0].reshape(shape[0], *(n * s for n, s in zip(length, window.strides, strict=True)), shape[-1])
  edges = [f * s - lo for f, s, (lo, _) in zip(first, window.strides, window.padding, strict=True)]
  return _pad(whole, tuple((edge, n - m - edge) for n, m, edge in zip(size, whole.shape[1:-1], edges, strict=True)))


def _kernel_gradients(
    window: _Window, first: Sequence[int], most: Sequence[int], split: bool, x: jax.Array, *wide_gs: jax.Array
) -> list[jax.Array]:
  """For each cotangent (taps, C): what every tap saw, times the cotangent, summed over all pixels.

  XLA on CPUs sums a fused product over pixels with one thread. The sum over parts of the image is an
  elementwise loop, which it runs on all; stacked, their results are in memory, and the rest is a plain sum.
  """
  size = x.shape[1:-1]
  slide_g = set(window.strides) == {1} and [lo for lo, _ in window.padding] == first and all(
      n <= g - m for n, g, m in zip(size, wide_gs[0].shape[1:-1], most, strict=True))
  found = []
  for wide_g in wide_gs:
    if slide_g:  # then x need not be padded
      pairs = [(x, _part(wide_g, [m - p for m, p in zip(most, start, strict=True)], size))
               for _, start in window.starts()]
    else:
      padded, g = _pad(x, window.padding), _part(wide_g, [m - f for m, f in zip(most, first, strict=True)], window.out)
      pairs = [(_shifted(padded, start, window), g) for _, start in window.starts()]
    terms = [_sum_of_parts(a.astype(b.dtype), b) if split else (a.astype(b.dtype) * b).sum(tuple(range(b.ndim - 1)))
             for a, b in pairs]
    stacked = jnp.stack(terms)
    found.append(stacked.reshape(len(terms), -1, x.shape[-1]).sum(1) if split else stacked)
  return found


# Fewer parts leave XLA its slow sum: 5 to 8 ms of 56x56x64, batch 8, where 8 parts take 1.3 for each filter.
_PARTS = (8, 7, 9, 10, 6, 5, 11, 12, 13, 14, 15, 16)


def _sum_of_parts(a: jax.Array, b: jax.Array) -> jax.Array:
  """The product of two arrays (N, *spatial, C), summed over equal parts along one axis, by preference the first
  spatial one: the batch may be spread over devices."""
  for axis in (*range(1, a.ndim - 1), 0):
    for parts in _PARTS:
      if a.shape[axis] % parts == 0:
        size = a.shape[axis] // parts
        return cast(jax.Array, sum(
            lax.slice_in_dim(a, i * size, (i + 1) * size, axis=axis)
            * lax.slice_in_dim(b, i * size, (i + 1) * size, axis=axis) for i in range(parts)))
  return a * b


def _part(x: jax.Array, start: Sequence[int], size: Sequence[int]) -> jax.Array:
  """(N, *size, C) of x from `start` on."""
  return lax.slice(x, (0, *start, 0), (x.shape[0], *(b + n for b, n in zip(start, size, strict=True)), x.shape[-1]))


def _pad(x: jax.Array, padding: Pads) -> jax.Array:
  # lax.pad takes negative padding, as a convolution does; jnp.pad does not.
  return lax.pad(x, np.zeros((), x.dtype), ((0, 0, 0), *((lo, hi, 0) for lo, hi in padding), (0, 0, 0)))


def _shifted(padded: jax.Array, start: Sequence[int], window: _Window) -> jax.Array:
  """What one tap sees of a padded image, (N, *out, C)."""
  stop = [b + (o - 1) * s + 1 for b, o, s in zip(start, window.out, window.strides, strict=True)]
  return lax.slice(padded, (0, *start, 0), (padded.shape[0], *stop, padded.shape[-1]), (1, *window.strides, 1))
