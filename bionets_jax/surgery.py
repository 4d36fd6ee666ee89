"""Units put into networks that were written without them, and weights taken over from those.

    twin = transplant(their_model, bn.layers.ICConv, where=lambda path, conv: conv.kernel_size == (3, 3))
    grown = inherit(their_variables, twin.init(rng, images))
    print(grown)                      # what was copied, what is new
    logits = twin.apply(grown.variables, images)

Needs only jax and flax.
"""

import collections
import contextlib
import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from bionets_jax.layers import Conv
from bionets_jax.layers.socket import PLACES, Unit, unit_class

Where = str | Callable[[str, nn.Module], bool]
_SHOWN = 20


class Rule(NamedTuple):
  """What is put where; see `transplant`."""

  unit: Callable[..., nn.Module]
  where: Where | None
  of: tuple[type[nn.Module], ...]

  def wants(self, path: str, layer: nn.Module) -> bool:
    kinds = [cls for cls in self.of if isinstance(layer, cls)]
    if not kinds or not self._chosen(path, layer):
      return False
    if not any(type(layer).__call__ is cls.__call__ for cls in kinds):
      raise ValueError(
          f"transplant: {type(layer).__name__} '{path}' is a {kinds[0].__name__} with a __call__ of its own, "
          f"which {_name(self.unit)} would not reproduce; leave it out with `where`, or name the class in `of`")
    return True

  def _chosen(self, path: str, layer: nn.Module) -> bool:
    if isinstance(self.where, str):
      return re.fullmatch(self.where, path) is not None
    if self.where is not None:
      return bool(self.where(path, layer))
    if getattr(unit_class(self.unit), "replaces", "") != "pointwise":
      return True
    kernel = layer.kernel_size
    return all(k == 1 for k in ((kernel,) if isinstance(kernel, int) else kernel))


class Transplanted(nn.Module):
  """A network some of whose layers are units. Made by `transplant`; its `__call__` is the network's.

  Its variables are those of the network by the same paths, and the units' own beside them.
  """

  # A name that no layer of theirs has: it would clash with this field, whose scope is shared.
  transplant_host: nn.Module
  rules: tuple[Rule, ...]

  def setup(self):
    nn.share_scope(self, self.transplant_host)

  def __call__(self, *args, **kwargs):
    seen: list[tuple[str, nn.Module]] = []
    used: set[int] = set()
    units: set[str] = set()

    def swap(next_call, args, kwargs, context):
      layer = context.module
      if context.method_name != "__call__" or not any(isinstance(layer, rule.of) for rule in self.rules):
        return next_call(*args, **kwargs)
      # As in the network's own variables, wherever the twin itself stands.
      inside = _scope(layer).path[len(_scope(self).path):]
      path = "/".join(inside[1:] if inside[:1] == ("transplant_host",) else inside)
      if any(path.startswith(f"{unit}/") for unit in units):
        return next_call(*args, **kwargs)  # a layer of a unit
      seen.append((path, layer))
      for i, rule in enumerate(self.rules):
        if rule.wants(path, layer):
          used.add(i)
          units.add(path)
          # The unit lives in the scope of the layer that it stands for, so the leaves that the two
          # have in common keep their paths.
          return _build(rule.unit, layer, path).clone(parent=layer.scope)(*args, **kwargs)
      return next_call(*args, **kwargs)

    with nn.intercept_methods(swap):
      out = self.transplant_host(*args, **kwargs)
    for i, rule in enumerate(self.rules):
      if i not in used:
        paths = [path for path, layer in seen if isinstance(layer, rule.of)]
        kinds = " or ".join(dict.fromkeys(cls.__name__ for cls in rule.of))
        layers = f"its {kinds} layers are {', '.join(paths[:_SHOWN])}" + (
            ", ..." if len(paths) > _SHOWN else "")
        raise ValueError(
            f"transplant: {_name(rule.unit)} replaced nothing in {type(self.transplant_host).__name__}; "
            f"{layers if paths else f'it calls no {kinds} layer'}")
    return out


