"""Residual networks with sockets: torchvision's ImageNet ResNets and the CIFAR ResNets.

A socket is a field that holds a unit: a callable with the arguments of `flax.linen.Conv`. The plain
network has `layers.Conv` in each, an IC network `layers.ICConv` in some; everything else is shared.

Sources: He et al. 2016; the ImageNet layout is torchvision's "v1.5" (a bottleneck's stride sits in
its 3x3), the CIFAR layout pytorch_resnet_cifar10's with parameter-free shortcuts ("option A").
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bionets_jax.layers import BatchNorm, Conv

Unit = Callable[..., nn.Module]
plain_conv: Unit = functools.partial(Conv, use_bias=False)

# PyTorch's kaiming_normal_ in its two modes, and its default for linear layers, U(+-1/sqrt(n)).
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
he_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
torch_linear = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int) -> nn.initializers.Initializer:
  """PyTorch's default for the bias of a linear layer, U(+-1/sqrt(fan_in))."""
  bound = fan_in**-0.5
  return lambda rng, shape, dtype=jnp.float32: jax.random.uniform(rng, shape, dtype, -bound, bound)


def select_endpoints(
    logits: jax.Array, found: dict[str, jax.Array], wanted: bool | Collection[str]
) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
  """What a backbone returns: logits, or (logits, the endpoints asked for)."""
  if wanted is False:
    return logits
  if wanted is True:
    return logits, found
  wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
  if missing := [name for name in wanted if name not in found]:
    raise ValueError(f"no endpoint {missing[0]!r}; this network has {', '.join(found)}")
  return logits, {name: found[name] for name in wanted}


class BasicBlock(nn.Module):
  """conv3x3-BN-ReLU-conv3x3-BN, plus the shortcut, ReLU. (N, H, W, C) -> (N, H/s, W/s, features)."""

  features: int
  stride: int
  conv: Unit
  norm: Unit
  shortcut: Callable[..., jax.Array]
  reduce: Unit | None = None  # a basic block has no 1x1 convolutions
  expand: Unit | None = None
  zero_init: bool = False

  expansion = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    last = nn.initializers.zeros_init() if self.zero_init else nn.initializers.ones_init()
    y = self.conv(self.features, (3, 3), strides=self.stride, padding=1, name="conv1")(x)
    y = nn.relu(self.norm(name="bn1")(y))
    y = self.conv(self.features, (3, 3), padding=1, name="conv2")(y)
    y = self.norm(name="bn2", scale_init=last)(y)
    return nn.relu(y + self.shortcut(x, self.features, self.stride))


class Bottleneck(nn.Module):
  """conv1x1-conv3x3-conv1x1 with BN, plus the shortcut, ReLU. Output has 4 * features channels."""

  features: int
  stride: int
  conv: Unit
  norm: Unit
  shortcut: Callable[..., jax.Array]
  reduce: Unit
  expand: Unit
  zero_init: bool = False

  expansion = 4

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    last = nn.initializers.zeros_init() if self.zero_init else nn.initializers.ones_init()
    out = self.features * self.expansion
    y = self.reduce(self.features, (1, 1), name="conv1")(x)
    y = nn.relu(self.norm(name="bn1")(y))
    y = self.conv(self.features, (3, 3), strides=self.stride, padding=1, name="conv2")(y)
    y = nn.relu(self.norm(name="bn2")(y))
    y = self.expand(out, (1, 1), name="conv3")(y)
    y = self.norm(name="bn3", scale_init=last)(y)
    return nn.relu(y + self.shortcut(x, out, self.stride))


