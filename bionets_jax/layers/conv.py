"""Convolution with the arguments of `flax.linen.Conv`, on `ops.conv`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from bionets_jax import ops
from bionets_jax.ops.padding import Pads

Shape = tuple[int, ...]
Initializer = Callable[..., Any]  # (key, shape, dtype) -> array
Padding = str | int | Sequence[int | tuple[int, int]]

default_kernel_init = nn.initializers.lecun_normal()


class ConvBase(nn.Module):
  """The arguments of `flax.linen.Conv`, and how they become arrays. See `Conv` and `ICConv`."""

  features: int
  kernel_size: int | Sequence[int]
  strides: None | int | Sequence[int] = 1
  padding: Padding = "SAME"
  input_dilation: None | int | Sequence[int] = 1
  kernel_dilation: None | int | Sequence[int] = 1
  feature_group_count: int = 1
  use_bias: bool = True
  mask: jax.Array | None = None
  dtype: Any = None
  param_dtype: Any = jnp.float32
  precision: Any = None
  kernel_init: Initializer = default_kernel_init
  bias_init: Initializer = nn.initializers.zeros_init()
  promote_dtype: Callable[..., Any] = promote_dtype

  replaces = "conv"

  @property
  def window(self) -> Shape:
    k = self.kernel_size
    return (k,) if isinstance(k, int) else tuple(k)

  def per_axis(self, value: None | int | Sequence[int]) -> Shape:
    """One number per spatial axis; None means 1, as in Flax."""
    if value is None:
      value = 1
    values = (value,) * len(self.window) if isinstance(value, int) else tuple(value)
    if len(values) != len(self.window):
      raise ValueError(f"{self._where()}: {values} has {len(values)} numbers for a kernel of "
                       f"{len(self.window)} spatial dimensions")
    return values

  def kernel_shape(self, in_features: int) -> Shape:
    groups = self.feature_group_count
    if in_features % groups or self.features % groups:
      raise ValueError(
          f"{self._where()}: {in_features} input channels and {self.features} features do not both "
          f"divide into feature_group_count={groups} groups")
    return (*self.window, in_features // groups, self.features)

  def make_kernel(self, in_features: int) -> jax.Array:
    shape = self.kernel_shape(in_features)
    kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
    if self.mask is not None:
      if self.mask.shape != shape:
        raise ValueError(f"{self._where()}: mask has shape {self.mask.shape}, the kernel {shape}")
      kernel = kernel * self.mask
    return kernel

  def to_batch(self, inputs: jax.Array) -> tuple[jax.Array, Shape]:
    """(*batch, *spatial, C) as (N, *spatial, C), and the batch shape to restore."""
    batch_ndim = inputs.ndim - len(self.window) - 1
    if batch_ndim < 0:
      raise ValueError(
          f"{self._where()}: input of shape {inputs.shape} has too few axes for a kernel of "
          f"{len(self.window)} spatial dimensions and a channel axis")
    batch = inputs.shape[:batch_ndim]
    return inputs.reshape(math.prod(batch), *inputs.shape[batch_ndim:]), batch

  def pad(self, inputs: jax.Array) -> tuple[jax.Array, Pads]:
    """Resolves the padding: (inputs, explicit pairs). Paddings that are not zeros are applied."""
    window, dilation = self.window, self.per_axis(self.kernel_dilation)
    padding: Any = self.padding
    if isinstance(padding, str) and padding.upper() in ("CIRCULAR", "REFLECT", "CAUSAL"):
      extents = [(k - 1) * d for k, d in zip(window, dilation, strict=True)]
      kind = padding.upper()
      if kind == "CAUSAL":
        if len(window) != 1:
          raise ValueError(f"{self._where()}: causal padding exists for 1D convolutions only")
        pairs, mode = [(extents[0], 0)], "constant"
      else:
        pairs = [(e // 2, e - e // 2) for e in extents]
        mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}[kind]
      inputs = jnp.pad(inputs, [(0, 0), *pairs, (0, 0)], mode=mode)
      padding = "VALID"
    elif isinstance(padding, int):
      padding = [(padding, padding)] * len(window)
    elif not isinstance(padding, str):
      padding = [(p, p) if isinstance(p, int) else tuple(p) for p in padding]
    return inputs, ops.explicit_padding(
        padding, inputs.shape[1:-1], window, self.per_axis(self.strides), dilation,
        self.per_axis(self.input_dilation))

  def _where(self) -> str:
    return f"{type(self).__name__} '{'/'.join(self.path) if self.scope else self.name or ''}'"


class Conv(ConvBase):
  """Convolution: a drop-in for `flax.linen.Conv`, with 1x1 kernels as one matrix product.

  Parameters have Flax's names and shapes: `kernel` (*window, C // groups, features) and `bias`
  (features,). Takes (*batch, *spatial, C), returns (*batch, *out, features).

  Raises:
    ValueError: if channels do not divide into the groups, or on an unknown padding.
  """

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    x, batch = self.to_batch(inputs)
    kernel = self.make_kernel(x.shape[-1])
    bias = None
    if self.use_bias:
      bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
    x, kernel, bias = self.promote_dtype(x, kernel, bias, dtype=self.dtype)
    x, padding = self.pad(x)
    y = ops.conv(
        x, kernel, strides=self.per_axis(self.strides), padding=padding,
        kernel_dilation=self.per_axis(self.kernel_dilation),
        input_dilation=self.per_axis(self.input_dilation), groups=self.feature_group_count,
        precision=self.precision)
    if bias is not None:
      y = y + bias
    return y.reshape(*batch, *y.shape[1:])

  def macs(self, output_shape: Shape, in_features: int) -> int:
    """Multiply-adds of one call, padding counted as if it were image."""
    return math.prod(output_shape) * math.prod(self.kernel_shape(in_features)[:-1])
