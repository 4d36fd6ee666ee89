"""The IC convolution on a GPU: the box sum, its product with W' and the hinge in one pass.

u = W * x stays the library's convolution. The kernel makes v from x: a tile of box sums at a time, which never
leaves the chip, times W' on tensor cores; the hinge joins v to u before it writes y. Backward, where the box keeps the
shape, the same kernel sums the windows of v's cotangent, multiplies them by W' transposed, and adds dx.

Nothing here was measured; this is counted. E = N H W C elements of x, E' of the result with F features, k x k
window, b bytes an element; all of it beside the convolution:

    forward    F E' / F' C MACs for W' (C for each of E') and k^2 - 1 additions for each of C E' / F box sums,
               once for each 128 features; (E + 2 E') b bytes (x, u, y), and E' for the hinge's mask or E' b
    backward   the same with C and F exchanged; (E' + 2 E) b bytes (v's cotangent, dx in and out), E b for the
               summed cotangent that the gradient of W' needs

XLA's form, a reduction window, a product and a fused hinge, moves (3 E + 4 E') b forward (box sums and v are written
and read), (3 E' + 5 E) b backward. With C = F the kernel moves about 3/7 and 4/8 of it. k^2 loads for each box sum
come from the first-level cache: at k = 3 in bfloat16 about 40 instructions an element, so that with C = F = 64 a
H200 (see `depthwise`) is expected at about half of the memory's roofline. Of a layer in ResNet-50, whose convolution
takes 9 times the MACs, that is a small part: the kernel of the three that gains least.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bionets_jax.ops.conv import conv
from bionets_jax.ops.ic import box_sum, ic_combine
from bionets_jax.ops.kernels import tile
from bionets_jax.ops.padding import Pads, explicit_padding

_PIXELS, _MOST_FEATURES, _CHANNELS = 64, 128, 32  # of a tile of results, and of one of box sums
_WARPS = 8  # with four, float32 does not fit into registers
_MOST_EXTENT = 7


def supports(
    x: jax.Array, kernel: jax.Array, adjust: jax.Array, *, strides: Sequence[int], padding: Pads,
    kernel_dilation: Sequence[int] = (1, 1), input_dilation: Sequence[int] = (1, 1), groups: int = 1,
    adjust_groups: int = 1,
) -> bool:
  """Whether `ic_conv` takes these arguments; arrays or their shapes and dtypes, per axis.

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


