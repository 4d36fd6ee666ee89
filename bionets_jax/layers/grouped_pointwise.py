"""kConv: two grouped, interleaved pointwise convolutions in place of a dense one.

Source: "Grouped Pointwise Convolutions Significantly Reduces Parameters in EfficientNet", section 3,
and where the paper is silent the behaviour of its authors' Keras code (their kType 2).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bionets_jax import ops
from bionets_jax.layers.conv import Conv, Initializer, Padding, default_kernel_init

# With a 1x1 kernel none of them pads.
_NO_PADDING = ("SAME", "SAME_LOWER", "VALID", "CIRCULAR", "REFLECT", "CAUSAL")


def group_count(in_features: int, features: int, min_group_channels: int = 16) -> int:
  """Number of groups of a kConv.

  The largest integer that divides both channel counts and leaves every group `min_group_channels`
  inputs; 1 if there is none. Often less than the greatest common divisor: 1024 -> 512 has 64.
  """
  common = math.gcd(in_features, features)
  most = in_features // min_group_channels
  return max((n for n in range(1, min(common, most) + 1) if common % n == 0), default=1)


class GroupedPointwise(nn.Module):
  """kConv: replaces a 1x1 convolution together with its norm and activation.

  Takes (*batch, *spatial, C), returns (*batch, *out, features). With N = `group_count(...)` groups and
  s = features / N, all groups contiguous:

      K = act(bn1(conv1(x)))        in N groups
      I = K interleaved             `ops.interleave`; only where s > 1
      y = K + act(bn2(conv2(I)))    in the same N groups, where C >= features
      y = I                         where C < features

  K enters the sum as it was before the interleaving. With N = 1 it is act(bn1(conv1(x))), the layer
  that it replaces. A layer without norm (squeeze-and-excitation) has none in either convolution;
  where s = 1 the second one has one weight per channel.

  Children: `conv1`, `bn1`, and `conv2`, `bn2` where there is a second convolution; the convolutions are
  `Conv` with kernels (1, 1, C // N, features) and (1, 1, features // N, features).

  Attributes:
    features: channels of the output.
    kernel_size: all ones; their number is that of the spatial axes.
    strides: the input is subsampled first.
    padding: anything that pads a 1x1 window by nothing.
    min_group_channels: inputs that a group has at least.
    k_type: 2, the paper's; 1: I, without second convolution and sum; 0: one dense convolution, to tell
      the effect of the grouping from that of everything else.
    norm: factory of the norms, called with `name` (and `use_running_average`, see the call), e.g.
      `functools.partial(nn.BatchNorm, use_running_average=False)`; None for no norm.
    act: the activation; None for none.
    use_bias: biases in both convolutions.
    kernel_init, bias_init, dtype, param_dtype, precision: of both, as in `flax.linen.Conv`. The fans
      that `kernel_init` sees are those of a group's inputs and of all outputs, as in Keras.

  Raises:
    ValueError: for another kernel size, a padding, or an unknown k_type.
  """

  features: int
  kernel_size: int | Sequence[int] = (1, 1)
  strides: None | int | Sequence[int] = 1
  padding: Padding = "SAME"
  min_group_channels: int = 16
  k_type: int = 2
  norm: Callable[..., Callable[[jax.Array], jax.Array]] | None = None
  act: Callable[[jax.Array], jax.Array] | None = None
  use_bias: bool = False
  kernel_init: Initializer = default_kernel_init
  bias_init: Initializer = nn.initializers.zeros_init()
  dtype: Any = None
  param_dtype: Any = jnp.float32
  precision: Any = None

  replaces = "pointwise"
  whole_layer = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool | None = None) -> jax.Array:
    """Args: x; and train, with which the norms get `use_running_average=not train`."""
    self._check()
    groups = 1
    if self.k_type:
      groups = group_count(x.shape[-1], self.features, self.min_group_channels)
    kept = self._conv_norm_act(x, 1, groups, train, strides=self.strides)
    if groups == 1:
      return kept
    mixed = ops.interleave(kept, groups) if self.features > groups else kept
    if self.k_type == 1 or x.shape[-1] < self.features:
      return mixed
    return kept + self._conv_norm_act(mixed, 2, groups, train)

  def _conv_norm_act(
      self, x: jax.Array, number: int, groups: int, train: bool | None, **options: Any
  ) -> jax.Array:
    x = Conv(
        self.features, self.kernel_size, feature_group_count=groups, padding="VALID",
        use_bias=self.use_bias, kernel_init=self.kernel_init, bias_init=self.bias_init,
        dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision,
        name=f"conv{number}", **options)(x)
    if self.norm is not None:
      mode = {} if train is None else {"use_running_average": not train}
      x = self.norm(name=f"bn{number}", **mode)(x)
    return x if self.act is None else self.act(x)

  def _check(self) -> None:
    where = f"{type(self).__name__} '{'/'.join(self.path)}'"
    size = self.kernel_size
    if any(k != 1 for k in ((size,) if isinstance(size, int) else size)):
      raise ValueError(f"{where}: kConv replaces 1x1 convolutions only, got kernel_size={size}")
    if isinstance(self.padding, str):
      pads = self.padding.upper() not in _NO_PADDING
    else:
      pads = any(jax.tree.leaves(self.padding))
    if pads:
      raise ValueError(f"{where}: a 1x1 convolution is not padded, got padding={self.padding!r}")
    check_kconv_options(self.min_group_channels, self.k_type)


def check_kconv_options(min_group_channels: int = 16, k_type: int = 2) -> None:
  """Raises ValueError for options of a `GroupedPointwise` that mean nothing."""
  if k_type not in (0, 1, 2):
    raise ValueError(f"k_type={k_type!r}: give 0, 1 or 2")
  if not isinstance(min_group_channels, int) or min_group_channels < 1:
    raise ValueError(f"min_group_channels={min_group_channels}: give a whole number, 1 or more")
