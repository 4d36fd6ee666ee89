"""The backbones, and `create_model` with its table of names. Needs only jax and flax."""

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn

from bionets_jax.layers import FPBlock, GroupedPointwise, ICBranch, ICConv
from bionets_jax.layers.fp import check_fp_options
from bionets_jax.layers.grouped_pointwise import check_kconv_options
from bionets_jax.layers.ic import check_options
from bionets_jax.layers.socket import Unit, check_sockets, unit_class
from bionets_jax.models.common import he_fan_in
from bionets_jax.models.efficientnet import VARIANTS, EfficientNet
from bionets_jax.models.fields import check_fields
from bionets_jax.models.mobilenet import MobileNet
from bionets_jax.models.resnet import ResNet
from bionets_jax.models.vgg import VGG

_glorot = nn.initializers.glorot_uniform()  # as Keras has it


@dataclasses.dataclass(frozen=True)
class _Family:
  """Networks of one unit: what it is called, its options beside the backbone's fields, their check."""

  name: str
  options: tuple[str, ...]
  check: Any


_FAMILIES = {
    # `use_bias` is b2; `ic_placement` chooses where there is a choice.
    "ic": _Family("IC", ("alpha", "use_inner_bias", "use_bias", "adjust_init", "adjust_groups",
                         "ic_placement"), check_options),
    "fp": _Family("FP", ("expansion", "single_filter", "combine", "variant"), check_fp_options),
    "k": _Family("kConv", ("min_group_channels", "k_type"), check_kconv_options)}


@dataclasses.dataclass(frozen=True)
class _Entry:
  """A row of the table.

  Attributes:
    backbone: the module.
    fields: its fields where they are not the defaults.
    base: name of the plain network under one with units; '' for a plain one.
    family: a key of `_FAMILIES`, '' for a plain network.
    placements: name -> {socket: unit}; the first is the default.
  """

  backbone: type[Any]
  fields: Mapping[str, Any]
  base: str = ""
  family: str = ""
  placements: Mapping[str, Mapping[str, Unit]] = dataclasses.field(default_factory=dict)


