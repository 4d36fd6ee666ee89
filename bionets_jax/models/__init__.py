"""The backbones, and `create_model` with its table of names. Needs only jax and flax."""

import dataclasses
import difflib
import functools
from typing import Any

import flax.linen as nn

from bionets_jax.layers import ICConv
from bionets_jax.layers.ic import check_options
from bionets_jax.models.resnet import BasicBlock, Bottleneck, CifarResNet, ResNet

# Options that belong to the IC units of a network and not to its backbone. `use_bias` is b2.
IC_OPTIONS = ("alpha", "use_inner_bias", "use_bias", "adjust_init", "adjust_groups")


@dataclasses.dataclass(frozen=True)
class _Entry:
  """A row of the table: a backbone, its fields, and the sockets that hold IC units."""

  backbone: type[nn.Module]
  fields: dict[str, Any]
  ic_sockets: tuple[str, ...] = ()


def _table() -> dict[str, _Entry]:
  table = {}
  imagenet = {
      "resnet18": ((2, 2, 2, 2), BasicBlock), "resnet34": ((3, 4, 6, 3), BasicBlock),
      "resnet50": ((3, 4, 6, 3), Bottleneck), "resnet101": ((3, 4, 23, 3), Bottleneck)}
  for name, (sizes, block) in imagenet.items():
    fields = dict(stage_sizes=sizes, block=block)
    table[name] = _Entry(ResNet, fields)
    table[f"ic_{name}"] = _Entry(ResNet, fields, ("conv",))
  # IC networks, Table 3: B has IC also in conv1 of each bottleneck, C in conv1 and conv3.
  fields = table["resnet50"].fields
  table["ic_resnet50_b"] = _Entry(ResNet, fields, ("conv", "reduce"))
  table["ic_resnet50_c"] = _Entry(ResNet, fields, ("conv", "reduce", "expand"))
  for depth in (20, 32, 44, 56):
    fields = dict(stage_sizes=((depth - 2) // 6,) * 3)
    table[f"resnet{depth}_cifar"] = _Entry(CifarResNet, fields)
    table[f"ic_resnet{depth}_cifar"] = _Entry(CifarResNet, fields, ("conv",))
  return table


_TABLE = _table()


def list_models() -> tuple[str, ...]:
  """The names that `create_model` knows."""
  return tuple(_TABLE)


def base_name(name: str) -> str:
  """The plain network under a model: 'resnet50' for 'ic_resnet50_b'. Itself if it is plain."""
  entry = _lookup(name)
  for other, candidate in _TABLE.items():
    plain = not candidate.ic_sockets
    if plain and candidate.backbone is entry.backbone and candidate.fields == entry.fields:
      return other
  raise AssertionError(f"{name} has no plain network in the table")


def create_model(name: str, num_classes: int | None = None, **overrides: Any) -> nn.Module:
  """Builds a network by name.

  Args:
    name: one of `list_models()`.
    num_classes: size of the logits; None keeps the backbone's own (1000 for ImageNet's, 10 for
      CIFAR's). To leave the head away pass `num_classes=0`.
    **overrides: fields of the backbone, e.g. `dtype=jnp.bfloat16`, `batch_norm_groups=8`, a unit
      for a socket (`conv=bn.layers.ICConv`); and for an `ic_` network the options of its units:
      `alpha`, `use_inner_bias`, `use_bias`, `adjust_init`, `adjust_groups` (see `layers.ICConv`).

  Returns:
    A `flax.linen.Module` that maps (N, H, W, C) float images to (N, num_classes) float32 logits.

  Raises:
    ValueError: for an unknown name or override, with those that come near.
  """
  entry = _lookup(name)
  fields = dict(entry.fields)
  if num_classes is not None:
    fields["num_classes"] = num_classes or None
  ic_options = {k: overrides.pop(k) for k in IC_OPTIONS if k in overrides}
  if ic_options and not entry.ic_sockets:
    raise ValueError(
        f"{', '.join(ic_options)}: an option of IC units, but {name!r} has none; "
        f"did you mean 'ic_{name}'?" if f"ic_{name}" in _TABLE else
        f"{', '.join(ic_options)}: an option of IC units, but {name!r} has none")
  if ic_options and all(socket in overrides for socket in entry.ic_sockets):
    raise ValueError(f"{', '.join(ic_options)}: an option of IC units, but {name!r} keeps none: "
                     f"{', '.join(entry.ic_sockets)} was given a unit of its own")
  check_options(**ic_options)
  unit = functools.partial(ICConv, **ic_options)
  fields.update(dict.fromkeys(entry.ic_sockets, unit))

  known = [f.name for f in dataclasses.fields(entry.backbone) if f.name not in ("parent", "name")]
  for key in overrides:
    if key not in known:
      options = known + list(IC_OPTIONS if entry.ic_sockets else ())
      raise ValueError(f"{name!r} has no option {key!r}{_nearest(key, options)}; "
                       f"it has {', '.join(options)}")
  return entry.backbone(**(fields | overrides))


def _lookup(name: str) -> _Entry:
  if name not in _TABLE:
    raise ValueError(f"unknown model {name!r}{_nearest(name, _TABLE)}; "
                     f"known: {', '.join(_TABLE)}")
  return _TABLE[name]


def _nearest(word: str, known) -> str:
  near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
  return f" (did you mean {', '.join(map(repr, near))}?)" if near else ""
