"""The feature maps inside a network, and the network from one of them on.

A network is traced into the list of its equations. Flax's interceptors say which of the values there are the
outputs of modules, and a backbone of `models` names its endpoints, of which some are no module's output; so
any Linen network can be read without changing it, and any value in it taken for a variable of its own.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Var, jaxpr_as_fun

from bionets_jax.counting import eval_mode
from bionets_jax.data.naming import nearest

_COLLECTION = "bionets_jax_heatmaps"  # of variables, while a network is traced
_OUTPUT, _INPUT = "output", "input"


class Inside:
  """A network in evaluation mode, traced for images of one shape.

  Attributes:
    logits: the variable of what it returns, (N, K).
    endpoints: name -> variable of the backbone's endpoints that are maps; {} for networks without.
    outputs: path of a module -> variables of the maps that it returned, one a call, in the order of the calls.
    dense: path of an `nn.Dense` -> variables of its inputs, one a call; in the order of the calls too.
  """

  def __init__(self, model: nn.Module, variables: Mapping[str, Any], images: Any):
    """
    Args:
      model: maps images to logits.
      variables: of the model; arrays, tracers or shapes.
      images: (N, H, W, C), the same.

    Raises:
      ValueError: if they do not fit, or the network returns something else than logits (N, K).
    """
    self._no_maps: dict[str, str] = {}  # path of a module, or an endpoint -> what it is instead
    host = getattr(model, "transplant_host", model)
    self._kind = type(host).__name__
    if getattr(host, "remat", ""):  # which changes nothing but the memory of training, and hides what is inside
      plain = host.clone(remat="")
      model = plain if host is model else model.clone(transplant_host=plain)
    try:
      closed, out = jax.make_jaxpr(self._forward(model), return_shape=True)(dict(variables), images)
    except flax.errors.FlaxError as error:
      raise ValueError(f"images of {images.shape} and these variables do not fit {self._kind}: {error}") from error
    if getattr(out[0], "ndim", None) != 2:
      shapes = jax.tree.map(lambda x: x.shape, out[0])
      raise ValueError(f"{self._kind} returns {shapes}; a heatmap is of one score: logits (N, classes) are needed")
    self._jaxpr, self._consts = closed.jaxpr, closed.consts
    logits, endpoints, sown = jax.tree.unflatten(jax.tree.structure(out), self._jaxpr.outvars)
    self.logits: Var = logits
    order = {var: i for i, var in enumerate(v for eqn in self._jaxpr.eqns for v in eqn.outvars)}
    self.endpoints: dict[str, Var] = {}
    for name, var in sorted(endpoints.items(), key=lambda item: order.get(item[1], -1)):
      if _is_map(var.aval):
        self.endpoints[name] = var
      else:
        self._no_maps[name] = str(shape_of(var))
    calls: dict[str, dict[str, list[Var]]] = {_OUTPUT: {}, _INPUT: {}}
    for (*path, kind), values in flax.traverse_util.flatten_dict(sown).items():
      if kind == _INPUT or all(_is_map(var.aval) for var in values):  # a scanned module's are stacked
        calls[kind]["/".join(path)] = list(values)
    # As they are called: the tree of what is sown has its paths by the alphabet.
    self.outputs, self.dense = (dict(sorted(
        calls[kind].items(), key=lambda item: order.get(item[1][-1], -1))) for kind in (_OUTPUT, _INPUT))
    # What the images are on top of: a kernel has four axes as well, and is no map.
    self._of_images = self._reached([self._jaxpr.invars[-1]])
    self._needed = self._before(self.logits)

  def find(self, layer: str | None) -> tuple[str, Var]:
    """A map and its name.

    Args:
      layer: an endpoint or the path of a module; None for the last endpoint of more than one pixel, in a network
        without endpoints the last such map on the way to the logits.

    Raises:
      ValueError: there is none, with the nearest names; it is no map; it is computed several times; or the logits
        do not depend on it.
    """
    if layer is None:
      return self._last()
    if layer in self.endpoints:
      return layer, self.endpoints[layer]
    if layer not in self.outputs:
      if layer in self._no_maps:
        raise ValueError(f"{self._kind}: {layer!r} gives {self._no_maps[layer]}, and a heatmap is of maps "
                         "(N, h, w, channels)")
      known = [*self.endpoints, *self.outputs]
      named = f" Endpoints: {', '.join(self.endpoints)}." if self.endpoints else ""
      raise ValueError(f"{self._kind} has no layer {layer!r}.{nearest(layer, known)}{named} `layers` names all that "
                       f"give maps, {len(known)}")
    if len(calls := self.outputs[layer]) > 1:
      raise ValueError(f"{self._kind}: {layer!r} is called {len(calls)} times, and no single map is its output; "
                       "name a layer that is called once")
    for var in self._used(calls):
      return layer, var
    raise ValueError(f"{self._kind}: its logits do not depend on what {layer!r} returns, or it is inside of a lifted "
                     "transformation (nn.jit, nn.remat, nn.scan); then name the layer around it")

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """(h, w, channels) of every map that `find` finds by name, endpoints first."""
    found = self.endpoints | {
        path: calls[0] for path, calls in self.outputs.items() if len(calls) == 1 and self._used(calls)}
    return {name: shape_of(var)[1:] for name, var in found.items()}

  def maps_before(self, var: Var) -> Iterator[Var]:
    """The maps that a variable is computed from, the last one first."""
    wanted = {var}
    for eqn in reversed(self._jaxpr.eqns):
      if wanted.isdisjoint(eqn.outvars):
        continue
      inputs = [v for v in eqn.invars if isinstance(v, Var) and v in self._of_images]
      yield from (v for v in inputs if v not in wanted and _is_map(v.aval))
      wanted.update(inputs)

  def values(self, variables: Mapping[str, Any], images: jax.Array, wanted: Sequence[Var]) -> list[jax.Array]:
    """The values of some variables, for arrays of the shapes that were traced."""
    return self._function(self._jaxpr.eqns, self._inputs(), wanted)(*self._arguments(variables, images))

  def split(self, var: Var) -> tuple[Callable[..., tuple[jax.Array, Any]], Callable[[jax.Array, Any], jax.Array]]:
    """The network up to a map, (variables, images) -> (map, others), and from there: (map, others) -> logits."""
    eqns = self._jaxpr.eqns
    cut = 1 + max((i for i, eqn in enumerate(eqns) if var in eqn.outvars), default=-1)
    known = {*self._inputs(), *(v for eqn in eqns[:cut] for v in eqn.outvars)} - {var}
    others = list(dict.fromkeys(v for eqn in eqns[cut:] for v in eqn.invars if isinstance(v, Var) and v in known))
    first = self._function(eqns[:cut], self._inputs(), [var, *others])
    second = self._function(eqns[cut:], [var, *others], [self.logits])

    def before(variables, images):
      value, *rest = first(*self._arguments(variables, images))
      return value, rest

    return before, lambda value, rest: second(value, *rest)[0]

  def _inputs(self) -> list[Var]:
    return [*self._jaxpr.constvars, *self._jaxpr.invars]

  def _arguments(self, variables: Mapping[str, Any], images: jax.Array) -> list[Any]:
    return [*self._consts, *jax.tree.leaves((dict(variables), images))]

  def _function(self, eqns: Sequence[Any], inputs: Sequence[Var], outputs: Sequence[Var]) -> Callable[..., list[Any]]:
    part = self._jaxpr.replace(constvars=[], invars=inputs, eqns=eqns, outvars=outputs)
    return jaxpr_as_fun(ClosedJaxpr(part, []))

  def _forward(self, model: nn.Module) -> Callable[..., Any]:
    """(variables, images) -> logits, endpoints, {path: {'output' or 'input': one value a call}}."""
    active: set[tuple[str, ...]] = set()

    def note(call, args, kwargs, context):
      module, path = context.module, context.module.path
      # Inside of a call to the same path is what a subclass calls of its base, or a unit in a layer's place.
      if context.method_name != "__call__" or not path or path in active:
        return call(*args, **kwargs)
      active.add(path)
      try:
        out = call(*args, **kwargs)
      finally:
        active.discard(path)
      if _is_map(out):
        module.sow(_COLLECTION, _OUTPUT, out)
      else:
        self._no_maps["/".join(path)] = str(getattr(out, "shape", type(out).__name__))
      if isinstance(module, nn.Dense):
        module.sow(_COLLECTION, _INPUT, args[0] if args else kwargs["inputs"])
      return out

    host = getattr(model, "transplant_host", model)
    options: dict[str, Any] = eval_mode(model)
    has_endpoints = "endpoints" in inspect.signature(type(host).__call__).parameters
    if has_endpoints:
      options["endpoints"] = True

    def forward(variables, images):
      with nn.intercept_methods(note):
        out, changed = model.apply(variables, images, mutable=[_COLLECTION], **options)
      logits, endpoints = out if has_endpoints else (out, {})
      return logits, endpoints, changed.get(_COLLECTION, {})

    return forward

  def name(self, var: Var) -> str:
    """What `find` finds the map by, if there is such a name."""
    names = {calls[0]: path for path, calls in self.outputs.items() if len(calls) == 1}
    names |= {found: name for name, found in self.endpoints.items()}
    return names.get(var, "last map")

  def _last(self) -> tuple[str, Var]:
    maps = list(self.endpoints.values())[::-1] or list(self.maps_before(self.logits))
    for var in maps:
      if math.prod(shape_of(var)[1:3]) > 1:
        return self.name(var), var
    raise ValueError(f"{self._kind} has no map of more than one pixel for images of this size")

  def _same(self, var: Var) -> list[Var]:
    """A variable and what else is the same: a rematerialised module returns its output and what is sown of it."""
    for eqn in self._jaxpr.eqns:
      if var in eqn.outvars:
        for value in eqn.params.values():
          inner = list(getattr(getattr(value, "jaxpr", value), "outvars", ()))
          if len(inner) == len(eqn.outvars):
            mine = inner[eqn.outvars.index(var)]
            return [v for v, i in zip(eqn.outvars, inner, strict=True) if i is mine and shape_of(v) == shape_of(var)]
    return [var]

  def _used(self, calls: Sequence[Var]) -> list[Var]:
    """Of what a module's only call returned, that which the logits depend on."""
    return [var for var in self._same(calls[0]) if var in self._needed]

  def _before(self, var: Var) -> set[Var]:
    """A variable, and all that it is computed from."""
    found = {var}
    for eqn in reversed(self._jaxpr.eqns):
      if not found.isdisjoint(eqn.outvars):
        found.update(v for v in eqn.invars if isinstance(v, Var))
    return found

  def _reached(self, start: Sequence[Var]) -> set[Var]:
    """Some variables, and all that are computed from them."""
    found = set(start)
    for eqn in self._jaxpr.eqns:
      if any(isinstance(v, Var) and v in found for v in eqn.invars):
        found.update(eqn.outvars)
    return found


def shape_of(var: Any) -> tuple[int, ...]:
  return var.aval.shape


def _is_map(x: Any) -> bool:
  return getattr(x, "ndim", 0) == 4 and jnp.issubdtype(x.dtype, jnp.floating)
