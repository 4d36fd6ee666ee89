"""The FP-block: the product of two depthwise filters, an AND like that of end-stopped cells.

Sources: "Feature Products Yield Efficient Networks" (section 2 and Eqs. 3, 4); the block that its
authors published in a journal later; and their Min-Nets, with the minimum for the product.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bionets_jax import ops
from bionets_jax.layers.conv import Conv, Initializer, Shape, default_kernel_init
from bionets_jax.layers.norm import BatchNorm
from bionets_jax.layers.socket import Unit, conv_norm_act, plain_conv
from bionets_jax.ops.depthwise import COMBINES, check_combine

VARIANTS = ("seed", "journal")


class DepthwisePair(nn.Module):
  """Two depthwise filters on the same input, and their AND: (N, H, W, C) to (N, H/s, W/s, C).

  Parameters: `kernel_a`, `kernel_b`, each (k, k, 1, C). No bias.

  Attributes:
    kernel_size: odd extents; the padding is k // 2 zeros.
    strides: of both.
    combine: 'product' or 'min'.
    branch: what each response passes through before they are combined; None for nothing.
    kernel_init: of both kernels.
    dtype: of the computation.
  """

  kernel_size: tuple[int, int] = (3, 3)
  strides: int = 1
  combine: str = "product"
  branch: Callable[[jax.Array], jax.Array] | None = None
  kernel_init: Initializer = default_kernel_init
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    check_combine(self.combine)
    if len(self.kernel_size) != 2 or not all(k % 2 for k in self.kernel_size):
      raise ValueError(f"DepthwisePair: kernel_size={self.kernel_size}: give two odd numbers")
    shape = (*self.kernel_size, 1, x.shape[-1])
    a = self.param("kernel_a", self.kernel_init, shape, self.param_dtype)
    b = self.param("kernel_b", self.kernel_init, shape, self.param_dtype)
    x, a, b = self._in_dtype(x, a, b)
    if self.branch is None:
      return ops.paired_depthwise_product(x, a, b, combine=self.combine, **self._where())
    a, b = (self.branch(ops.depthwise_conv(x, kernel, **self._where())) for kernel in (a, b))
    return COMBINES[self.combine](a, b)

  def normalizer(self, x: jax.Array) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """What `BatchNorm` takes as `fused` for the result of a call with x before, if there is no `branch`."""
    arrays = self._in_dtype(x, self.get_variable("params", "kernel_a"), self.get_variable("params", "kernel_b"))
    return partial(ops.paired_depthwise_normalize, *arrays, combine=self.combine, **self._where())

  def _in_dtype(self, x: jax.Array, *kernels: jax.Array) -> list[jax.Array]:
    dtype = self.dtype or jnp.result_type(x, kernels[0])
    return [array.astype(dtype) for array in (x, *kernels)]

  def _where(self) -> dict[str, Any]:
    return dict(strides=(self.strides,) * 2, padding=tuple((k // 2, k // 2) for k in self.kernel_size))

  def macs(self, output_shape: Shape, in_features: int) -> int:
    """Multiply-adds of the two filters in one call; the product is not counted."""
    return 2 * math.prod(self.kernel_size) * math.prod(output_shape[:-1]) * in_features


class FPBlock(nn.Module):
  """FP-block: (N, H, W, C) to (N, H', W', features), F = expansion * features channels between.

      conv 1x1 -> BN -> ReLU            C to F
      depthwise a, depthwise b          F to F, on the same tensor, nothing behind either
      a * b -> BN without parameters
      conv 1x1 -> BN -> ReLU            F to features
      max-pool 2x2                      only with `pool`

  No convolution has a bias, and there is no shortcut. The convolutions have the number of weights of
  Eq. 4, expansion * features * (C + 2 k^2 + features).

  Attributes:
    features: channels of the output.
    expansion: q; F is q * features, rounded down, but at least 1.
    pool: halve height and width: as the first block of a stage that halves its resolution.
    single_filter: the ablation of Table 1: one depthwise filter, BN without parameters, ReLU.
    combine: 'product', or 'min' for the smaller of the two responses (Min-Nets; as many parameters).
    variant: 'seed', as above; or 'journal': instance norm without parameters and ReLU on each branch
      before the product and nothing behind it, a shortcut without parameters (2x2 average pool, zeros
      for new channels at the end; only where channels are lost a 1x1 convolution), and with `pool`
      stride 2 in both depthwise filters.
    kernel_size: of the depthwise filters.
    norm: BatchNorm's class, or a factory with its arguments `name`, `use_scale`, `use_bias`.
    pointwise: socket of the two 1x1 convolutions.
    kernel_init: of all kernels; a depthwise kernel is (k, k, 1, F), with fan_in k^2.
    dtype: of the computation.

  Called with `train=True` or `False` it sets `use_running_average` of `norm`; without, norm must have it
  already (`functools.partial(nn.BatchNorm, use_running_average=not train)`).

  Raises:
    ValueError: on options that mean nothing, where the unit in `pointwise` does not fit, or if pooling
      leaves nothing of the image.
  """

  features: int
  expansion: float = 2
  pool: bool = False
  single_filter: bool = False
  combine: str = "product"
  variant: str = "seed"
  kernel_size: tuple[int, int] = (3, 3)
  norm: Unit = BatchNorm
  pointwise: Unit = plain_conv
  kernel_init: Initializer = default_kernel_init
  dtype: Any = None

  replaces = "stage"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool | None = None) -> jax.Array:
    check_fp_options(self.variant, self.combine, self.single_filter, self.expansion)
    if self.pool and self.variant == "seed" and min(x.shape[1:3]) < 2:
      raise ValueError(f"FPBlock '{'/'.join(self.path)}': nothing is left of {x.shape[1]} x {x.shape[2]} pixels "
                       "if they are pooled")
    norm = self.norm if train is None else partial(self.norm, use_running_average=not train)
    options = dict(kernel_init=self.kernel_init, dtype=self.dtype)
    journal = self.variant == "journal"
    width = max(1, int(self.expansion * self.features))

    y = conv_norm_act(x, self.pointwise, width, (1, 1), norm=norm, act=nn.relu, name="conv1", **options)
    strides = 2 if journal and self.pool else 1
    branch = _instance_norm_relu if journal else None
    behind: Any = None if journal else norm(name="bn2", use_scale=False, use_bias=False)
    if self.single_filter:
      y = Conv(width, self.kernel_size, strides=strides, padding=[(k // 2, k // 2) for k in self.kernel_size],
               feature_group_count=width, use_bias=False, name="filter", **options)(y)
      y = _instance_norm_relu(y) if journal else nn.relu(behind(y))
    else:
      pair = DepthwisePair(self.kernel_size, strides, self.combine, branch, name="filters", **options)
      combined = pair(y)
      if journal:
        y = combined
      elif isinstance(behind, BatchNorm):
        y = behind(combined, fused=pair.normalizer(y))
      else:
        y = behind(combined)
    y = conv_norm_act(
        y, self.pointwise, self.features, (1, 1), norm=norm, act=nn.relu, name="conv3", **options)
    if journal:
      return y + _shortcut(x, self.features, self.pool, options)
    return nn.max_pool(y, (2, 2), strides=(2, 2)) if self.pool else y


def check_fp_options(
    variant: str = "seed", combine: str = "product", single_filter: bool = False, expansion: Any = 1
) -> None:
  """Raises ValueError for options of an `FPBlock` that say nothing or contradict each other."""
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: give one of {', '.join(map(repr, VARIANTS))}")
  check_combine(combine)
  if isinstance(expansion, str) or not expansion > 0:
    raise ValueError(f"expansion={expansion!r}: give a positive number")
  if single_filter and combine != "product":
    raise ValueError(f"combine={combine!r} says how two filters are combined; single_filter leaves one")


def _instance_norm_relu(x: jax.Array) -> jax.Array:
  return nn.relu(nn.InstanceNorm(epsilon=1e-5, use_bias=False, use_scale=False)(x))


def _shortcut(x: jax.Array, features: int, pool: bool, options: dict[str, Any]) -> jax.Array:
  if pool:
    # At odd sizes the last window holds what there is, as with PyTorch's ceil_mode.
    padding = tuple((0, size % 2) for size in x.shape[1:3])
    x = nn.avg_pool(x, (2, 2), strides=(2, 2), padding=padding, count_include_pad=False)
  if x.shape[-1] > features:
    return Conv(features, (1, 1), name="shortcut_conv", **options)(x)
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))
