"""Residual networks with sockets: ResNet, SE-ResNet, ResNeXt and FP-ResNet, for ImageNet and CIFAR.

A socket is a field that holds a unit (see `layers.socket`). The plain network has `layers.Conv` in each,
an IC network `layers.ICConv` in some; an FP-ResNet has FP-blocks in place of whole stages.

Sources: He et al. 2016, in torchvision's "v1.5" (a bottleneck's stride sits in its 3x3) and, for CIFAR,
in pytorch_resnet_cifar10's layout with parameter-free shortcuts ("option A"); Xie et al. 2017 (ResNeXt);
Hu et al. 2018 (SE); Han et al. 2017 (pyramid blocks); "Feature Products Yield Efficient Networks".
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bionets_jax.layers import BatchNorm, FPBlock, SqueezeExcite
from bionets_jax.layers.conv import Initializer
from bionets_jax.layers.socket import Unit, check_sockets, conv_norm_act, plain_conv
from bionets_jax.models.common import (
    he_fan_out,
    mean_pool,
    rematerialised,
    select_endpoints,
    torch_bias,
    torch_default,
)

STEMS = {"imagenet": 7, "3x3": 3, "1x1": 1}  # name -> kernel; only ImageNet's has stride 2 and a max-pool
SHORTCUTS = ("projection", "pad")
PLACEMENTS = ("stage", "first")


class _Block(nn.Module):
  """What the residual blocks share. (N, H, W, C) -> (N, H/s, W/s, expansion * features).

  Attributes:
    features: the stage's width.
    stride: of the block.
    conv: socket of the 3x3 convolutions.
    norm: factory of norms.
    shortcut: (x, features, stride) -> the other branch.
    options: dtype and kernel_init of every convolution.
    reduce, expand: sockets of a bottleneck's 1x1 convolutions.
    groups, base_width: a bottleneck's 3x3 has `groups` groups of `base_width / 64 * features` channels.
    se_reduction: squeeze-and-excitation to 1 / se_reduction of the channels; 0 for none.
    zero_init: the last norm starts at scale 0.
  """

  features: int
  stride: int
  conv: Unit
  norm: Unit
  shortcut: Callable[..., jax.Array]
  options: dict[str, Any]
  reduce: Unit = plain_conv
  expand: Unit = plain_conv
  groups: int = 1
  base_width: int = 64
  se_reduction: int = 0
  zero_init: bool = False

  expansion = 1

  def last_norm(self) -> Unit:
    init = nn.initializers.zeros_init() if self.zero_init else nn.initializers.ones_init()
    return functools.partial(self.norm, scale_init=init)

  def layer(self, x, unit, features, kernel, name, **kwargs):
    """One convolution with its norm, padded as PyTorch does it."""
    norm = kwargs.pop("norm", self.norm)
    return conv_norm_act(
        x, unit, features, (kernel, kernel), padding=kernel // 2, norm=norm, name=name,
        **self.options, **kwargs)

  def squeeze(self, y: jax.Array) -> jax.Array:
    if not self.se_reduction:
      return y
    return SqueezeExcite(y.shape[-1] // self.se_reduction, name="se", **self.options)(y)


class BasicBlock(_Block):
  """conv3x3-BN-ReLU-conv3x3-BN(-SE), plus the shortcut, ReLU."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.layer(x, self.conv, self.features, 3, "conv1", strides=self.stride, act=nn.relu)
    y = self.layer(y, self.conv, self.features, 3, "conv2", norm=self.last_norm())
    return nn.relu(self.squeeze(y) + self.shortcut(x, self.features, self.stride))


class Bottleneck(_Block):
  """conv1x1-conv3x3-conv1x1 with BN(-SE), plus the shortcut, ReLU."""

  expansion = 4

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = self.features * self.base_width // 64 * self.groups
    out = self.features * self.expansion
    grouped = {"feature_group_count": self.groups} if self.groups > 1 else {}
    y = self.layer(x, self.reduce, width, 1, "conv1", act=nn.relu)
    y = self.layer(y, self.conv, width, 3, "conv2", strides=self.stride, act=nn.relu, **grouped)
    y = self.layer(y, self.expand, out, 1, "conv3", norm=self.last_norm())
    return nn.relu(self.squeeze(y) + self.shortcut(x, out, self.stride))