def transplant(
    model: nn.Module, unit: Unit | Callable[[nn.Module], nn.Module], *, where: Where | None = None,
    of: type[nn.Module] | Sequence[type[nn.Module]] = (nn.Conv, Conv),
) -> Transplanted:
  """Puts a unit into a network without touching its code, by intercepting its layers' calls.

  Args:
    model: any Linen module.
    unit: a module class or a functools.partial of one: called with the arguments of the layer that it
      replaces, as far as the partial does not set them. Or a function from that layer to the module
      which is called in its place, with the layer's inputs; so a block of theirs can become an `FPBlock`.
    where: which layers: a regular expression for the whole of the layer's path in the variables
      ('block_1/Conv_0'), or a function of path and layer. By default all; for a unit of 1x1 convolutions
      all of those.
    of: the class of the layers, or several. By default Flax's convolution and this library's.

  Returns:
    A module with `model`'s variables plus those of the units. It can be transplanted into again; a layer
    that several transplants want has the unit of the first.

  Raises:
    ValueError: if the model is no module, or the unit can never replace layers of this class. When the
      twin is first called: if a unit replaced no layer; if a layer has an argument that the unit does
      not know, or a `__call__` of its own.
  """
  if not isinstance(model, nn.Module):
    raise ValueError(f"transplant: the model has to be a module; got {model!r}")
  of = (of,) if inspect.isclass(of) else tuple(of)
  if isinstance(unit, nn.Module) or not callable(unit):
    raise ValueError(f"transplant: give a module class, a functools.partial of one or a function from layer to "
                     f"module; got {'None' if unit is None else f'an instance of {type(unit).__name__}'}")
  needed = {"conv": (nn.Conv, Conv), "pointwise": (nn.Conv, Conv), "dense": (nn.Dense,)}.get(
      getattr(unit_class(unit), "replaces", ""))
  if needed and not all(issubclass(cls, needed) for cls in of):
    raise ValueError(f"transplant: {_name(unit)} replaces {PLACES[unit_class(unit).replaces]}, not "
                     f"{', '.join(cls.__name__ for cls in of)}")
  rule = Rule(unit, where, of)
  if isinstance(model, Transplanted):
    return Transplanted(model.transplant_host, (*model.rules, rule))
  return Transplanted(model, (rule,))


def _build(unit: Callable, layer: nn.Module, path: str) -> nn.Module:
  cls = unit_class(unit)
  if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
    with _outside_of_modules():
      made = unit(layer)
    if not isinstance(made, nn.Module):
      raise ValueError(f"transplant: {_name(unit)} made {made!r} for '{path}', which is no module")
    return made
  takes = {f.name for f in dataclasses.fields(cls)}
  given = set(getattr(unit, "keywords", {}))
  arguments = {}
  for field in dataclasses.fields(layer):
    if field.name in ("parent", "name") or field.name in given:
      continue
    value = getattr(layer, field.name)
    if field.name in takes:
      arguments[field.name] = value
    elif not (value is field.default or value == field.default):
      raise ValueError(f"transplant: {type(layer).__name__} '{path}' has {field.name}={value!r}, which "
                       f"{cls.__name__} does not know; leave it out with `where`")
  return unit(**arguments, parent=None)


def _scope(module: nn.Module) -> flax.core.Scope:
  """Where the variables of a module are that is being called."""
  assert module.scope is not None
  return module.scope


def _name(unit: Callable) -> str:
  return getattr(unit_class(unit), "__name__", repr(unit))


@contextlib.contextmanager
def _outside_of_modules():
  """Modules made in here have no parent. Otherwise they would become children of the one being called."""
  stack = nn.module._context.module_stack  # private; Linen has no public way to say parent=None for others
  stack.append(None)
  try:
    yield
  finally:
    stack.pop()