class ResNet(nn.Module):
  """torchvision's ResNet for ImageNet.

  Maps images (N, H, W, 3), float, to logits (N, num_classes), float32. Endpoints, by name: 'stem'
  (after the max-pool), 'stage1'..'stage4', 'pre_logits' (the pooled features).

  Attributes:
    stage_sizes: blocks per stage.
    block: BasicBlock or Bottleneck.
    num_classes: None leaves the head away; the pooled features are returned in place of logits.
    conv: socket of every 3x3 convolution inside the residual blocks.
    reduce: socket of a bottleneck's first 1x1 convolution (conv1).
    expand: socket of a bottleneck's last 1x1 convolution (conv3).
    width: channels of the stem; stage i has width * 2^i.
    batch_norm_groups: see `layers.BatchNorm`.
    zero_init_residual: the last BN of each block starts at scale 0.
    dtype: of the computation. Parameters, statistics and logits stay float32.
  """

  stage_sizes: Sequence[int]
  block: type[nn.Module]
  num_classes: int | None = 1000
  conv: Unit = plain_conv
  reduce: Unit = plain_conv
  expand: Unit = plain_conv
  width: int = 64
  batch_norm_groups: int = 1
  zero_init_residual: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(
      self, images: jax.Array, train: bool = False, endpoints: bool | Collection[str] = False
  ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
    options = dict(dtype=self.dtype, kernel_init=he_fan_out)
    plain = functools.partial(plain_conv, **options)
    norm = functools.partial(_norm, train, self.batch_norm_groups, self.dtype)

    found = {}
    x = plain(self.width, (7, 7), strides=2, padding=3, name="stem_conv")(images)
    x = nn.relu(norm(name="stem_bn")(x))
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    found["stem"] = x
    for i, blocks in enumerate(self.stage_sizes, start=1):
      for j in range(blocks):
        name = f"stage{i}_block{j}"
        x = self.block(
            features=self.width * 2 ** (i - 1), stride=2 if i > 1 and j == 0 else 1,
            conv=functools.partial(self.conv, **options),
            reduce=functools.partial(self.reduce, **options),
            expand=functools.partial(self.expand, **options), norm=norm,
            shortcut=functools.partial(_projection, plain, norm),
            zero_init=self.zero_init_residual, name=name)(x)
      found[f"stage{i}"] = x
    x = found["pre_logits"] = _pool(x)
    if self.num_classes is not None:
      x = nn.Dense(self.num_classes, kernel_init=torch_linear, bias_init=torch_bias(x.shape[-1]),
                   name="head")(x)
    return select_endpoints(x, found, endpoints)


class CifarResNet(nn.Module):
  """pytorch_resnet_cifar10's ResNet: 6n + 2 layers, widths 16/32/64, for 32x32 images.

  Maps images (N, H, W, C), float, to logits (N, num_classes), float32. Endpoints: 'stem',
  'stage1'..'stage3', 'pre_logits'. Attributes as in `ResNet`; there are no 1x1 convolutions.
  """

  stage_sizes: Sequence[int]
  num_classes: int | None = 10
  conv: Unit = plain_conv
  width: int = 16
  batch_norm_groups: int = 1
  dtype: Any = None

  @nn.compact
  def __call__(
      self, images: jax.Array, train: bool = False, endpoints: bool | Collection[str] = False
  ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
    options = dict(dtype=self.dtype, kernel_init=he_fan_in)
    norm = functools.partial(_norm, train, self.batch_norm_groups, self.dtype)
    found = {}
    x = plain_conv(self.width, (3, 3), padding=1, name="stem_conv", **options)(images)
    x = found["stem"] = nn.relu(norm(name="stem_bn")(x))
    for i, blocks in enumerate(self.stage_sizes, start=1):
      for j in range(blocks):
        x = BasicBlock(
            features=self.width * 2 ** (i - 1), stride=2 if i > 1 and j == 0 else 1,
            conv=functools.partial(self.conv, **options), norm=norm, shortcut=_subsample_and_pad,
            name=f"stage{i}_block{j}")(x)
      found[f"stage{i}"] = x
    x = found["pre_logits"] = _pool(x)
    if self.num_classes is not None:
      x = nn.Dense(self.num_classes, kernel_init=he_fan_in, bias_init=torch_bias(x.shape[-1]),
                   name="head")(x)
    return select_endpoints(x, found, endpoints)


def _norm(train: bool, groups: int, dtype: Any, *, name: str, **kwargs) -> Callable:
  module = BatchNorm(groups=groups, dtype=dtype, name=name, **kwargs)
  return functools.partial(module, use_running_average=not train)


def _pool(x: jax.Array) -> jax.Array:
  """Mean over height and width, in float32 at least."""
  return x.mean(axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


def _projection(conv: Unit, norm: Unit, x: jax.Array, features: int, stride: int) -> jax.Array:
  """The ImageNet shortcut: identity, or a plain 1x1 convolution and BN where the shape changes."""
  if x.shape[-1] == features and stride == 1:
    return x
  x = conv(features, (1, 1), strides=stride, padding="VALID", name="shortcut_conv")(x)
  return norm(name="shortcut_bn")(x)


def _subsample_and_pad(x: jax.Array, features: int, stride: int) -> jax.Array:
  """The CIFAR shortcut ("option A"): every stride-th pixel, zero channels on both sides."""
  extra = features - x.shape[-1]
  x = x[:, ::stride, ::stride]
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
