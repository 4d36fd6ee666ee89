"""The IC convolution on a GPU: the box sum, its product with W' and the hinge in one pass.

u = W * x stays the library's convolution. The kernel makes v from x: a tile of box sums at a time, which
never leaves the chip, times W' on tensor cores; the hinge joins v to u before it writes y. Backward, where
the box keeps the shape, the same kernel sums the windows of v's cotangent, multiplies them by W' transposed,
and adds dx.

Nothing here was measured; this is counted. E = N H W C elements of x, E' of the result with F features,
S = E' C / F box sums, k x k window, b bytes an element; all of it beside the convolution and W's gradient:

    forward    C E' MACs, and (k^2 - 1) S additions for each 128 features;
               (E + 2 E') b bytes (x, u, y), and E' for the hinge's mask or, with alpha, E' b
    backward   C E' MACs, and (k^2 - 1) E' additions for each 128 channels;
               2 (E + E') b bytes (v's cotangent and its box sums, dx in and out)

XLA's form, reduction windows, a product and a fused hinge or sum, moves (E + 2 S + 4 E') b forward and (4 E +
3 E') b backward: with C = F and stride 1 the kernel moves 3 / 7 and 4 / 7 of it. Compiled for compute
capability 9.0 (Triton 3.9), a box sum takes 37 instructions at k = 3 in bfloat16, so that with C = F = 64 a
H200 (see `depthwise`) is expected at 60 to 70 % of the memory's roofline, and at less where features are more
than 128. Of a layer in ResNet-50, whose convolution takes 9 times the MACs, all of this is a small part: of
the kernels this one gains least.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bionets_jax.ops.kernels import tile
from bionets_jax.ops.padding import Pads

_PIXELS, _MOST_FEATURES, _CHANNELS = 64, 128, 32  # of a tile of results, and of one of box sums
_WARPS = 8  # with four, float32 does not fit into registers
_MOST_EXTENT = 7


def supports(
    x: jax.Array, kernel: jax.Array, adjust: jax.Array, *, strides: Sequence[int], padding: Pads,
    kernel_dilation: Sequence[int] = (1, 1), input_dilation: Sequence[int] = (1, 1), groups: int = 1,
    adjust_groups: int = 1,
) -> bool:
  """Whether the functions below take these arguments; arrays or their shapes and dtypes, per axis.

  Images, float32 or half precision, windows of up to 7 x 7, no dilation, no groups, padding not negative.
  """
  if len(x.shape) != 4 or str(x.dtype) not in tile.DTYPES or groups != 1 or adjust_groups != 1:
    return False
  if any(d != 1 for d in (*kernel_dilation, *input_dilation)):
    return False
  fits = all(k <= _MOST_EXTENT and lo >= 0 and hi >= 0 and size + lo + hi >= k for size, k, (lo, hi) in zip(
      x.shape[1:3], kernel.shape[:2], padding, strict=True))
  channels, features = x.shape[-1], kernel.shape[-1]
  return fits and kernel.shape[2] == channels and adjust.shape == (channels, features) and tile.addressable(
      x.shape, (*_out(x.shape, kernel.shape[:2], strides, padding), features))


class _Plan(NamedTuple):
  """Shapes, per axis of the image from `window` on."""

  batch: int
  height: int
  width: int
  channels: int
  features: int
  window: tuple[int, int]
  strides: tuple[int, int]
  low: tuple[int, int]
  out: tuple[int, int]

  @property
  def tile_features(self) -> int:
    return min(_MOST_FEATURES, max(16, tile.power_of_two(self.features)))

  @property
  def grid(self) -> tuple[int, int]:
    return -(-self.batch * self.out[0] * self.out[1] // _PIXELS), -(-self.features // self.tile_features)


def _out(shape, window, strides, padding) -> tuple[int, ...]:
  return (shape[0], *((size + lo + hi - k) // s + 1 for size, k, s, (lo, hi) in zip(
      shape[1:3], window, strides, padding, strict=True)))


def _plan(x, window, features: int, strides, padding: Pads) -> _Plan:
  return _Plan(*x.shape, features, tuple(window), tuple(strides), tuple(lo for lo, _ in padding),
               _out(x.shape, window, strides, padding)[1:])


def _features(plan: _Plan) -> jax.Array:
  """(1, tile_features): the features of this program's tile."""
  first = tile.program_id(1) * plan.tile_features
  return first + lax.broadcasted_iota(jnp.int32, (1, plan.tile_features), 1)


