"""EfficientNet with sockets: EfficientNet-B0 to B7 and, by what stands in them, kEffNet and IC-EfficientNet.

Sources: Tan and Le 2019; the default is the Keras network that the kEffNet paper starts from. Other
libraries built slightly different networks under the same name, see `EfficientNet.flavour`.
"""

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from bionets_jax.layers import BatchNorm, SqueezeExcite
from bionets_jax.layers.socket import Unit, check_sockets, conv_norm_act, plain_conv
from bionets_jax.models.common import mean_pool, rematerialised, select_endpoints


class Stage(NamedTuple):
  """Blocks of one kind, before scaling. The first one has the stride and `in_features`."""

  kernel: int
  repeats: int
  in_features: int
  features: int
  expand: int
  stride: int


class Variant(NamedTuple):
  """The compound scaling of one size, the resolution it is meant for and its dropout."""

  width: float
  depth: float
  resolution: int
  dropout: float


STAGES = (
    Stage(3, 1, 32, 16, 1, 1), Stage(3, 2, 16, 24, 6, 2), Stage(5, 2, 24, 40, 6, 2),
    Stage(3, 3, 40, 80, 6, 2), Stage(5, 3, 80, 112, 6, 1), Stage(5, 4, 112, 192, 6, 2),
    Stage(3, 1, 192, 320, 6, 1))

VARIANTS = {
    "b0": Variant(1.0, 1.0, 224, 0.2), "b1": Variant(1.0, 1.1, 240, 0.2),
    "b2": Variant(1.1, 1.2, 260, 0.3), "b3": Variant(1.2, 1.4, 300, 0.3),
    "b4": Variant(1.4, 1.8, 380, 0.4), "b5": Variant(1.6, 2.2, 456, 0.4),
    "b6": Variant(1.8, 2.6, 528, 0.5), "b7": Variant(2.0, 3.1, 600, 0.5)}

FLAVOURS = ("keras", "torchvision", "tf")

# Keras' and TensorFlow's, which count a depthwise kernel (k, k, C, 1) as fan_out = k * k. In Flax's
# layout (k, k, 1, C) that number is the fan_in; 'fan_out' would shrink the deviation by sqrt(C).
keras_conv = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
keras_depthwise = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
keras_dense = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")  # U(+-1/sqrt(classes))


