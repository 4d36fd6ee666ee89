"""Depthwise filters and the AND of two of them on a GPU, each direction in one pass.

Nothing here was measured; this is counted. E = N H W C elements of x and E' of the result, b bytes an
element, k x k taps, f = 1 or 2 filters, strips of R rows of the result (4, fewer where taps are many), P
programs that share the channels (at most 1536 over all of them):

    forward    f k^2 E' MACs and E' products; (E + E') b bytes, read and written once each
    backward   f k^2 (1 + (k - 1) / R) E' MACs for the responses again, f k^2 E for dx and f k^2 E'
               for the kernels; (2 E + E') b bytes, and 4 P f k^2 C bytes of sums, written and read

Compiled for compute capability 9.0 (Triton 3.9), f = 2 and k = 3 at stride 1 take 37 instructions for an
element forward and 130 backward, of which 20 and 71 multiply or add, in 96 and 128 registers; 5 x 5 windows
take up to 235; none spills. A H200 (132 multiprocessors of 128 lanes at 1.8 GHz, 4.8e12 bytes a second) is
therefore expected at 60 to 65 % of the memory's roofline forward in bfloat16 and about 30 % backward, where
instructions are the limit. Autodiff of the shifted sums reads x and g once for each of 9 to 18 taps and
writes f float32 cotangents between its passes.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bionets_jax.ops.kernels import sweep, tile
from bionets_jax.ops.padding import Pads

_MOST_EXTENT = 5
# Elements of a tile, with the rows of a strip (`plan`) the most that a thread has registers for: it holds the
# window, and backward the cotangents and the sums, of 2 elements forward and 1 backward.
_FORWARD_TILE, _BACKWARD_TILE = 256, 128
_TILE_CHANNELS = 32
_WARPS = 4


def supports(
    x: jax.Array, kernel: jax.Array, *, strides: Sequence[int], padding: Pads,
    kernel_dilation: Sequence[int] | None = None,
) -> bool:
  """Whether the functions below take these arguments; arrays or their shapes and dtypes.

  Images, float32 or half precision, windows of up to 5 x 5 that are no smaller than their strides, no
  dilation, less padding than the window has taps, and an image into which the window fits.
  """
  if len(x.shape) != 4 or str(x.dtype) not in tile.DTYPES or kernel.shape[2:] != (1, x.shape[-1]):
    return False
  if any(d != 1 for d in kernel_dilation or ()):
    return False
  fits = all(
      s <= k <= _MOST_EXTENT and 0 <= lo < k and 0 <= hi < k and size + lo + hi >= k
      for size, k, s, (lo, hi) in zip(x.shape[1:3], kernel.shape[:2], strides, padding, strict=True))
  return fits and tile.addressable(x.shape, (*x.shape[:3], x.shape[3] * 4))


def plan(x: jax.Array, kernel: jax.Array, filters: int, strides, padding: Pads, back: bool) -> sweep.Plan:
  """How the arrays are cut into tiles; public for those who count registers and bytes."""
  taps = kernel.shape[:2]
  out = tuple((size + lo + hi - k) // s + 1 for size, k, s, (lo, hi) in zip(
      x.shape[1:3], taps, strides, padding, strict=True))
  if max(taps) <= 3:
    most = 4
  else:
    most = 1 if back and filters == 2 else 2
  # Strips of like height, so that the last one is not mostly empty.
  rows = -(-out[0] // -(-out[0] // most))
  channels = min(_TILE_CHANNELS, tile.power_of_two(x.shape[-1]))
  lanes = (_BACKWARD_TILE if back else _FORWARD_TILE) // channels
  low = tuple(lo for lo, _ in padding)
  made = sweep.Plan(*x.shape, taps, strides, low, out, filters, rows, lanes, channels, 1)
  programs, blocks = made.grid
  return made._replace(turns=min(programs, max(1, programs * blocks // tile.PROGRAMS)))


def filters(
    x: jax.Array, kernels: tuple[jax.Array, ...], *, strides: tuple[int, ...], padding: Pads, combine: str,
    interpret: bool, moments: bool = False,
) -> tuple[jax.Array, ...]:
  """(y,): one filter (`combine` is ''), or two; with `moments` also the sums of y and y^2, (2, C) float32.

  Without a derivative of its own.
  """
  made = plan(x, kernels[0], len(kernels), strides, padding, False)
  shape = (x.shape[0], *made.out, x.shape[-1])
  results = [jax.ShapeDtypeStruct((math.prod(shape),), x.dtype)]
  if moments:
    results.append(jax.ShapeDtypeStruct((made.grid[0] * 2 * made.channels,), jnp.float32))
  y, *sums = tile.call(
      functools.partial(sweep.forward, made, combine, moments), _flat(x, *kernels), results, grid=made.grid,
      warps=_WARPS, interpret=interpret, name="depthwise_forward")
  return y.reshape(shape), *(s.reshape(-1, 2, made.channels).sum(0) for s in sums)


def gradients(
    x: jax.Array, kernels: tuple[jax.Array, ...], g: jax.Array, line: jax.Array | None = None, *,
    strides: tuple[int, ...], padding: Pads, combine: str, interpret: bool,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  """The gradients of `filters` with respect to x and kernels, for the cotangent g of y.

  With `line`, (3, C) float32, that cotangent is line[0] g + line[1] y + line[2].
  """
  made = plan(x, kernels[0], len(kernels), strides, padding, True)
  sums = (made.grid[0], len(kernels), *kernels[0].shape)
  dx, sums_of = tile.call(
      functools.partial(sweep.backward, made, combine, line is not None),
      _flat(x, g, *kernels, *(() if line is None else (line,))),
      [jax.ShapeDtypeStruct((x.size,), x.dtype), jax.ShapeDtypeStruct((math.prod(sums),), jnp.float32)],
      grid=made.grid, warps=_WARPS, interpret=interpret, name="depthwise_backward")
  dkernels = sums_of.reshape(sums).sum(0)
  return dx.reshape(x.shape), tuple(d.astype(k.dtype) for d, k in zip(dkernels, kernels, strict=True))


def _flat(*arrays: jax.Array) -> list[jax.Array]:
  return [a.reshape(-1) for a in arrays]


def normalize(
    x: jax.Array, kernels: tuple[jax.Array, ...], *, epsilon: float, **where
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """`filters`, and `ops.batch_normalize` of them without scale and bias: (y, mean, var, p), p the responses.

  The kernel that writes p adds up its moments as well, which saves a pass over it.

  Without a derivative of its own. Mean and biased variance are (1, C) float32.
  """
  p, sums = filters(x, kernels, moments=True, **where)
  # One pass over p; the difference can round below zero.
  mean, square = sums / (p.size // p.shape[-1])
  var = jnp.maximum(square - mean * mean, 0.0)
  y = ((p - mean) * jax.lax.rsqrt(var + epsilon)).astype(x.dtype)
  return y, mean[None], var[None], p


def normalize_gradients(
    x: jax.Array, kernels: tuple[jax.Array, ...], p: jax.Array, mean: jax.Array, var: jax.Array,
    cotangents: tuple[jax.Array, jax.Array, jax.Array], *, epsilon: float, **where
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  """The gradients of `normalize` with respect to x and kernels, for the cotangents of y, mean and var.

  Batch norm's derivative is a line in its cotangent and p, whose coefficients two sums give; the kernel computes
  p again and puts it in, which saves writing that cotangent and reading it.
  """
  g, dmean, dvar = cotangents
  mean, var = mean[0], var[0]
  n = p.size // p.shape[-1]
  factor = jax.lax.rsqrt(var + epsilon)
  wide = g.astype(jnp.float32)
  sum_g, sum_gp = wide.sum((0, 1, 2)), (wide * (p - mean)).sum((0, 1, 2))
  slope = (2 * dvar[0] - factor**3 * sum_gp) / n
  offset = (dmean[0] - factor * sum_g) / n
  line = jnp.stack([factor, slope, offset - slope * mean])
  return gradients(x, kernels, g, line, **where)