class PreActBlock(_Block):
  """BN-ReLU-conv3x3-BN-ReLU-conv3x3(-SE), plus the shortcut: pytorch-cifar's SENet18.

  A convolution is followed by the norm of the next one, so a unit with its own norm does not fit.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.relu(self.norm(name="bn1")(x))
    shortcut = x
    if x.shape[-1] != self.features or self.stride != 1:
      shortcut = plain_conv(self.features, (1, 1), strides=self.stride, padding="VALID", use_bias=False,
                            name="shortcut_conv", **self.options)(y)
    y = self.layer(y, self.conv, self.features, 3, "conv1", strides=self.stride, norm=None)
    y = nn.relu(self.norm(name="bn2")(y))
    y = self.layer(y, self.conv, self.features, 3, "conv2", norm=None)
    return self.squeeze(y) + shortcut


class PyramidBlock(_Block):
  """BN-conv3x3-BN-ReLU-conv3x3-BN(-SE), plus the shortcut: a PyramidNet's block."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.norm(name="bn0")(x)
    y = self.layer(y, self.conv, self.features, 3, "conv1", strides=self.stride, act=nn.relu)
    y = self.layer(y, self.conv, self.features, 3, "conv2", norm=self.last_norm())
    return self.squeeze(y) + self.shortcut(x, self.features, self.stride)


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck, "preact": PreActBlock, "pyramid": PyramidBlock}


