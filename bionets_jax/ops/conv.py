"""Channels-last convolution; 1x1 and depthwise kernels take forms of their own."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bionets_jax.ops.depthwise import depthwise_conv
from bionets_jax.ops.derivatives import own_rules, varying_alike
from bionets_jax.ops.grouped import grouped_pointwise
from bionets_jax.ops.padding import Pads
from bionets_jax.ops.split import batch_parts, split_batch

# A depthwise filter with more taps is left to XLA: the unrolled sum would make programs too long.
_MAX_TAPS = 81
# Where the gradient of a small kernel is summed over parts of the batch, see `_kernel_gradient`: up to so many input
# channels, in parts of so many images. Of ResNet-20's step, batch 128, on two CPU cores (jax 0.10.2, float32) 16 parts
# for 3, 16 and 32 channels leave 0.74, 4 parts 0.81. With 64 channels one part is fastest in every shape
# of ResNet-50 and with 4 images in a part 16 and 32 are 1.2 to 1.3 times as slow.
_FEW_CHANNELS = 32
_FEW_TAPS = 9
_IMAGES_OF_A_PART = 8


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Sequence[int],
    padding: Pads,
    kernel_dilation: Sequence[int] | None = None,
    input_dilation: Sequence[int] | None = None,
    groups: int = 1,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
  """Convolution of a channels-last batch, in any number of spatial dimensions.

  Args:
    x: (N, *spatial, C).
    kernel: (*window, C // groups, features).
    strides: per spatial axis.
    padding: explicit (low, high) pairs per spatial axis, see `padding.explicit_padding`.
    kernel_dilation: per spatial axis.
    input_dilation: per spatial axis.
    groups: number of channel groups.
    precision: as in `jax.lax`.

  Returns:
    (N, *out, features) in the dtype of x.
  """
  n = kernel.ndim - 2
  kernel_dilation = tuple(kernel_dilation or (1,) * n)
  input_dilation = tuple(input_dilation or (1,) * n)
  window = kernel.shape[:n]
  if math.prod(window) == 1 and not any(map(any, padding)) and input_dilation == (1,) * n:
    if any(s != 1 for s in strides):
      x = x[(slice(None), *(slice(None, None, s) for s in strides))]
    if groups > 1:
      return grouped_pointwise(x, kernel.reshape(kernel.shape[-2:]), groups=groups, precision=precision)
    # A flat matrix product instead of a convolution: on CPU 1.9 to 4.7 times as fast forward and
    # backward, and the same library call on GPU and TPU. Flat because XLA transposes the
    # cotangent of a product with more than two dimensions.
    flat = jnp.dot(x.reshape(-1, x.shape[-1]), kernel.reshape(kernel.shape[-2:]), precision=precision)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])
  depthwise = groups > 1 and groups == x.shape[-1] == kernel.shape[-1]
  if depthwise and input_dilation == (1,) * n and math.prod(window) <= _MAX_TAPS and all(
      size + sum(pads) > (k - 1) * d
      for size, pads, k, d in zip(x.shape[1:-1], padding, window, kernel_dilation, strict=True)):
    return depthwise_conv(
        x, kernel, strides=tuple(strides), padding=padding, kernel_dilation=kernel_dilation)
  where = _Where(
      tuple(strides), tuple((low, high) for low, high in padding), input_dilation, kernel_dilation, groups,
      tuple(precision) if isinstance(precision, list) else precision)
  x, kernel = varying_alike(x, kernel)
  return (_conv if own_rules() else _lax_conv)(x, kernel, where)


class _Where(NamedTuple):
  """The arguments of a convolution that are no arrays."""

  strides: tuple[int, ...]
  padding: Pads
  input_dilation: tuple[int, ...]
  kernel_dilation: tuple[int, ...]
  groups: int
  precision: lax.PrecisionLike


def _lax_conv(x: jax.Array, kernel: jax.Array, where: _Where) -> jax.Array:
  return lax.conv_general_dilated(
      x, kernel, where.strides, where.padding, lhs_dilation=where.input_dilation,
      rhs_dilation=where.kernel_dilation, dimension_numbers=_channels_last(kernel.ndim - 2),
      feature_group_count=where.groups, precision=where.precision)


_conv = jax.custom_vjp(_lax_conv, nondiff_argnums=(2,))


def _forward(x: jax.Array, kernel: jax.Array, where: _Where):
  return _lax_conv(x, kernel, where), (x, kernel)


def _backward(where: _Where, saved, g: jax.Array):
  x, kernel = saved
  (dx,) = jax.linear_transpose(lambda x: _lax_conv(x, kernel, where), x)(g)
  dkernel = lax.platform_dependent(
      x, g, cpu=functools.partial(_kernel_gradient, kernel, where, True),
      default=functools.partial(_kernel_gradient, kernel, where, False))
  return dx, dkernel


_conv.defvjp(_forward, _backward)


def _kernel_gradient(like: jax.Array, where: _Where, split: bool, x: jax.Array, g: jax.Array) -> jax.Array:
  """d(conv)/d(kernel), as a sum over parts of the batch where `split`.

  XLA on CPUs computes this gradient as a convolution whose window is the whole image and whose sums are as long as
  the batch has pixels: with few channels slowly, the faster the shorter the sums.
  """
  parts = 1
  if split and x.shape[-1] <= _FEW_CHANNELS and math.prod(like.shape[:-2]) <= _FEW_TAPS:
    parts = batch_parts(x.shape[0], x.shape[0] // _IMAGES_OF_A_PART)
  total: Any = None
  for one_x, one_g in zip(split_batch(x, parts), split_batch(g, parts), strict=True):
    (part,) = jax.linear_transpose(lambda k, one_x=one_x: _lax_conv(one_x, k, where), like)(one_g)
    part = part.astype(jnp.promote_types(part.dtype, jnp.float32))
    total = part if total is None else total + part
  return total.astype(like.dtype)


def _channels_last(n: int) -> lax.ConvDimensionNumbers:
  data = (0, n + 1, *range(1, n + 1))
  return lax.ConvDimensionNumbers(data, (n + 1, n, *range(n)), data)
