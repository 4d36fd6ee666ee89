"""The inter-layer collision (IC) unit as array functions.

An IC unit compares its linear response u with a multiple v of the plain sum of its inputs:

    y = u + alpha * relu(u - v + b1) + b2                        (IC networks, Eqs. 3, 6 and 7)

For a convolution u = W * x and v = W' . (1 * x), with 1 * x the sum of each input channel over
the kernel's window (a box sum) and W' a 1x1 convolution. The box has no parameters.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bionets_jax.ops.conv import conv
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
  u, v = u.astype(wide), v.astype(wide)
  gap = u - v
  if inner_bias is not None:
    gap = gap + inner_bias.astype(wide)
  hinge = jax.nn.relu(gap)
  # alpha = 1, the common case of training from scratch, costs no multiplication.
  if not (isinstance(alpha, float | int) and alpha == 1):
    hinge = jnp.asarray(alpha, wide) * hinge
  y = u + hinge
  if outer_bias is not None:
    y = y + outer_bias.astype(wide)
  return y.astype(dtype)


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
  spatial = dict(strides=strides, padding=pads, kernel_dilation=kernel_dilation,
                 input_dilation=input_dilation)
  u = conv(x, kernel, **spatial, groups=groups, precision=precision)
  s = box_sum(x, window, **spatial)
  v = conv(s, adjust.reshape((1,) * n + adjust.shape), strides=(1,) * n, padding=((0, 0),) * n,
           groups=adjust_groups, precision=precision)
  return ic_combine(u, v, alpha=alpha, inner_bias=inner_bias, outer_bias=outer_bias)


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
