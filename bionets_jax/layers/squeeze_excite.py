"""Squeeze-and-excitation (Hu et al. 2018)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bionets_jax.layers.conv import Initializer, default_kernel_init
from bionets_jax.layers.socket import Unit, conv_norm_act, plain_conv


class SqueezeExcite(nn.Module):
  """Multiplies each channel by a gate computed from the means of all: (N, H, W, C) to the same.

  mean over H and W, 1x1 convolution with bias to `reduced` channels, `act`, 1x1 convolution with bias
  back to C, `gate`.

  Attributes:
    reduced: channels between the two convolutions.
    pointwise: socket of both convolutions.
    act: between them.
    gate: behind the second.
    kernel_init: of both.
    dtype: of the computation; the means are taken in float32 at least.

  Raises:
    ValueError: if nothing is left between the convolutions.
  """

  reduced: int
  pointwise: Unit = plain_conv
  act: Callable[[jax.Array], jax.Array] = nn.relu
  gate: Callable[[jax.Array], jax.Array] = nn.sigmoid
  kernel_init: Initializer = default_kernel_init
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.reduced < 1:
      raise ValueError(f"SqueezeExcite '{'/'.join(self.path)}': {x.shape[-1]} channels reduced to "
                       f"{self.reduced}; at least 1 has to be left")
    options = dict(use_bias=True, kernel_init=self.kernel_init, dtype=self.dtype)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    s = x.mean(axis=(1, 2), keepdims=True, dtype=wide).astype(x.dtype)
    s = conv_norm_act(s, self.pointwise, self.reduced, (1, 1), act=self.act, name="reduce_conv", **options)
    s = conv_norm_act(s, self.pointwise, x.shape[-1], (1, 1), act=self.gate, name="expand_conv", **options)
    return x * s