def _table() -> dict[str, _Entry]:
  plain: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {}
  for name, sizes, block in (
      ("resnet18", (2, 2, 2, 2), "basic"), ("resnet34", (3, 4, 6, 3), "basic"),
      ("resnet50", (3, 4, 6, 3), "bottleneck"), ("resnet101", (3, 4, 23, 3), "bottleneck")):
    plain[name] = ResNet, dict(stage_sizes=sizes, block=block)
  for depth in (20, 32, 44, 56):
    plain[f"resnet{depth}_cifar"] = ResNet, dict(
        stage_sizes=((depth - 2) // 6,) * 3, num_classes=10, width=16, stem="3x3", shortcut="pad",
        kernel_init=he_fan_in, head_init=he_fan_in)
  # The CIFAR networks of the IC paper's Table 4, in pytorch-cifar's layouts.
  small = dict(num_classes=10, stem="3x3")
  plain["se_resnet18"] = ResNet, dict(stage_sizes=(2, 2, 2, 2), se_reduction=16, **small)
  plain["se_resnet50"] = ResNet, dict(
      stage_sizes=(3, 4, 6, 3), block="bottleneck", se_reduction=16, **small)
  plain["resnext29_2x64d"] = ResNet, dict(
      stage_sizes=(3, 3, 3), block="bottleneck", groups=2, **(small | {"stem": "1x1"}))
  plain["vgg16"] = VGG, dict(stage_sizes=(2, 2, 3, 3, 3))
  plain["vgg19"] = VGG, dict(stage_sizes=(2, 2, 4, 4, 4))
  plain["mobilenet"] = MobileNet, {}
  for size, variant in VARIANTS.items():
    plain[f"efficientnet_{size}"] = EfficientNet, dict(
        width=variant.width, depth=variant.depth, dropout=variant.dropout)
  table = {name: _Entry(backbone, fields) for name, (backbone, fields) in plain.items()}

  def add(name, base, family, placements, **fields):
    backbone, its_fields = plain[base]
    table[name] = _Entry(backbone, its_fields | fields, base, family, placements)

  in_pairs = {"pair": {"pair": ICBranch}, "depthwise": {"conv": ICConv}}
  for name, (backbone, _) in plain.items():
    if backbone in (ResNet, VGG):
      add(f"ic_{name}", name, "ic", {"conv": {"conv": ICConv}})
    elif name in ("mobilenet", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2"):
      add(f"ic_{name}", name, "ic", in_pairs)
  # IC networks, Table 3: B has IC also in conv1 of each bottleneck, C in conv1 and conv3.
  add("ic_resnet50_b", "resnet50", "ic", {"": {"conv": ICConv, "reduce": ICConv}})
  add("ic_resnet50_c", "resnet50", "ic", {"": {"conv": ICConv, "reduce": ICConv, "expand": ICConv}})
  for depth in (20, 32, 44):
    add(f"fp_resnet{depth}_cifar", f"resnet{depth}_cifar", "fp",
        {"": {"fp_block": functools.partial(FPBlock, expansion=2)}}, fp_layers="001")
  add("fp_resnet50", "resnet50", "fp", {"": {"fp_block": functools.partial(FPBlock, expansion=1)}},
      fp_layers="0101", fp_blocks=1)
  for size in VARIANTS:
    # Beside the units two things that the paper does not mention: no activation behind the top
    # convolution, and another initialiser.
    add(f"keffnet_{size}", f"efficientnet_{size}", "k", {"": {"pointwise": GroupedPointwise}},
        top_act=False, pointwise_init=_glorot)
  return table


_TABLE = _table()


def list_models() -> tuple[str, ...]:
  """The names that `create_model` knows."""
  return tuple(_TABLE)


def base_name(name: str) -> str:
  """The plain network under a model: 'resnet50' for 'ic_resnet50_b'. Itself if it is plain."""
  return _lookup(name).base or name


def base_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """The options of the plain network under a model: the backbone's without units and their options.

  `create_model(base_name(name), **base_options(name, options))` has the layers of `create_model(name,
  **options)` but for what the units add.
  """
  entry = _lookup(name)
  of_units = {*entry.backbone.sockets, *(_FAMILIES[entry.family].options if entry.family else ())}
  return {key: value for key, value in options.items() if key not in of_units}


def create_model(name: str, num_classes: int | None = None, **overrides: Any) -> nn.Module:
  """Builds a network by name.

  Args:
    name: one of `list_models()`.
    num_classes: size of the logits; None keeps the backbone's own (1000 for ImageNet's and the
      EfficientNets, 10 for CIFAR's). To leave the head away pass `num_classes=0`.
    **overrides: fields of the backbone, e.g. `dtype=jnp.bfloat16`, `batch_norm_groups=8`, a unit
      for a socket (`conv=bn.layers.ICConv, pointwise=bn.layers.GroupedPointwise`); and the options of the
      units that a network is named after:
      `ic_`: `alpha`, `use_inner_bias`, `use_bias`, `adjust_init`, `adjust_groups` (see `layers.ICConv`),
        and for MobileNet and EfficientNet `ic_placement`, 'pair' or 'depthwise';
      `fp_`: `expansion`, `single_filter`, `combine`, `variant` (see `layers.FPBlock`);
      `keffnet_`: `min_group_channels`, `k_type` (see `layers.GroupedPointwise`).

  Returns:
    A `flax.linen.Module` that maps (N, H, W, C) float images to (N, num_classes) float32 logits.

  Raises:
    ValueError: for an unknown name or override, with those that come near; for a value of the wrong type,
      or no size of a network; for a unit that a socket cannot hold.
  """
  entry = _lookup(name)
  fields = dict(entry.fields)
  if num_classes is not None:
    if num_classes < 0:
      raise ValueError(f"num_classes={num_classes}: give 0 or more")
    fields["num_classes"] = num_classes or None
  known = [f.name for f in dataclasses.fields(entry.backbone) if f.name not in ("parent", "name")]
  family = _FAMILIES.get(entry.family)
  if family:
    options = {k: overrides.pop(k) for k in family.options if k in overrides and k not in known}
    fields |= _units(name, entry, family, options, overrides)
  for key in overrides:
    if key not in known:
      raise ValueError(_unknown(name, key, known, family))
  model = entry.backbone(**(fields | overrides))
  check_fields(model, overrides)
  check_sockets(model)
  check = getattr(model, "check", None)
  if check is not None:
    check()
  return model


def _units(
    name: str, entry: _Entry, family: _Family, options: dict[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Unit]:
  """The units of the network's family by socket, with their options."""
  placement = options.pop("ic_placement", next(iter(entry.placements)))
  if placement not in entry.placements:
    raise ValueError(f"{name!r}: ic_placement={placement!r}: give one of "
                     f"{', '.join(map(repr, entry.placements))}")
  units = entry.placements[placement]
  if options and all(socket in overrides for socket in units):
    raise ValueError(f"{', '.join(options)}: an option of {family.name} units, but {name!r} keeps none: "
                     f"{', '.join(units)} was given a unit of its own")
  for unit in units.values():
    takes = [f.name for f in dataclasses.fields(unit_class(unit))]
    for key in options:
      if key not in takes:
        raise ValueError(f"{name!r}: its units, {unit_class(unit).__name__}, have no {key}")
  family.check(**options)
  return {socket: functools.partial(unit, **options) for socket, unit in units.items()}


def _unknown(name: str, key: str, known: list[str], family: _Family | None) -> str:
  for prefix, other in _FAMILIES.items():
    if key in other.options and other is not family:
      near = [n for n, entry in _TABLE.items()
              if entry.family == prefix and entry.base == (_lookup(name).base or name)]
      text = f"{key}: an option of {other.name} units, but {name!r} has none"
      return f"{text}; did you mean {near[0]!r}?" if near else text
  known = known + list(family.options if family else ())
  return f"{name!r} has no option {key!r}{nearest(key, known)}; it has {', '.join(known)}"


def _lookup(name: str) -> _Entry:
  if name not in _TABLE:
    raise ValueError(f"unknown model {name!r}{nearest(name, _TABLE)}; "
                     f"known: {', '.join(_TABLE)}")
  return _TABLE[name]


def nearest(word: str, known: Iterable[str]) -> str:
  """' (did you mean ...?)' with the known words that come near; '' for none."""
  near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
  return f" (did you mean {', '.join(map(repr, near))}?)" if near else ""