class ResNet(nn.Module):
  """A residual network; the defaults are torchvision's for ImageNet.

  Maps images (N, H, W, C), float, to logits (N, num_classes), float32. Endpoints, by name: 'stem' (after
  the max-pool), 'stage1'.., 'pre_logits' (the pooled features).

  Attributes:
    stage_sizes: blocks per stage.
    block: a key of `BLOCKS`.
    num_classes: None leaves the head away; the pooled features are returned in place of logits.
    conv: socket of every 3x3 convolution inside the residual blocks.
    pointwise: socket of every 1x1 convolution of the bottlenecks. Shortcuts stay plain.
    reduce: socket of a bottleneck's first 1x1 convolution (conv1); None for `pointwise`.
    expand: socket of its last (conv3); None for `pointwise`.
    fp_layers: '1' for each stage that FP-blocks replace, '0' for the others: '0101'. '' for none.
    fp_block: socket of those stages: `layers.FPBlock` with its options.
    fp_blocks: their number in a stage; None for two fewer than the blocks that they replace.
    fp_placement: 'stage', they replace all blocks of the stage; 'first', one replaces the first block
      and the others stay (the journal version's networks).
    width: channels of the stem; stage i has width * 2^i.
    groups, base_width: of a bottleneck's 3x3 (ResNeXt): groups * base_width * 2^i / 64 * width channels.
    se_reduction: squeeze-and-excitation behind each block's last norm; 0 for none.
    stem: a key of `STEMS`. All but 'imagenet' keep the resolution.
    shortcut: where the shape changes, 'projection', a 1x1 convolution and BN; or 'pad', every second
      pixel and zero channels on both sides.
    kernel_init, head_init: of the convolutions and of the head.
    batch_norm_groups: see `layers.BatchNorm`.
    zero_init_residual: the last BN of each block starts at scale 0.
    remat: 'blocks' keeps only the inputs of residual and FP-blocks for the backward pass, see `common.rematerialised`.
    dtype: of the computation. Parameters, statistics and logits stay float32.

  Raises:
    ValueError: for an unknown word, a unit that does not fit its socket, or a socket that the blocks
      do not have.
  """

  stage_sizes: Sequence[int]
  block: str = "basic"
  num_classes: int | None = 1000
  conv: Unit = plain_conv
  pointwise: Unit = plain_conv
  reduce: Unit | None = None
  expand: Unit | None = None
  fp_layers: str = ""
  fp_block: Unit = FPBlock
  fp_blocks: int | None = None
  fp_placement: str = "stage"
  width: int = 64
  groups: int = 1
  base_width: int = 64
  se_reduction: int = 0
  stem: str = "imagenet"
  shortcut: str = "projection"
  kernel_init: Initializer = he_fan_out
  head_init: Initializer = torch_default
  batch_norm_groups: int = 1
  zero_init_residual: bool = False
  remat: str = ""
  dtype: Any = None

  sockets = {"conv": "conv", "pointwise": "pointwise", "reduce": "pointwise", "expand": "pointwise",
             "fp_block": "stage"}

  @nn.compact
  def __call__(
      self, images: jax.Array, train: bool = False, endpoints: bool | Collection[str] = False
  ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
    check_sockets(self)
    self.check()
    options = dict(dtype=self.dtype, kernel_init=self.kernel_init)
    norm = functools.partial(BatchNorm, use_running_average=not train, groups=self.batch_norm_groups,
                             dtype=self.dtype)
    if self.shortcut == "projection":
      shortcut: Callable[..., jax.Array] = functools.partial(_projection, norm, options)
    else:
      shortcut = _subsample_and_pad
    make_block = functools.partial(
        rematerialised(BLOCKS[self.block], self.remat), conv=self.conv, reduce=self.reduce or self.pointwise,
        expand=self.expand or self.pointwise, norm=norm, shortcut=shortcut, options=options,
        groups=self.groups, base_width=self.base_width, se_reduction=self.se_reduction,
        zero_init=self.zero_init_residual)

    fp_block = rematerialised(self.fp_block, self.remat)

    found = {}
    kernel, imagenet = STEMS[self.stem], self.stem == "imagenet"
    x = conv_norm_act(images, plain_conv, self.width, (kernel, kernel), strides=2 if imagenet else 1,
                      padding=kernel // 2, norm=norm, act=nn.relu, name="stem_conv", **options)
    if imagenet:
      x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    found["stem"] = x
    for i in range(1, len(self.stage_sizes) + 1):
      features, halve = self.width * 2 ** (i - 1), i > 1
      num_fp, num_plain = self.blocks_of_stage(i)
      for j in range(num_fp + num_plain):
        name, first = f"stage{i}_block{j}", halve and j == 0
        if j < num_fp:
          x = fp_block(features=features * BLOCKS[self.block].expansion, pool=first, norm=norm,
                       name=name, **options)(x)
        else:
          x = make_block(features=features, stride=2 if first else 1, name=name)(x)
      found[f"stage{i}"] = x
    x = found["pre_logits"] = mean_pool(x)
    if self.num_classes is not None:
      x = nn.Dense(self.num_classes, kernel_init=self.head_init, bias_init=torch_bias(x.shape[-1]),
                   name="head")(x)
    return select_endpoints(x, found, endpoints)

  def blocks_of_stage(self, i: int) -> tuple[int, int]:
    """(FP-blocks, residual blocks) of stage i, counted from 1."""
    blocks = self.stage_sizes[i - 1]
    if self.fp_layers[i - 1:i] != "1":
      return 0, blocks
    if self.fp_placement == "first":
      return 1, blocks - 1
    return (blocks - 2 if self.fp_blocks is None else self.fp_blocks), 0

  def check(self) -> None:
    """Raises ValueError for what the class says it raises."""
    for key, known in (("block", BLOCKS), ("stem", STEMS), ("shortcut", SHORTCUTS),
                       ("fp_placement", PLACEMENTS)):
      if getattr(self, key) not in known:
        raise ValueError(f"{key}={getattr(self, key)!r}: give one of {', '.join(map(repr, known))}")
    if self.block != "bottleneck":
      given = [key for key in ("pointwise", "reduce", "expand") if getattr(self, key) not in (None, plain_conv)]
      if given:
        raise ValueError(f"{given[0]}: blocks of kind {self.block!r} have no 1x1 convolution to put a unit "
                         "in; bottlenecks have (ResNet-50 and deeper)")
      if self.groups > 1 or self.base_width != 64:
        raise ValueError(f"groups and base_width are for bottlenecks; the block is {self.block!r}")
    stages = len(self.stage_sizes)
    if not isinstance(self.fp_layers, str):
      raise ValueError(f"fp_layers={self.fp_layers!r}: give text, such as {'0' * (stages - 1) + '1'!r}")
    if self.fp_layers and (len(self.fp_layers) != stages or set(self.fp_layers) - {"0", "1"}):
      raise ValueError(f"fp_layers={self.fp_layers!r}: give one 0 or 1 for each of the {stages} stages")
    unread = [key for key, default in (("fp_blocks", None), ("fp_placement", "stage"), ("fp_block", FPBlock))
              if getattr(self, key) != default]
    if unread and "1" not in self.fp_layers:
      raise ValueError(f"{unread[0]}: no stage has FP-blocks; say which with fp_layers=")
    if self.fp_placement == "first" and self.fp_blocks is not None:
      raise ValueError("fp_blocks: with fp_placement='first' there is one in a stage")
    for i in range(1, stages + 1):
      if self.fp_layers[i - 1:i] == "1" and self.blocks_of_stage(i)[0] < 1:
        raise ValueError(
            f"stage {i} has {self.stage_sizes[i - 1]} blocks, and two FP-blocks fewer are none; say how many "
            "with fp_blocks=")


def _projection(
    norm: Unit, options: dict[str, Any], x: jax.Array, features: int, stride: int
) -> jax.Array:
  """Identity, or a plain 1x1 convolution and BN where the shape changes."""
  if x.shape[-1] == features and stride == 1:
    return x
  return conv_norm_act(x, plain_conv, features, (1, 1), strides=stride, padding="VALID", norm=norm,
                       name="shortcut_conv", **options)


def _subsample_and_pad(x: jax.Array, features: int, stride: int) -> jax.Array:
  """Option A: every stride-th pixel, zero channels on both sides."""
  extra = features - x.shape[-1]
  x = x[:, ::stride, ::stride]
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
