"""What the fields of a backbone may hold: a file or a command line may give them anything."""

import collections.abc
import dataclasses
import math
import types
import typing
from collections.abc import Collection
from typing import Any

import flax.linen as nn
import numpy as np

_LARGEST = 1 << 20  # of a whole number: channels, groups, pixels
_MOST_BLOCKS = 1000  # of a stage; the deepest published network has some 400 in all
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
_MAY_BE_ZERO = ("se_reduction", "num_classes", "dropout", "drop_connect")


def check_fields(model: nn.Module, names: Collection[str]) -> None:
  """Checks the plain fields of a backbone, those that are numbers, text or sequences of numbers.

  Args:
    model: the module.
    names: of the fields that were given.

  Raises:
    ValueError: for a value of another type, or one that is no size of a network.
  """
  for field in dataclasses.fields(model):
    if field.name in names:
      value = getattr(model, field.name)
      kinds = _kinds(field.type)
      if value is None and type(None) in kinds:
        continue
      for kind in kinds:
        if kind in _WORDS:
          _check(field.name, value, kind)
      if collections.abc.Sequence in kinds:
        _check_sequence(field.name, value)


def _kinds(annotation: Any) -> tuple[Any, ...]:
  """(int, NoneType) of `int | None`, (Sequence,) of `Sequence[int]`; () where callables may stand too."""
  members = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
  kinds = tuple(typing.get_origin(member) or member for member in members)
  plain = all(kind in (*_WORDS, type(None), collections.abc.Sequence) for kind in kinds)
  return kinds if plain and len(set(kinds) - {type(None)}) == 1 else ()


def _check_sequence(name: str, values: Any) -> None:
  if not isinstance(values, tuple | list):
    raise ValueError(f"{name}={values!r:.80}: give a tuple, such as (2, 2, 2)")
  for value in values:
    if isinstance(value, tuple | list):  # a stage of an EfficientNet
      _check_sequence(name, value)
    else:
      _check(name, value, int, _MOST_BLOCKS if name == "stage_sizes" else _LARGEST)


def _check(name: str, value: Any, kind: type, most: int = _LARGEST) -> None:
  accepted = {int: int | np.integer, float: int | float | np.integer | np.floating}.get(kind, kind)
  if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
    raise ValueError(f"{name}={value!r:.80}: give {_WORDS[kind]}")
  if kind in (int, float):
    least = 0 if kind is float or name in _MAY_BE_ZERO else 1
    if not (math.isfinite(value) and least <= value <= most):
      raise ValueError(f"{name}={value!r:.80}: give {_WORDS[kind]} from {least} to {most:,}")