def _box_product(
    plan: _Plan, x_ref: Any, matrix_ref: Any, pixel: jax.Array, real_pixel: jax.Array, sums_ref: Any = None
) -> jax.Array:
  """(pixels, tile_features): the box sums of x at these pixels times a (channels, features) matrix.

  The first program of each tile of pixels writes the box sums to `sums_ref`.
  """
  column, row = pixel % plan.out[1], pixel // plan.out[1] % plan.out[0]
  image = pixel // (plan.out[0] * plan.out[1])
  top, left = row * plan.strides[0] - plan.low[0], column * plan.strides[1] - plan.low[1]
  start = ((image * plan.height + top) * plan.width + left) * plan.channels
  feature = _features(plan)
  writes = tile.program_id(1) == 0

  def part(number, total):
    channel = number * _CHANNELS + lax.broadcasted_iota(jnp.int32, (1, _CHANNELS), 1)
    real = real_pixel & (channel < plan.channels)

    # A loop in the program too: unrolled, the compiler moves every tap to where the product wants its
    # operand.
    def add_row(i, box):
      in_rows = real & (top >= -i) & (top < plan.height - i)
      for j in range(plan.window[1]):
        inside = in_rows & (left >= -j) & (left < plan.width - j)
        box = box + tile.load(x_ref, (start + (i * plan.width + j) * plan.channels + channel,), inside)
      return box

    box = tile.steps(plan.window[0], jnp.zeros((_PIXELS, _CHANNELS), jnp.float32), add_row)
    box = box.astype(x_ref.dtype)
    if sums_ref is not None:
      tile.store(sums_ref, (pixel * plan.channels + channel,), box, real & writes)
    across = number * _CHANNELS + lax.broadcasted_iota(jnp.int32, (_CHANNELS, 1), 0)
    matrix = tile.load(matrix_ref, (across * plan.features + feature,),
                       (across < plan.channels) & (feature < plan.features))
    return total + jnp.dot(box, matrix.astype(x_ref.dtype), preferred_element_type=jnp.float32)

  total = jnp.zeros((_PIXELS, plan.tile_features), jnp.float32)
  return tile.steps(-(-plan.channels // _CHANNELS), total, part)


def _results(plan: _Plan):
  """((pixel, there is such a one), (index, mask) of a tile of results, (feature, there is such a one))."""
  pixel = tile.program_id(0) * _PIXELS + lax.broadcasted_iota(jnp.int32, (_PIXELS, 1), 0)
  real_pixel = pixel < plan.batch * plan.out[0] * plan.out[1]
  feature = _features(plan)
  real = feature < plan.features
  return (pixel, real_pixel), ((pixel * plan.features + feature,), real_pixel & real), (feature, real)


def _forward_kernel(plan: _Plan, names: tuple[str, ...], *refs: Any) -> None:
  """x, W', u and the hinge's arrays -> y and what the derivative keeps."""
  x_ref, adjust_ref, u_ref, *hinge_refs, y_ref, kept_ref = refs
  pixels, (index, mask), (feature, real) = _results(plan)
  v = _box_product(plan, x_ref, adjust_ref, *pixels)
  hinge = {name: tile.load(ref, (feature,), real) for name, ref in zip(names, hinge_refs, strict=True)}
  u = tile.load(u_ref, index, mask)
  gap = u - v + hinge.get("inner_bias", 0.0)
  bent = jnp.where(gap > 0, gap, 0.0) * hinge.get("alpha", 1.0)
  tile.store(y_ref, index, u + bent + hinge.get("outer_bias", 0.0), mask)
  tile.store(kept_ref, index, gap if "alpha" in hinge else jnp.where(gap > 0, 1, 0), mask)


def _backward_kernel(plan: _Plan, dv_ref, matrix_ref, dx_ref, sum_ref, sums_ref) -> None:
  """v's cotangent, W' transposed, dx -> dx and what came through the box; the box sums of the first."""
  pixels, (index, mask), _ = _results(plan)
  through = _box_product(plan, dv_ref, matrix_ref, *pixels, sums_ref)
  tile.store(sum_ref, index, tile.load(dx_ref, index, mask) + through, mask)


def hinge_on_box(
    x: jax.Array, adjust: jax.Array, u: jax.Array, hinge: dict[str, jax.Array], *, window: Sequence[int],
    strides: Sequence[int], padding: Pads, interpret: bool,
) -> tuple[jax.Array, jax.Array]:
  """`ops.ic_combine(u, v, **hinge)` with v made from x, and what its derivative keeps.

  That is u - v + b1 with alpha, and without whether it is positive, int8. Without a derivative of its own.
  """
  features = u.shape[-1]
  plan = _plan(x, window, features, strides, padding)
  arrays = [jnp.broadcast_to(value, (features,)) for value in hinge.values()]
  y, kept = tile.call(
      functools.partial(_forward_kernel, plan, tuple(hinge)),
      [x.reshape(-1), adjust.reshape(-1), u.reshape(-1), *arrays],
      [jax.ShapeDtypeStruct((u.size,), u.dtype),
       jax.ShapeDtypeStruct((u.size,), u.dtype if "alpha" in hinge else jnp.int8)],
      grid=plan.grid, warps=_WARPS, interpret=interpret, name="ic_forward")
  return y.reshape(u.shape), kept.reshape(u.shape)


def add_through_box(
    dv: jax.Array, adjust: jax.Array, dx: jax.Array, *, window: Sequence[int], padding: Pads, interpret: bool
) -> tuple[jax.Array, jax.Array]:
  """(dx and what comes from dv, v's cotangent, through W' and the box; the transposed box's sums of dv).

  For stride 1 and a box that keeps the shape: its transpose is a box then, padded the other way. Without a
  derivative of its own.
  """
  turned = tuple((k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip(window, padding, strict=True))
  plan = _plan(dv, window, dx.shape[-1], (1, 1), turned)
  total, sums = tile.call(
      functools.partial(_backward_kernel, plan), [dv.reshape(-1), adjust.T.reshape(-1), dx.reshape(-1)],
      [jax.ShapeDtypeStruct((dx.size,), dx.dtype), jax.ShapeDtypeStruct((dv.size,), dv.dtype)],
      grid=plan.grid, warps=_WARPS, interpret=interpret, name="ic_backward")
  return total.reshape(dx.shape), sums.reshape(dv.shape)
