"""MobileNet v1 with sockets for its depthwise and pointwise convolutions and their pairs.

Source: Howard et al. 2017; the layout is pytorch-cifar's (github.com/kuangliu/pytorch-cifar), as are the
initialisers: PyTorch's defaults, which that repository leaves alone. With `stem_stride` and `act` it is
timm's mobilenetv1_100, for ImageNet.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import flax.linen as nn
import jax

from bionets_jax.layers import BatchNorm
from bionets_jax.layers.socket import Unit, check_sockets, conv_norm_act, plain_conv
from bionets_jax.models.common import (
    mean_pool,
    rematerialised,
    select_endpoints,
    torch_bias,
    torch_default,
)

ACTS = {"relu": nn.relu, "relu6": nn.relu6}


class MobileNetBlock(nn.Module):
  """Depthwise 3x3, BN, act, pointwise, BN, act: (N, H, W, C) -> (N, H/s, W/s, features).

  Attributes:
    features: channels of the output.
    stride: of the depthwise convolution.
    conv: socket of the depthwise convolution.
    pointwise: socket of the pointwise convolution.
    pair: unit around both, or None; added to the pointwise response, before its norm.
    norm, act: see `layers.socket.conv_norm_act`.
    dtype: of the computation.
  """

  features: int
  stride: int
  conv: Unit
  pointwise: Unit
  pair: Unit | None
  norm: Unit
  act: Callable[[jax.Array], jax.Array]
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    options: dict[str, Any] = dict(kernel_init=torch_default, dtype=self.dtype)
    window: dict[str, Any] = dict(strides=self.stride, padding=1, **options)
    around = None
    if self.pair is not None:
      pair = self.pair(self.features, (3, 3), name="pair", **window)
      around = functools.partial(pair, x)
    layer: dict[str, Any] = dict(norm=self.norm, act=self.act)
    y = conv_norm_act(x, self.conv, x.shape[-1], (3, 3), feature_group_count=x.shape[-1],
                      name="depthwise_conv", **window, **layer)
    return conv_norm_act(y, self.pointwise, self.features, (1, 1), around=around,
                         name="pointwise_conv", **options, **layer)


class MobileNet(nn.Module):
  """A 3x3 stem and 13 depthwise-separable blocks.

  The defaults are pytorch-cifar's. timm's mobilenetv1_100 is stem_stride=2, act='relu6' and 1000 classes,
  its mobilenetv1_125 has width=40 besides.

  Maps images (N, H, W, 3), float, to logits (N, num_classes), float32. Endpoints, by name: 'stem',
  'stage1'..'stage5', 'pre_logits' (the pooled features). Every stage but the first halves the sides,
  rounding up.

  Attributes:
    stage_sizes: blocks per stage.
    num_classes: None leaves the head away; the pooled features are returned in place of logits.
    conv: socket of the depthwise 3x3 convolutions.
    pointwise: socket of the 1x1 convolutions.
    pair: None, or a unit such as `layers.ICBranch` around each depthwise-pointwise pair: it adds to the
      pointwise response what it computes from the pair's input.
    width: channels of the stem; stage i has width * 2^i.
    stem_stride: of the stem.
    act: 'relu' or 'relu6', min(relu(x), 6).
    batch_norm_groups: see `layers.BatchNorm`.
    remat: 'blocks' keeps only the inputs of the depthwise-separable blocks for the backward pass, see `common.rematerialised`.
    dtype: of the computation. Parameters, statistics and logits stay float32.

  Raises:
    ValueError: for a unit that does not fit its socket, or an unknown `act`.
  """

  stage_sizes: Sequence[int] = (1, 2, 2, 6, 2)
  num_classes: int | None = 10
  conv: Unit = plain_conv
  pointwise: Unit = plain_conv
  pair: Unit | None = None
  width: int = 32
  stem_stride: int = 1
  act: str = "relu"
  batch_norm_groups: int = 1
  remat: str = ""
  dtype: Any = None

  sockets = {"conv": "conv", "pointwise": "pointwise", "pair": "pair"}

  @nn.compact
  def __call__(
      self, images: jax.Array, train: bool = False, endpoints: bool | Collection[str] = False
  ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
    check_sockets(self)
    self.check()
    act = ACTS[self.act]
    norm = functools.partial(
        BatchNorm, use_running_average=not train, groups=self.batch_norm_groups, dtype=self.dtype)
    block = rematerialised(MobileNetBlock, self.remat)
    found = {}
    x = found["stem"] = conv_norm_act(
        images, plain_conv, self.width, (3, 3), strides=self.stem_stride, padding=1,
        kernel_init=torch_default, norm=norm, act=act, dtype=self.dtype, name="stem_conv")
    for i, blocks in enumerate(self.stage_sizes, start=1):
      for j in range(blocks):
        x = block(
            self.width * 2**i, stride=2 if i > 1 and j == 0 else 1, conv=self.conv,
            pointwise=self.pointwise, pair=self.pair, norm=norm, act=act, dtype=self.dtype,
            name=f"stage{i}_block{j}")(x)
      found[f"stage{i}"] = x
    x = found["pre_logits"] = mean_pool(x)
    if self.num_classes is not None:
      x = nn.Dense(self.num_classes, kernel_init=torch_default, bias_init=torch_bias(x.shape[-1]),
                   name="head")(x)
    return select_endpoints(x, found, endpoints)

  def check(self) -> None:
    """Raises ValueError for an unknown activation, or a stem without a stride."""
    if self.act not in ACTS:
      raise ValueError(f"act={self.act!r}: give one of {', '.join(map(repr, ACTS))}")
    if self.stem_stride < 1:
      raise ValueError(f"stem_stride={self.stem_stride}: give 1 or more")