@dataclasses.dataclass(frozen=True)
class Inheritance:
  """What a network took over from another. Printed, it is a table by parts, of numbers of values.

  Attributes:
    copied: paths, 'params/stem_conv/kernel', that have the base's values.
    new: paths that the base has not, or has in another shape.
    unused: paths of the base that no place was found for.
  """

  copied: tuple[str, ...]
  new: tuple[str, ...]
  unused: tuple[str, ...]
  _old: Mapping[str, Any] = dataclasses.field(repr=False)
  _new: Mapping[str, Any] = dataclasses.field(repr=False)
  _sources: Mapping[str, str] = dataclasses.field(repr=False)

  @functools.cached_property
  def variables(self) -> dict[str, Any]:
    """The network's, with everything that could be taken over: copies, in the network's own dtypes."""
    def value(path, leaf):
      taken = self._old[self._sources[path]] if path in self._sources else leaf
      if path not in self._sources or isinstance(taken, jax.ShapeDtypeStruct):
        return taken
      return jnp.array(taken, dtype=leaf.dtype, copy=True)

    return unflatten_dict({tuple(path.split("/")): value(path, leaf) for path, leaf in self._new.items()})

  def __str__(self) -> str:
    kinds = ("copied", "new", "unused")
    sums: dict[str, collections.Counter] = {}
    names: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for kind in kinds:
      for path in getattr(self, kind):
        part = path.split("/")[1]
        tree = self._old if kind == "unused" else self._new
        sums.setdefault(part, collections.Counter())[kind] += math.prod(tree[path].shape)
        if kind == "new":
          names[part][path.split("/")[-1]] += 1
    rows: list[tuple[str, ...]] = [("part", "copied", "new", "not used", "new leaves")]
    for part in sorted(sums, key=_natural):
      leaves = ", ".join(f"{n} {name}" if n > 1 else name for name, n in names[part].items())
      rows.append((part, *(f"{sums[part][kind]:,}" for kind in kinds), leaves))
    rows.append(("total", *(f"{sum(s[kind] for s in sums.values()):,}" for kind in kinds), ""))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:4], widths[1:], strict=True)),
                        row[4]]).rstrip() for row in rows]
    return "\n".join(lines)


def inherit(base: Mapping[str, Any], twin: Mapping[str, Any]) -> Inheritance:
  """Takes over from a base network what its twin has by the same path and in the same shape.

  An IC twin finds everything: at alpha = 0 it is then its base. An FP twin has new stages, a kEffNet new
  1x1 convolutions. A kConv with a single group is an ordinary convolution and takes over that, and its norm
  where that is called as in this library, 'bn' for 'conv'. Flax's boxes around sharded arrays are taken off.

  Args:
    base: {'params': ..., 'batch_stats': ...}.
    twin: the same of the twin, freshly initialised.

  Raises:
    ValueError: if nothing at all fits.
  """
  old = {"/".join(k): v for k, v in flatten_dict(nn.meta.unbox(flax.core.unfreeze(dict(base)))).items()}
  new = {"/".join(k): v for k, v in flatten_dict(nn.meta.unbox(flax.core.unfreeze(dict(twin)))).items()}
  sources = {}
  for path, leaf in new.items():
    for source in (path, _inside_kconv(path, new, old)):
      if source in old and old[source].shape == leaf.shape:
        sources[path] = source
        break
  if not sources:
    has = f"has {', '.join(list(old)[:5])}{', ...' if len(old) > 5 else ''}" if old else "is empty"
    raise ValueError(f"none of the {len(new)} variables has a namesake of its shape in the base, which {has}")
  used = set(sources.values())
  copied = tuple(p for p in new if p in sources)
  added = tuple(p for p in new if p not in sources)
  unused = tuple(p for p in old if p not in used)
  return Inheritance(copied, added, unused, old, new, sources)


def _inside_kconv(path: str, new: Mapping[str, Any], old: Mapping[str, Any]) -> str | None:
  """Where the plain network keeps what a kConv of one group holds: its first convolution and norm."""
  match = re.fullmatch(r"(\w+)/(.+)/(conv1|bn1)/(\w+)", path)
  if not match:
    return None
  collection, layer, child, leaf = match.groups()
  grouped, plain = new.get(f"params/{layer}/conv1/kernel"), old.get(f"params/{layer}/kernel")
  if grouped is None or plain is None or grouped.shape != plain.shape:
    return None
  if child == "conv1":
    return f"{collection}/{layer}/{leaf}"
  head, _, last = layer.rpartition("/")
  return f"{collection}/{head + '/' if head else ''}{last.replace('conv', 'bn')}/{leaf}"


def _natural(part: str) -> tuple:
  """Numbers in their order, the stem first and the head last, a norm behind its convolution."""
  place = 0 if part.startswith("stem") else 2 if part in ("head", "top_conv", "top_bn") else 1
  return place, [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", part.replace("bn", "conv_"))]
