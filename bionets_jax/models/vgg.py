"""VGG with batch normalisation, for small images and for ImageNet, with a socket for its convolutions.

Source: Simonyan and Zisserman 2015; the layout is pytorch-cifar's (github.com/kuangliu/pytorch-cifar),
as are the initialisers: PyTorch's defaults, which that repository leaves alone. With `hidden` and `pool` it
is torchvision's.
"""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import flax.linen as nn
import jax

from bionets_jax.layers import BatchNorm
from bionets_jax.layers.socket import Unit, check_sockets, conv_norm_act, plain_conv
from bionets_jax.models.common import (
  adaptive_mean_pool,
  rematerialised,
  select_endpoints,
  torch_bias,
  torch_default,
)


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
  """Stages of 3x3 convolutions with a 2x2 max-pool behind each, then dense layers.

  The defaults are pytorch-cifar's. torchvision's vgg16_bn is hidden=(4096, 4096), pool=7 and 1000 classes.

  Maps images (N, H, W, 3), float, to logits (N, num_classes), float32. In training it needs the rng stream
  'dropout' where there are hidden layers. Endpoints, by name: 'stem', 'stage1'..'stage5' (after their
  max-pools), 'pre_logits' (the head's input, before the dropout). Where a pool meets an odd side it leaves
  the last row or column out. The very first convolution, `stem_conv`, is the first of stage 1 and stays
  plain, so the blocks of stage 1 are numbered from 1.

  Attributes:
    stage_sizes: convolutions per stage: (1, 1, 2, 2, 2) is VGG-11, (2, 2, 2, 2, 2) VGG-13, (2, 2, 3, 3, 3)
      VGG-16, (2, 2, 4, 4, 4) VGG-19.
    num_classes: None leaves the head away; 'pre_logits' is returned in place of logits.
    conv: socket of every convolution but the first. They have biases, in an IC layer that is b2.
    width: channels of stage 1; stage i has width * 2^(i-1), at most 8 * width.
    hidden: features of each dense layer before the head; a ReLU follows each.
    pool: the last maps are averaged to pool x pool pixels, of whatever size they are, and flattened in the
      order (H, W, C).
    dropout: rate behind each hidden layer.
    batch_norm_groups: see `layers.BatchNorm`.
    remat: 'blocks' keeps only the inputs of the convolutions for the backward pass, see `common.rematerialised`.
    dtype: of the computation. Parameters, statistics and logits stay float32.

  Raises:
    ValueError: if the images are too small for the max-pools, for a unit that does not fit its socket, or for
      sizes that are none.
  """

  stage_sizes: Sequence[int] = (2, 2, 3, 3, 3)
  num_classes: int | None = 10
  conv: Unit = plain_conv
  width: int = 64
  hidden: Sequence[int] = ()
  pool: int = 1
  dropout: float = 0.5
  batch_norm_groups: int = 1
  remat: str = ""
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
    self.check()
    norm = functools.partial(
        BatchNorm, use_running_average=not train, groups=self.batch_norm_groups, dtype=self.dtype)
    block = rematerialised(VGGBlock, self.remat)
    found = {}
    x = found["stem"] = _layer(images, plain_conv, self.width, norm, self.dtype, "stem_conv")
    for i, blocks in enumerate(self.stage_sizes, start=1):
      for j in range(1 if i == 1 else 0, blocks):
        x = block(self.width * min(2 ** (i - 1), 8), self.conv, norm, self.dtype,
                  name=f"stage{i}_block{j}")(x)
      x = found[f"stage{i}"] = nn.max_pool(x, (2, 2), strides=(2, 2))
    x = adaptive_mean_pool(x, self.pool)
    x = x.reshape(x.shape[0], -1)
    for i, features in enumerate(self.hidden, start=1):
      if i > 1:
        x = self._drop(x, train)
      x = nn.relu(_dense(x, features, self.dtype, f"hidden{i}"))
    found["pre_logits"] = x
    if self.num_classes is not None:
      x = self._drop(x, train) if self.hidden else x
      x = _dense(x, self.num_classes, None, "head")  # float32 whatever the dtype
    return select_endpoints(x, found, endpoints)

  def _drop(self, x: jax.Array, train: bool) -> jax.Array:
    return nn.Dropout(self.dropout)(x, deterministic=not train)

  def check(self) -> None:
    """Raises ValueError for sizes that are none."""
    if self.pool < 1 or any(features < 1 for features in self.hidden):
      raise ValueError(f"hidden={tuple(self.hidden)}, pool={self.pool}: give sizes of 1 or more")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout={self.dropout}: give a rate from 0 to below 1")


def _dense(x: jax.Array, features: int, dtype: Any, name: str) -> jax.Array:
  return nn.Dense(features, kernel_init=torch_default, bias_init=torch_bias(x.shape[-1]), dtype=dtype,
                  name=name)(x)


def _layer(x: jax.Array, conv: Unit, features: int, norm: Unit, dtype: Any, name: str) -> jax.Array:
  return conv_norm_act(
      x, conv, features, (3, 3), padding=1, use_bias=True, kernel_init=torch_default,
      bias_init=torch_bias(9 * x.shape[-1]), norm=norm, act=nn.relu, dtype=dtype, name=name)