def round_features(features: int, width: float) -> int:
  """`width` times the channels, to a multiple of 8 that is not more than 10 % below."""
  scaled = features * width
  rounded = max(8, int(scaled + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * scaled else rounded


class MBConv(nn.Module):
  """Inverted residual block: expand 1x1, depthwise k x k, squeeze-and-excitation, project 1x1.

  (N, H, W, C) -> (N, H/s, W/s, features). No expansion if `expand` is 1; the input is added if the
  shape allows. Attributes as in `EfficientNet`; `padding` is the depthwise convolution's, `drop_rate` the
  probability that a sample loses the block in training.
  """

  features: int
  kernel: int
  expand: int
  stride: int
  conv: Unit
  pointwise: Unit
  pair: Unit | None
  norm: Unit
  padding: Any
  drop_rate: float
  train: bool
  pointwise_init: nn.initializers.Initializer
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    inputs, channels = x, x.shape[-1]
    middle = channels * self.expand
    window = (self.kernel, self.kernel)
    place = dict(strides=self.stride, padding=self.padding)
    options = dict(kernel_init=self.pointwise_init, dtype=self.dtype)
    if self.expand != 1:
      x = conv_norm_act(
          x, self.pointwise, middle, (1, 1), norm=self.norm, act=nn.swish, name="expand_conv", **options)
    expanded = x
    x = conv_norm_act(
        x, self.conv, middle, window, norm=self.norm, act=nn.swish, name="depthwise_conv",
        feature_group_count=middle, kernel_init=keras_depthwise, dtype=self.dtype, **place)
    x = SqueezeExcite(
        max(1, channels // 4), pointwise=self.pointwise, act=nn.swish, name="se", **options)(x)
    around, pair = None, self.pair
    if pair is not None:
      # The depthwise and the project convolution as one, whose window is the depthwise filter's.
      def around(response):
        return pair(self.features, window, name="pair", **place, **options)(expanded, response)
    x = conv_norm_act(x, self.pointwise, self.features, (1, 1), norm=self.norm, around=around,
                      name="project_conv", **options)
    if self.stride != 1 or channels != self.features:
      return x
    if self.drop_rate:
      x = nn.Dropout(self.drop_rate, broadcast_dims=(1, 2, 3), name="drop_connect")(
          x, deterministic=not self.train)
    return x + inputs


class EfficientNet(nn.Module):
  """EfficientNet for images of any size.

  Maps images (N, H, W, 3), float, to logits (N, num_classes), float32. Endpoints, by name: 'stem',
  'stage1'..'stage7', 'top' (what is pooled), 'pre_logits' (the pooled features, before the dropout).
  In training it needs the rng stream 'dropout'.

  Attributes:
    num_classes: None leaves the head away; the pooled features are returned in place of logits.
    width: scales the channels, see `round_features`.
    depth: scales the blocks of a stage, rounded up.
    dropout: rate before the head.
    drop_connect: in training block b, counted from 0, is left away with probability drop_connect * b /
      n where there is a way around it.
    flavour: whose network it is.
      'keras': the kEffNet paper's. Where there is a stride, padding k // 2 - 1 before and k // 2 after,
        whatever the size of the image (keras.applications, built for one odd size, pads as 'tf'); n is
        the number of blocks before scaling (16), so that the rates of B7 go up to 0.675; BatchNorm with epsilon 1e-3, momentum 0.99.
      'tf': the original one. As 'keras', but padding 'SAME', and n is the number of blocks.
      'torchvision': padding k // 2, n the number of blocks; BatchNorm with epsilon 1e-5, momentum 0.9,
        but from B5 on (width 1.6) as in 'keras'.
      The initialisers are Keras' in all.
    stages: a `Stage` or its numbers for each.
    pointwise: socket of every 1x1 convolution: expand, project, both of squeeze-and-excitation, top.
    conv: socket of the depthwise k x k convolutions, called with `feature_group_count`.
    pair: unit around the response of each block's project convolution, such as `layers.ICBranch`; it
      takes the depthwise convolution's input and window.
    top_act: swish behind the top convolution. kEffNet has none.
    pointwise_init: initialiser of the 1x1 kernels. kEffNet has glorot_uniform.
    norm_epsilon, norm_momentum: None for those of the flavour.
    batch_norm_groups: see `layers.BatchNorm`.
    remat: 'blocks' keeps only the inputs of the MBConv blocks for the backward pass, see `common.rematerialised`.
    dtype: of the computation. Parameters, statistics and logits stay float32.

  Raises:
    ValueError: on an unknown flavour, or a unit in a socket of another kind.
  """

  num_classes: int | None = 1000
  width: float = 1.0
  depth: float = 1.0
  dropout: float = 0.2
  drop_connect: float = 0.2
  flavour: str = "keras"
  stages: Sequence[Sequence[int]] = STAGES
  pointwise: Unit = plain_conv
  conv: Unit = plain_conv
  pair: Unit | None = None
  top_act: bool = True
  pointwise_init: nn.initializers.Initializer = keras_conv
  norm_epsilon: float | None = None
  norm_momentum: float | None = None
  batch_norm_groups: int = 1
  remat: str = ""
  dtype: Any = None

  sockets = {"pointwise": "pointwise", "conv": "conv", "pair": "pair"}

  @nn.compact
  def __call__(
      self, images: jax.Array, train: bool = False, endpoints: bool | Collection[str] = False
  ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
    if self.flavour not in FLAVOURS:
      raise ValueError(f"flavour={self.flavour!r}: give one of {', '.join(FLAVOURS)}")
    check_sockets(self)
    norm = self._norm(train)
    scaled = functools.partial(round_features, width=self.width)
    stages = [Stage(*stage) for stage in self.stages]
    rates = drop_connect_rates(stages, self.depth, self.drop_connect, self.flavour)

    block = rematerialised(MBConv, self.remat)
    found = {}
    x = conv_norm_act(
        images, plain_conv, scaled(stages[0].in_features), (3, 3), norm=norm, act=nn.swish, strides=2,
        padding=self._padding(3, 2), kernel_init=keras_conv, dtype=self.dtype, name="stem_conv")
    found["stem"] = x
    for i, stage in enumerate(stages, start=1):
      for j, rate in enumerate(rates[i - 1]):
        stride = stage.stride if j == 0 else 1
        x = block(
            scaled(stage.features), stage.kernel, stage.expand, stride, conv=self.conv,
            pointwise=self.pointwise, pair=self.pair, norm=norm,
            padding=self._padding(stage.kernel, stride), drop_rate=rate, train=train,
            pointwise_init=self.pointwise_init, dtype=self.dtype, name=f"stage{i}_block{j}")(x)
      found[f"stage{i}"] = x
    x = found["top"] = conv_norm_act(
        x, self.pointwise, scaled(1280), (1, 1), norm=norm, act=nn.swish if self.top_act else None,
        kernel_init=self.pointwise_init, dtype=self.dtype, name="top_conv")
    x = found["pre_logits"] = mean_pool(x)
    if self.num_classes is not None:
      x = nn.Dropout(self.dropout, name="head_dropout")(x, deterministic=not train)
      x = nn.Dense(self.num_classes, kernel_init=keras_dense, name="head")(x)
    return select_endpoints(x, found, endpoints)

  def norm_options(self) -> tuple[float, float]:
    """(epsilon, momentum) of the batch norms."""
    wide, momentum = 1e-3, 0.99
    if self.flavour == "torchvision" and self.width < VARIANTS["b5"].width:
      wide, momentum = 1e-5, 0.9
    return (wide if self.norm_epsilon is None else self.norm_epsilon,
            momentum if self.norm_momentum is None else self.norm_momentum)

  def _norm(self, train: bool) -> Callable[..., nn.Module]:
    epsilon, momentum = self.norm_options()
    return functools.partial(
        BatchNorm, use_running_average=not train, groups=self.batch_norm_groups, dtype=self.dtype,
        epsilon=epsilon, momentum=momentum)

  def _padding(self, kernel: int, stride: int) -> str | tuple[tuple[int, int], ...]:
    if self.flavour == "tf":
      return "SAME"
    before = kernel // 2 - (stride > 1 and self.flavour == "keras")
    return ((before, kernel // 2),) * 2


def drop_connect_rates(
    stages: Sequence[Stage], depth: float, rate: float, flavour: str
) -> list[list[float]]:
  """The drop-connect rate of every block, stage by stage; see `EfficientNet.drop_connect`."""
  repeats = [math.ceil(depth * stage.repeats) for stage in stages]
  total = sum(stage.repeats for stage in stages) if flavour == "keras" else sum(repeats)
  starts = [sum(repeats[:i]) for i in range(len(repeats))]
  return [[rate * (start + j) / total for j in range(n)]
          for start, n in zip(starts, repeats, strict=True)]
