"""Sockets: how a backbone asks a unit for one of its layers.

A backbone has a field for each kind of layer that can be something else. The field holds a unit: a
module class, or a `functools.partial` of one. What a unit stands for is its class's `replaces`:

  'conv'       a convolution of any size, 1x1 included (the default; `flax.linen.Conv` fits). Called
               with the arguments of `flax.linen.Conv`.
  'pointwise'  a 1x1 convolution (`GroupedPointwise`). Called in the same way.
  'pair'       what is added around the linear response of a depthwise-pointwise pair (`ICBranch`).
  'stage'      the blocks of a whole stage (`FPBlock`).

A unit is told by `use_bias` whether the layer has a bias, unless its partial says so already. Biases that
are part of the unit itself (`own_bias = True`: those of IC) stay where the layer has none.

A unit with `whole_layer = True` takes norm and activation of the layer too, as arguments `norm` and
`act`; around any other the backbone puts them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from bionets_jax.layers.conv import Conv

Unit = Callable[..., nn.Module]
plain_conv: Unit = Conv

PLACES = {
    "conv": "a convolution of any size",
    "pointwise": "a 1x1 convolution",
    "pair": "the second branch around a depthwise-pointwise pair",
    "stage": "the blocks of a whole stage",
    "dense": "a dense layer"}
_ACCEPTED = {"conv": ("conv",), "pointwise": ("conv", "pointwise"), "pair": ("pair",), "stage": ("stage",)}


def unit_class(unit: Unit) -> Any:
  """The class under any number of partials."""
  while isinstance(unit, functools.partial):
    unit = unit.func
  return unit


def check_unit(unit: Unit, place: str, socket: str) -> None:
  """Checks that a unit can stand where a socket has it.

  Args:
    unit: what was given.
    place: what the socket holds, a key of `PLACES`.
    socket: its name, for the message.

  Raises:
    ValueError: saying what the unit replaces and what the socket holds.
  """
  if isinstance(unit, nn.Module) or not callable(unit):
    got = "None" if unit is None else f"an instance of {type(unit).__name__}"
    raise ValueError(f"{socket}: give a module class or a functools.partial of one, which the network "
                     f"calls for each of its layers; got {got}")
  cls = unit_class(unit)
  replaces = getattr(cls, "replaces", "conv")
  if replaces not in _ACCEPTED[place]:
    raise ValueError(
        f"{socket}: {getattr(cls, '__name__', cls)} replaces {PLACES[replaces]}, but this socket holds "
        f"{PLACES[place] if place != 'conv' else 'k x k convolutions'}")


def check_sockets(backbone: nn.Module) -> None:
  """`check_unit` for every socket of a backbone: its class attribute `sockets` names them with their place."""
  defaults = {f.name: f.default for f in dataclasses.fields(backbone)}
  for socket, place in backbone.sockets.items():
    unit = getattr(backbone, socket)
    if unit is not None or defaults[socket] is not None:
      check_unit(unit, place, socket)
  if getattr(backbone, "pair", None) is not None and getattr(unit_class(backbone.pointwise), "whole_layer", False):
    raise ValueError(
        f"pair and pointwise: {unit_class(backbone.pair).__name__} works on a pair's response before its norm, "
        f"and {unit_class(backbone.pointwise).__name__} has that norm inside; put the unit of the depthwise "
        "convolution into `conv` (for an ic_ network: ic_placement='depthwise')")


def _told_of_bias(unit: Unit, use_bias: bool) -> bool:
  cls = unit_class(unit)
  bound = isinstance(unit, functools.partial) and "use_bias" in unit.keywords
  takes = not dataclasses.is_dataclass(cls) or any(f.name == "use_bias" for f in dataclasses.fields(cls))
  return takes and not bound and (use_bias or not getattr(cls, "own_bias", False))


def conv_norm_act(
    x: jax.Array,
    unit: Unit,
    features: int,
    kernel_size: tuple[int, ...],
    *,
    name: str,
    norm: Unit | None = None,
    act: Callable[[jax.Array], jax.Array] | None = None,
    use_bias: bool = False,
    around: Callable[[jax.Array], jax.Array] | None = None,
    **options: Any,
) -> jax.Array:
  """One layer of a backbone: what the socket holds, then norm, then activation.

  Args:
    x: (N, H, W, C).
    unit: what the socket holds.
    features: channels of the output.
    kernel_size: of the layer.
    name: of the unit; the norm's is the same with 'bn' for 'conv'.
    norm: factory, called with `name`, of a module that maps an array to its normalised form.
    act: the activation.
    use_bias: whether the plain layer has a bias.
    around: maps the unit's response to another of its shape, before the norm.
    **options: further arguments of `flax.linen.Conv`.

  Raises:
    ValueError: if the unit cannot stand here.
  """
  check_unit(unit, "pointwise" if set(kernel_size) == {1} else "conv", name)
  if getattr(unit_class(unit), "whole_layer", False):
    if around is not None:
      raise ValueError(f"{name}: {unit_class(unit).__name__} has the layer's norm inside, and a unit around a "
                       "pair works on the response before it")
    return unit(features, kernel_size, norm=norm, act=act, use_bias=use_bias, name=name, **options)(x)
  if _told_of_bias(unit, use_bias):
    options["use_bias"] = use_bias
  x = unit(features, kernel_size, name=name, **options)(x)
  if around is not None:
    x = around(x)
  if norm is not None:
    x = norm(name=name.replace("conv", "bn"))(x)
  return x if act is None else act(x)
