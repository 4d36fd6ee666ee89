"""Networks as PyTorch modules: the layers of each backbone, and what decides how its parts are written."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn

from bionets_jax.layers import Conv, GroupedPointwise, ICBranch, ICConv
from bionets_jax.layers.socket import unit_class
from bionets_jax.models.efficientnet import FLAVOURS, Stage, drop_connect_rates, round_features
from bionets_jax.models.resnet import BLOCKS, STEMS

# name -> what it is where nothing else is decided, and what it means
FLAGS: dict[str, tuple[Any, str]] = {
    "NORM_EPSILON": (1e-5, "added to the variance"),
    "NORM_MOMENTUM": (0.1, "weight of a new batch in the running statistics"),
    "NORM_GROUPS": (1, "parts of the batch with statistics of their own"),
    "IC_CONV": (False, "IC in place of the k x k convolutions"),
    "IC_REDUCE": (False, "and of a bottleneck's first 1x1"),
    "IC_EXPAND": (False, "and of its last"),
    "IC_PAIR": (False, "IC around pairs of a depthwise and a 1x1 convolution"),
    "ALPHA": (1.0, "weight of the hinge: a number, or which kind of tensor it is"),
    "INNER_BIAS": (True, "b1"),
    "OUTER_BIAS": (True, "b2"),
    "ADJUST_GROUPS": (None, "channel groups of W'; None for those of W"),
    "SE_REDUCTION": (0, "squeeze-and-excitation in residual blocks; 0 for none"),
    "PAD_SHORTCUT": (False, "shortcuts without parameters"),
    "FP_JOURNAL": (False, "the FP-block of the journal version"),
    "FP_SINGLE": (False, "one filter in place of two"),
    "FP_COMBINE": ("product", "of the two responses"),
    "KCONV": (False, "kConv in place of 1x1 convolutions"),
    "MIN_GROUP_CHANNELS": (16, "inputs of a group at least"),
    "K_TYPE": (2, "of kConv"),
    "RELU6": (False, "in place of ReLU"),
    "SWISH": (False, "between the convolutions of squeeze-and-excitation"),
    "FLAVOUR": ("keras", "whose EfficientNet"),
    "DROP_CONNECT": (False, "whether blocks are left away in training"),
}


class Code(str):
  """Text that is an expression and not data."""


@dataclasses.dataclass(frozen=True)
class Network:
  """A network as a sequence.

  Attributes:
    flags: values of `FLAGS` that are not the defaults.
    layers: name -> expression.
  """

  flags: Mapping[str, Any]
  layers: Mapping[str, Code]


def call(function: str, *args: Any, **kwargs: Any) -> Code:
  """The text of a call.

  Raises:
    ValueError: for an argument that is neither a number nor `Code`: text from a file's description must
      not become code.
  """
  def show(value):
    if isinstance(value, Code):
      return value
    if value is None or isinstance(value, bool | int | float):
      return repr(round(value, 12) if isinstance(value, float) else value)
    if isinstance(value, tuple | list):
      return f"({', '.join(map(show, value))}{',' * (len(value) == 1)})"
    raise ValueError(f"{value!r}: an option of the network should be a number here")

  shown = [*map(show, args), *(f"{key}={show(value)}" for key, value in kwargs.items())]
  return Code(f"{function}({', '.join(shown)})")


def describe(model: nn.Module, channels: int) -> Network:
  """A network of `create_model` as PyTorch's layers.

  Args:
    model: the module.
    channels: of the images.

  Raises:
    ValueError: where it cannot be expressed, naming what is in the way.
  """
  writer = _WRITERS.get(type(model).__name__)
  if writer is None:
    raise ValueError(f"{type(model).__name__}: no PyTorch source is known for this backbone")
  layers = dict(writer(model, channels))
  flags = _unit_flags(model) | _norm_flags(model) | _own_flags(model)
  return Network({k: v for k, v in flags.items() if v != FLAGS[k][0]}, layers)


# What decides -----------------------------------------------------------------------------------


def _option(unit: Callable, key: str) -> Any:
  return getattr(unit, "keywords", {}).get(key, getattr(unit_class(unit), key))


def _unit_flags(model: nn.Module) -> dict[str, Any]:
  flags: dict[str, Any] = {}
  places = {("conv", ICConv): "IC_CONV", ("reduce", ICConv): "IC_REDUCE", ("expand", ICConv): "IC_EXPAND",
            ("pair", ICBranch): "IC_PAIR", ("pointwise", GroupedPointwise): "KCONV"}
  for socket in model.sockets:
    unit = getattr(model, socket)
    if unit is None or unit_class(unit) is Conv or socket == "fp_block":
      continue
    flag = places.get((socket, unit_class(unit)))
    if flag is None:
      raise ValueError(f"{socket}: no PyTorch source is known for {unit_class(unit).__name__} in this socket")
    flags[flag] = True
    if flag == "KCONV":
      flags |= {"MIN_GROUP_CHANNELS": _option(unit, "min_group_channels"), "K_TYPE": _option(unit, "k_type")}
      continue
    alpha = _option(unit, "alpha")
    flags |= {"ALPHA": alpha if isinstance(alpha, str) else float(alpha),
              "INNER_BIAS": _option(unit, "use_inner_bias"), "OUTER_BIAS": _option(unit, "use_bias")}
    if unit_class(unit) is ICConv:
      flags["ADJUST_GROUPS"] = _option(unit, "adjust_groups")
  return flags


def _norm_flags(model: nn.Module) -> dict[str, Any]:
  flags = {"NORM_GROUPS": model.batch_norm_groups}
  if hasattr(model, "norm_options"):
    epsilon, momentum = model.norm_options()
    flags |= {"NORM_EPSILON": epsilon, "NORM_MOMENTUM": round(1 - momentum, 12)}
  return flags


def _own_flags(model: nn.Module) -> dict[str, Any]:
  kind = type(model).__name__
  if kind == "EfficientNet":
    return {"SWISH": True, "FLAVOUR": model.flavour, "DROP_CONNECT": model.drop_connect > 0}
  if kind == "MobileNet":
    return {"RELU6": model.act == "relu6"}
  if kind != "ResNet":
    return {}
  flags = {"SE_REDUCTION": model.se_reduction, "PAD_SHORTCUT": model.shortcut == "pad"}
  if "1" in model.fp_layers:
    flags |= {"FP_JOURNAL": _option(model.fp_block, "variant") == "journal",
              "FP_SINGLE": _option(model.fp_block, "single_filter"),
              "FP_COMBINE": _option(model.fp_block, "combine")}
  return flags


# The backbones ----------------------------------------------------------------------------------

Layers = Iterable[tuple[str, Code]]
_POOL = (("pool", call("nn.AdaptiveAvgPool2d", 1)), ("flatten", call("nn.Flatten")))


def _resnet(model: nn.Module, channels: int) -> Layers:
  kernel, imagenet = STEMS[model.stem], model.stem == "imagenet"
  yield from _stem(channels, model.width, kernel, 2 if imagenet else 1, "nn.ReLU")
  if imagenet:
    yield "stem_pool", call("nn.MaxPool2d", 3, stride=2, padding=1)
  inputs, block = model.width, BLOCKS[model.block]
  for i in range(1, len(model.stage_sizes) + 1):
    width = model.width * 2 ** (i - 1)
    features = width * block.expansion
    num_fp, num_plain = model.blocks_of_stage(i)
    for j in range(num_fp + num_plain):
      halve = i > 1 and j == 0
      stride = 2 if halve else 1
      if j < num_fp:
        middle = max(1, int(_option(model.fp_block, "expansion") * features))
        made = call("FPBlock", inputs, middle, features, **_changed(pool=(halve, False)))
      elif model.block == "bottleneck":
        middle = width * model.base_width // 64 * model.groups
        made = call("Bottleneck", inputs, middle, features,
                    **_changed(stride=(stride, 1), groups=(model.groups, 1)))
      else:
        made = call(block.__name__, inputs, features, **_changed(stride=(stride, 1)))
      yield f"stage{i}_block{j}", made
      inputs = features
  yield from _POOL
  yield from _head(inputs, model.num_classes)


def _vgg(model: nn.Module, channels: int) -> Layers:
  yield from _stem(channels, model.width, 3, 1, "nn.ReLU", bias=True)
  inputs = model.width
  for i, blocks in enumerate(model.stage_sizes, start=1):
    features = model.width * min(2 ** (i - 1), 8)
    for j in range(1 if i == 1 else 0, blocks):
      yield f"stage{i}_block{j}", call("VGGBlock", inputs, features)
      inputs = features
    yield f"stage{i}_pool", call("nn.MaxPool2d", 2)
  if model.pool == 1:
    yield from _POOL
  else:
    yield "pool", call("nn.AdaptiveAvgPool2d", model.pool)
    yield "flatten", call("FlattenPixels")
  inputs *= model.pool**2
  for i, features in enumerate(model.hidden, start=1):
    if i > 1:
      yield f"hidden{i - 1}_dropout", call("nn.Dropout", model.dropout)
    yield f"hidden{i}", call("nn.Linear", inputs, features)
    yield f"hidden{i}_act", call("nn.ReLU")
    inputs = features
  yield from _head(inputs, model.num_classes, model.dropout if model.hidden else 0.0)


def _mobilenet(model: nn.Module, channels: int) -> Layers:
  act = {"relu": "nn.ReLU", "relu6": "nn.ReLU6"}[model.act]
  yield from _stem(channels, model.width, 3, model.stem_stride, act)
  inputs = model.width
  for i, blocks in enumerate(model.stage_sizes, start=1):
    for j in range(blocks):
      features, stride = model.width * 2**i, 2 if i > 1 and j == 0 else 1
      yield f"stage{i}_block{j}", call("MobileNetBlock", inputs, features, **_changed(stride=(stride, 1)))
      inputs = features
  yield from _POOL
  yield from _head(inputs, model.num_classes)


def _efficientnet(model: nn.Module, channels: int) -> Layers:
  if model.flavour not in FLAVOURS:
    raise ValueError(f"flavour={model.flavour!r}: give one of {', '.join(FLAVOURS)}")
  stages = [Stage(*stage) for stage in model.stages]
  rates = drop_connect_rates(stages, model.depth, model.drop_connect, model.flavour)
  inputs = round_features(stages[0].in_features, model.width)
  pads = {"keras": call("nn.ZeroPad2d", (0, 1, 0, 1)), "tf": call("SamePad", 3, 2)}
  if model.flavour in pads:
    yield "stem_pad", pads[model.flavour]
  yield from _stem(channels, inputs, 3, 2, "nn.SiLU", padding=0 if model.flavour in pads else 1)
  for i, stage in enumerate(stages, start=1):
    features = round_features(stage.features, model.width)
    for j, rate in enumerate(rates[i - 1]):
      stride = stage.stride if j == 0 else 1
      adds = stride == 1 and inputs == features
      yield f"stage{i}_block{j}", call(
          "MBConv", inputs, features, kernel=stage.kernel,
          **_changed(stride=(stride, 1), expand=(stage.expand, 1), drop_rate=(rate if adds else 0.0, 0.0)))
      inputs = features
  top = round_features(1280, model.width)
  if unit_class(model.pointwise) is GroupedPointwise:
    yield "top_conv", call("KConv", inputs, top, *([call("nn.SiLU")] if model.top_act else []))
  else:
    yield "top_conv", call("nn.Conv2d", inputs, top, 1, bias=False)
    yield "top_bn", call("norm", top)
    if model.top_act:
      yield "top_act", call("nn.SiLU")
  yield from _POOL
  yield from _head(top, model.num_classes, model.dropout)


def _stem(
    channels: int, features: int, kernel: int, stride: int, act: str, padding: int | None = None,
    bias: bool = False,
) -> Layers:
  padding = kernel // 2 if padding is None else padding
  yield "stem_conv", call(
      "nn.Conv2d", channels, features, kernel,
      **_changed(stride=(stride, 1), padding=(padding, 0), bias=(bias, True)))
  yield "stem_bn", call("norm", features)
  yield "stem_act", call(act)


def _head(inputs: int, num_classes: int | None, dropout: float = 0.0) -> Layers:
  if num_classes is not None:
    if dropout:
      yield "head_dropout", call("nn.Dropout", dropout)
    yield "head", call("nn.Linear", inputs, num_classes)


def _changed(**arguments: tuple[Any, Any]) -> dict[str, Any]:
  """Of arguments with their defaults those that are something else."""
  return {name: value for name, (value, default) in arguments.items() if value != default}


_WRITERS = {"ResNet": _resnet, "VGG": _vgg, "MobileNet": _mobilenet, "EfficientNet": _efficientnet}