def ic_conv(
    x: jax.Array,
    kernel: jax.Array,
    adjust: jax.Array,
    *,
    inner_bias: jax.Array | None = None,
    outer_bias: jax.Array | None = None,
    alpha: jax.Array | float = 1.0,
    strides: Sequence[int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
    precision: lax.PrecisionLike = None,
    interpret: bool = False,
) -> jax.Array:
  """`ops.ic_conv` with a kernel for everything but the convolution.

  v is not rounded before the hinge. A product in float32 is as precise as the device's default.

  Args:
    x: (N, H, W, C).
    kernel: W, (*window, C, features).
    adjust: W', (C, features).
    inner_bias, outer_bias: (features,).
    alpha: scalar or (features,).
    strides: per spatial axis.
    padding: 'SAME', 'VALID' or (low, high) pairs per spatial axis.
    precision: of the convolution, as in `jax.lax`.
    interpret: run the kernel as JAX operations, on any device.

  Returns:
    (N, *out, features) in the dtype of x.

  Raises:
    ValueError: on what `supports` does not.
  """
  strides = tuple(strides)
  pads = explicit_padding(padding, x.shape[1:-1], kernel.shape[:-2], strides)
  if not supports(x, kernel, adjust, strides=strides, padding=pads):
    raise ValueError(f"no IC kernel for {x.dtype} of {x.shape} with kernels of {kernel.shape} and {adjust.shape}, "
                     f"strides {strides}, padding {pads}: see ic.supports")
  hinge = {"inner_bias": inner_bias, "outer_bias": outer_bias}
  # Only where alpha = 1 is there no gradient, and a mask in place of the gap.
  if not (isinstance(alpha, float | int) and alpha == 1):
    hinge["alpha"] = jnp.asarray(alpha, jnp.float32)
  hinge = {key: value for key, value in hinge.items() if value is not None}
  return _ic_conv(x, kernel, adjust, hinge, _Where(strides, pads, precision, interpret))


class _Where(NamedTuple):
  strides: tuple[int, int]
  padding: Pads
  precision: lax.PrecisionLike
  interpret: bool


class _Plan(NamedTuple):
  """Shapes, and the extents of a tile; all but the first five are integers of a window or of the image."""

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


def _box_product(plan: _Plan, x_ref: Any, matrix_ref: Any, pixel, real_pixel, sums_ref: Any = None) -> jax.Array:
  """(pixels, tile_features): the box sums of x at these pixels times a (channels, features) matrix.

  The first program of each tile of pixels writes the box sums to `sums_ref`.
  """
  column, row = pixel % plan.out[1], pixel // plan.out[1] % plan.out[0]
  image = pixel // (plan.out[0] * plan.out[1])
  top, left = row * plan.strides[0] - plan.low[0], column * plan.strides[1] - plan.low[1]
  start = ((image * plan.height + top) * plan.width + left) * plan.channels
  feature = tile.program_id(1) * plan.tile_features + lax.broadcasted_iota(jnp.int32, (1, plan.tile_features), 1)

  def part(number, total):
    channel = number * _CHANNELS + lax.broadcasted_iota(jnp.int32, (1, _CHANNELS), 1)
    real = real_pixel & (channel < plan.channels)

    # A loop in the program too: unrolled, the compiler moves every tap to where the product wants its operand.
    def add_row(i, box):
      in_rows = real & (top >= -i) & (top < plan.height - i)
      for j in range(plan.window[1]):
        inside = in_rows & (left >= -j) & (left < plan.width - j)
        box = box + tile.load(x_ref, (start + (i * plan.width + j) * plan.channels + channel,), inside)
      return box

    box = tile.steps(plan.window[0], jnp.zeros((_PIXELS, _CHANNELS), jnp.float32), add_row).astype(x_ref.dtype)
    if sums_ref is not None:
      tile.store(sums_ref, (pixel * plan.channels + channel,), box, real & (tile.program_id(1) == 0))
    across = number * _CHANNELS + lax.broadcasted_iota(jnp.int32, (_CHANNELS, 1), 0)
    matrix = tile.load(matrix_ref, (across * plan.features + feature,),
                       (across < plan.channels) & (feature < plan.features))
    return total + jnp.dot(box, matrix.astype(x_ref.dtype), preferred_element_type=jnp.float32)

  total = jnp.zeros((_PIXELS, plan.tile_features), jnp.float32)
  return tile.steps(-(-plan.channels // _CHANNELS), total, part)


def _results(plan: _Plan):
  """((pixel, there is such a one), (index, mask) of a tile of results, its features as the first of these)."""
  pixel = tile.program_id(0) * _PIXELS + lax.broadcasted_iota(jnp.int32, (_PIXELS, 1), 0)
  real_pixel = pixel < plan.batch * plan.out[0] * plan.out[1]
  feature = tile.program_id(1) * plan.tile_features + lax.broadcasted_iota(jnp.int32, (1, plan.tile_features), 1)
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
  """v's cotangent, W' transposed and dx -> dx and what came through the box; and the box sums of the first."""
  pixels, (index, mask), _ = _results(plan)
  through = _box_product(plan, dv_ref, matrix_ref, *pixels, sums_ref)
  tile.store(sum_ref, index, tile.load(dx_ref, index, mask) + through, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _ic_conv(x, kernel, adjust, hinge, where):
  return _ic_forward(x, kernel, adjust, hinge, where)[0]


def _linear(x, kernel, where: _Where) -> jax.Array:
  return conv(x, kernel, strides=where.strides, padding=where.padding, precision=where.precision)


def _ic_forward(x, kernel, adjust, hinge, where: _Where):
  u = _linear(x, kernel, where)
  features = u.shape[-1]
  plan = _plan(x, kernel.shape[:2], features, where.strides, where.padding)
  arrays = [jnp.broadcast_to(value, (features,)) for value in hinge.values()]
  y, kept = tile.call(
      functools.partial(_forward_kernel, plan, tuple(hinge)),
      [x.reshape(-1), adjust.reshape(-1), u.reshape(-1), *arrays],
      [jax.ShapeDtypeStruct((u.size,), u.dtype),
       jax.ShapeDtypeStruct((u.size,), u.dtype if "alpha" in hinge else jnp.int8)],
      grid=plan.grid, warps=_WARPS, interpret=where.interpret, name="ic_forward")
  return y.reshape(u.shape), (x, kernel, adjust, hinge, kept.reshape(u.shape))


def _ic_backward(where: _Where, saved, g: jax.Array):
  x, kernel, adjust, hinge, kept = saved
  # The hinge's derivatives are those of one with u = 0 and this gap.
  gap = kept.astype(g.dtype)
  _, pull = jax.vjp(
      lambda u, v, hinge: ic_combine(u, v, **hinge), jnp.zeros_like(gap), -gap,
      {key: value if key == "alpha" else jnp.zeros_like(value) for key, value in hinge.items()})
  du, dv, dhinge = pull(g)
  _, pull = jax.vjp(lambda x, kernel: _linear(x, kernel, where), x, kernel)
  dx, dkernel = pull(du)
  flat = x.reshape(-1, x.shape[-1])
  if where.strides == (1, 1) and dv.shape[:-1] == x.shape[:-1]:
    # The box and W' can change places, and the transpose of the box is a box, padded the other way.
    window = kernel.shape[:2]
    turned = tuple((k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip(window, where.padding, strict=True))
    plan = _plan(dv, window, x.shape[-1], (1, 1), turned)
    dx, dz = tile.call(
        functools.partial(_backward_kernel, plan),
        [dv.reshape(-1), adjust.T.reshape(-1), dx.reshape(-1)],
        [jax.ShapeDtypeStruct((x.size,), x.dtype), jax.ShapeDtypeStruct((dv.size,), dv.dtype)],
        grid=plan.grid, warps=_WARPS, interpret=where.interpret, name="ic_backward")
    _, pull = jax.vjp(lambda adjust: jnp.dot(flat, adjust), adjust)
    (dadjust,) = pull(dz.reshape(-1, dv.shape[-1]))
    return dx.reshape(x.shape), dkernel, dadjust, dhinge
  s, pull_box = jax.vjp(lambda x: box_sum(
      x, kernel.shape[:2], strides=where.strides, padding=where.padding), x)
  _, pull = jax.vjp(lambda s, adjust: jnp.dot(s.reshape(-1, s.shape[-1]), adjust), s, adjust)
  ds, dadjust = pull(dv.reshape(-1, dv.shape[-1]))
  return dx + pull_box(ds)[0], dkernel, dadjust, dhinge


_ic_conv.defvjp(_ic_forward, _ic_backward)
