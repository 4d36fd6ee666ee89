"""VGG with batch normalisation and one linear layer, for small images, with a socket for its convolutions.

Source: Simonyan and Zisserman 2015; the layout is pytorch-cifar's (github.com/kuangliu/pytorch-cifar),
as are the initialisers: PyTorch's defaults, which that repository leaves alone.
"""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import flax.linen as nn
import jax

from bionets_jax.layers import BatchNorm
from bionets_jax.layers.socket import Unit, check_sockets, conv_norm_act, plain_conv
from bionets_jax.models.common import mean_pool, select_endpoints, torch_bias, torch_default


class VGGBlock(nn.Module):
  """3x3 convolution with bias, BN, ReLU: (N, H, W, C) -> (N, H, W, features)."""

  features: int
  conv: Unit
  norm: Unit
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return _layer(x, self.conv, self.features, self.norm, self.dtype, "conv")


class VGG(nn.Module):
  """pytorch-cifar's VGG: stages of 3x3 convolutions with a 2x2 max-pool behind each.

  Maps images (N, H, W, 3), float, to logits (N, num_classes), float32. Endpoints, by name: 'stem',
  'stage1'..'stage5' (after their max-pools), 'pre_logits' (the pooled features). Where a pool meets an
  odd side it leaves the last row or column out. The very first convolution, `stem_conv`, is the first
  of stage 1 and stays plain, so the blocks of stage 1 are numbered from 1.

  Attributes:
    stage_sizes: convolutions per stage: (2, 2, 3, 3, 3) is VGG-16, (2, 2, 4, 4, 4) VGG-19.
    num_classes: None leaves the head away; the pooled features are returned in place of logits.
    conv: socket of every convolution but the first. They have biases, in an IC layer that is b2.
    width: channels of stage 1; stage i has width * 2^(i-1), at most 8 * width.
    batch_norm_groups: see `layers.BatchNorm`.
    dtype: of the computation. Parameters, statistics and logits stay float32.

  Raises:
    ValueError: if the images are too small for the pools, or for a unit that does not fit its socket.
  """

  stage_sizes: Sequence[int] = (2, 2, 3, 3, 3)
  num_classes: int | None = 10
  conv: Unit = plain_conv
  width: int = 64
  batch_norm_groups: int = 1
  dtype: Any = None

  sockets = {"conv": "conv"}

  @nn.compact
  def __call__(
      self, images: jax.Array, train: bool = False, endpoints: bool | Collection[str] = False
  ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
    height, width = images.shape[1:3]
    if min(height, width) < (least := 2 ** len(self.stage_sizes)):
      raise ValueError(f"VGG: images of {height} x {width} pixels vanish in {len(self.stage_sizes)} "
                       f"max-pools; each side needs {least} at least")
    check_sockets(self)
    norm = functools.partial(
        BatchNorm, use_running_average=not train, groups=self.batch_norm_groups, dtype=self.dtype)
    found = {}
    x = found["stem"] = _layer(images, plain_conv, self.width, norm, self.dtype, "stem_conv")
    for i, blocks in enumerate(self.stage_sizes, start=1):
      for j in range(1 if i == 1 else 0, blocks):
        x = VGGBlock(self.width * min(2 ** (i - 1), 8), self.conv, norm, self.dtype,
                     name=f"stage{i}_block{j}")(x)
      x = found[f"stage{i}"] = nn.max_pool(x, (2, 2), strides=(2, 2))
    x = found["pre_logits"] = mean_pool(x)
    if self.num_classes is not None:
      x = nn.Dense(self.num_classes, kernel_init=torch_default, bias_init=torch_bias(x.shape[-1]),
                   name="head")(x)
    return select_endpoints(x, found, endpoints)


def _layer(x: jax.Array, conv: Unit, features: int, norm: Unit, dtype: Any, name: str) -> jax.Array:
  return conv_norm_act(
      x, conv, features, (3, 3), padding=1, use_bias=True, kernel_init=torch_default,
      bias_init=torch_bias(9 * x.shape[-1]), norm=norm, act=nn.relu, dtype=dtype, name=name)
