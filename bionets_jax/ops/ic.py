"""The inter-layer collision (IC) unit as array functions.

An IC unit compares its linear response u with a multiple v of the plain sum of its inputs:

    y = u + alpha * relu(u - v + b1) + b2                        (IC networks, Eqs. 3, 6 and 7)

For a convolution u = W * x and v = W' . (1 * x), with 1 * x the sum of each input channel over
the kernel's window (a box sum) and W' a 1x1 convolution. The box has no parameters.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bionets_jax.ops.conv import conv
from bionets_jax.ops.derivatives import own_rules, varying_alike
from bionets_jax.ops.kernels import choice
from bionets_jax.ops.kernels import ic as on_gpu
from bionets_jax.ops.memory import in_memory
from bionets_jax.ops.padding import Pads, explicit_padding


def box_sum(
    x: jax.Array,
    window: Sequence[int],
    *,
    strides: Sequence[int],
    padding: Pads,
    kernel_dilation: Sequence[int] | None = None,
    input_dilation: Sequence[int] | None = None,
) -> jax.Array:
  """Sum of each channel over a sliding window; zero padding adds nothing.

  One axis after the other, which takes 2k additions in place of k^2 and is the fastest form on
  CPU. bfloat16 and float16 are summed in float32.

  Args:
    x: (N, *spatial, C).
    window: extent per spatial axis.
    strides: per spatial axis.
    padding: explicit (low, high) pairs per spatial axis.
    kernel_dilation: spacing of the window's taps per spatial axis.
    input_dilation: zeros put between the inputs, as in a transposed convolution.

  Returns:
    (N, *out, C) in the dtype of x.
  """
  n = len(window)
  kernel_dilation = kernel_dilation or (1,) * n
  input_dilation = input_dilation or (1,) * n
  s = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  # A NumPy zero: a traced one hides from JAX that this is a sum, which then has no derivative.
  zero = np.zeros((), s.dtype)
  for axis in range(n):
    if window[axis] == 1 and strides[axis] == 1 and not any(padding[axis]) and input_dilation[axis] == 1:
      continue

    def on_axis(value, rest, axis=axis):
      out = [rest] * (n + 2)
      out[axis + 1] = value
      return tuple(out)

    s = lax.reduce_window(
        s, zero, lax.add, on_axis(window[axis], 1), on_axis(strides[axis], 1),
        on_axis(padding[axis], (0, 0)), base_dilation=on_axis(input_dilation[axis], 1),
        window_dilation=on_axis(kernel_dilation[axis], 1))
  return s.astype(x.dtype)


def ic_combine(
    u: jax.Array,
    v: jax.Array,
    *,
    alpha: jax.Array | float = 1.0,
    inner_bias: jax.Array | None = None,
    outer_bias: jax.Array | None = None,
) -> jax.Array:
  """`u + alpha * relu(u - v + b1) + b2` (Eqs. 3 and 7).

  At a tie (u - v + b1 = 0, as on an all-zero patch) the hinge has derivative 0, so dy/du = 1, as in
  PyTorch. `max(2u - v, u)`, equal in value, would split the tie in halves.

  Args:
    u: (..., features), the linear response.
    v: (..., features), the weighted input sum.
    alpha: scalar or (features,).
    inner_bias: b1, (features,).
    outer_bias: b2, (features,).

  Returns:
    Like u. Half precision is combined in float32 and rounded once.
  """
  dtype = u.dtype
  wide = jnp.promote_types(dtype, jnp.float32)
  hinge = jax.nn.relu(_gap(u, v, inner_bias))
  # alpha = 1, the common case of training from scratch, costs no multiplication.
  if not (isinstance(alpha, float | int) and alpha == 1):
    hinge = jnp.asarray(alpha, wide) * hinge
  y = u.astype(wide) + hinge
  if outer_bias is not None:
    y = y + outer_bias.astype(wide)
  return y.astype(dtype)


def _gap(u: jax.Array, v: jax.Array, inner_bias: jax.Array | None) -> jax.Array:
  """What the hinge looks at, u - v + b1, in float32 at least."""
  wide = jnp.promote_types(u.dtype, jnp.float32)
  gap = u.astype(wide) - v.astype(wide)
  return gap if inner_bias is None else gap + inner_bias.astype(wide)


def ic_conv(
    x: jax.Array,
    kernel: jax.Array,
    adjust: jax.Array,
    *,
    inner_bias: jax.Array | None = None,
    outer_bias: jax.Array | None = None,
    alpha: jax.Array | float = 1.0,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    input_dilation: int | Sequence[int] = 1,
    groups: int = 1,
    adjust_groups: int | None = None,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
  """The IC convolution (Eq. 6; with alpha, Eq. 7).

  The box is strided before W' is applied, and both branches see the same padding, so the box sums
  only what lies in the image.

  Args:
    x: (N, *spatial, C).
    kernel: W, (*window, C // groups, features).
    adjust: W', (C // adjust_groups, features).
    inner_bias: b1, (features,).
    outer_bias: b2, (features,).
    alpha: scalar or (features,).
    strides: an int or one per spatial axis.
    padding: 'SAME', 'VALID' or (low, high) pairs per spatial axis.
    kernel_dilation: an int or one per spatial axis.
    input_dilation: an int or one per spatial axis.
    groups: channel groups of W.
    adjust_groups: channel groups of W' (default: as W, where filter i sees C // groups channels).
    precision: as in `jax.lax`.

  Returns:
    (N, *out, features) in the dtype of x.
  """
  window = kernel.shape[:-2]
  n = len(window)
  strides = _per_axis(strides, n)
  kernel_dilation = _per_axis(kernel_dilation, n)
  input_dilation = _per_axis(input_dilation, n)
  adjust_groups = groups if adjust_groups is None else adjust_groups
  pads = explicit_padding(padding, x.shape[1:-1], window, strides, kernel_dilation, input_dilation)
  where = _Where(strides, pads, kernel_dilation, input_dilation, groups, adjust_groups,
                 tuple(precision) if isinstance(precision, list) else precision)
  where = where._replace(how=choice.chosen(
      "ic", x, kernel.shape[-1], *window, *strides, supported=on_gpu.supports(
          x, kernel, adjust, **where.spatial(), groups=groups, adjust_groups=adjust_groups)))
  hinge = {"inner_bias": inner_bias, "outer_bias": outer_bias}
  hinge = {key: jnp.asarray(value) for key, value in hinge.items() if value is not None}
  # Only where alpha = 1 needs no product, and no gradient, is it not an array.
  if not (isinstance(alpha, float | int) and alpha == 1):
    hinge["alpha"] = jnp.asarray(alpha, jnp.promote_types(x.dtype, jnp.float32))
  x, kernel, adjust, hinge = varying_alike(x, kernel, adjust, hinge)
  return (_ic_conv if own_rules() else _plain_ic_conv)(x, kernel, adjust, hinge, where)


class _Where(NamedTuple):
  """The arguments of an IC convolution that are no arrays."""

  strides: tuple[int, ...]
  padding: Pads
  kernel_dilation: tuple[int, ...]
  input_dilation: tuple[int, ...]
  groups: int
  adjust_groups: int
  precision: lax.PrecisionLike
  how: str = ""

  def spatial(self) -> dict[str, Any]:
    return dict(strides=self.strides, padding=self.padding, kernel_dilation=self.kernel_dilation,
                input_dilation=self.input_dilation)


def _plain_ic_conv(x, kernel, adjust, hinge: dict[str, jax.Array], where: _Where) -> jax.Array:
  v = _weigh(box_sum(x, kernel.shape[:-2], **where.spatial()), adjust, where)
  return ic_combine(_linear(x, kernel, where), v, **hinge)


def _linear(x: jax.Array, kernel: jax.Array, where: _Where) -> jax.Array:
  """u, W's response."""
  return conv(x, kernel, **where.spatial(), groups=where.groups, precision=where.precision)


def _weigh(s: jax.Array, adjust: jax.Array, where: _Where) -> jax.Array:
  """W' on the box sums: a 1x1 convolution."""
  n = s.ndim - 2
  return conv(s, adjust.reshape((1,) * n + adjust.shape), strides=(1,) * n, padding=((0, 0),) * n,
              groups=where.adjust_groups, precision=where.precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _ic_conv(x, kernel, adjust, hinge, where):
  if where.how:
    return _forward(x, kernel, adjust, hinge, where)[0]
  return _plain_ic_conv(x, kernel, adjust, hinge, where)


def _forward(x, kernel, adjust, hinge, where):
  """Keeps x and u - v + b1, or where it is positive if that is enough: autodiff keeps the box sums too."""
  window = kernel.shape[:-2]

  def rest(x, adjust, u, hinge):
    v = _weigh(box_sum(x, window, **where.spatial()), adjust, where)
    gap = _gap(u, v, hinge.get("inner_bias"))
    # A norm behind it reads it three times.
    return in_memory(ic_combine(u, v, **hinge)), gap.astype(u.dtype) if "alpha" in hinge else (gap > 0).astype(jnp.int8)

  u = _linear(x, kernel, where)
  y, kept = choice.either(where.how, functools.partial(
      on_gpu.hinge_on_box, window=window, strides=where.strides, padding=where.padding), rest,
      x, adjust, u, hinge)
  return y, (x, kernel, adjust, hinge, kept)


def _backward(where: _Where, saved, g: jax.Array):
  x, kernel, adjust, hinge, kept = saved
  dtype = g.dtype
  g = g.astype(jnp.promote_types(dtype, jnp.float32))
  axes = tuple(range(g.ndim - 1))
  through = jnp.where(kept > 0, g, 0)  # what passes the hinge
  dhinge = {}
  if "outer_bias" in hinge:
    dhinge["outer_bias"] = g.sum(axes)
  alpha = hinge.get("alpha", 1.0)
  if "alpha" in hinge:
    # Not through * kept: where the gap is -inf (float16 ends at 65504), 0 * -inf would make this NaN.
    dalpha = (g * jax.nn.relu(kept)).sum(axes)
    dhinge["alpha"] = dalpha if alpha.ndim else dalpha.sum()
  if "inner_bias" in hinge:
    dhinge["inner_bias"] = through.sum(axes) * alpha
  # From g again: of a mask `kept` less is read than of `through`.
  du = jnp.where(kept > 0, g * (1 + alpha), g).astype(dtype)

  _, pull = jax.vjp(functools.partial(_linear, where=where), x, kernel)
  dx, dkernel = pull(du)
  # What flows into v is -alpha * through. The factor goes to W', which is small, and not over the image.
  factor = -jnp.asarray(alpha, g.dtype)
  weights, through = (adjust.astype(g.dtype) * factor).astype(adjust.dtype), through.astype(dtype)
  box = functools.partial(box_sum, window=kernel.shape[:-2], **where.spatial())
  weigh = functools.partial(_weigh, where=where)
  if _commutes(x, through, where):
    # The box and W' can change places, and the transpose of the box is a box: with it W' has its gradient
    # from x itself, and the box sums of x are needed no more.
    def add_through_box(through, weights, dx):
      (dz,) = jax.linear_transpose(box, through)(through)
      # vjp, here and below: JAX does not transpose functions with rules of their own, as W' in groups is.
      return dx + jax.vjp(lambda x: weigh(x, weights), x)[1](dz)[0], dz

    dx, dz = choice.either(where.how, functools.partial(
        on_gpu.add_through_box, window=kernel.shape[:-2], padding=where.padding), add_through_box,
        through, weights, dx)
    (dweights,) = jax.vjp(lambda weights: weigh(x, weights), weights)[1](dz)
  else:
    s, pull_box = jax.vjp(box, x)
    _, pull = jax.vjp(weigh, s, weights)
    ds, dweights = pull(through)
    dx = dx + pull_box(ds)[0]
  dadjust = (dweights.astype(g.dtype) * factor).astype(adjust.dtype)
  dhinge = {key: value.astype(hinge[key].dtype) for key, value in dhinge.items()}
  return dx, dkernel, dadjust, dhinge


_ic_conv.defvjp(_forward, _backward)


def _commutes(x: jax.Array, g: jax.Array, where: _Where) -> bool:
  """Whether the box may come behind W': a shape that it keeps, and not many more channels to sum."""
  return x.shape[:-1] == g.shape[:-1] and set(where.strides) == {1} and set(
      where.input_dilation) == {1} and g.shape[-1] <= 2 * x.shape[-1]


def ic_dense(
    x: jax.Array,
    kernel: jax.Array,
    adjust: jax.Array,
    *,
    inner_bias: jax.Array | None = None,
    outer_bias: jax.Array | None = None,
    alpha: jax.Array | float = 1.0,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
  """A layer of IC neurons (Eq. 3, before the activation f).

  Args:
    x: (..., n).
    kernel: W, (n, features).
    adjust: w', (features,): one weight per neuron on the sum of all inputs.
    inner_bias: b1, (features,).
    outer_bias: b2, (features,).
    alpha: scalar or (features,).
    precision: as in `jax.lax`.

  Returns:
    (..., features) in the dtype of x.
  """
  u = jnp.dot(x, kernel, precision=precision)
  total = jnp.sum(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=-1, keepdims=True)
  v = total * adjust.astype(total.dtype)
  return ic_combine(u, v, alpha=alpha, inner_bias=inner_bias, outer_bias=outer_bias)


def _per_axis(value: int | Sequence[int], n: int) -> tuple[int, ...]:
  return (value,) * n if isinstance(value, int) else tuple(value)
