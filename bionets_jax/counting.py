"""Parameters and multiply-adds of a network, without running it.

A layer counts if it is Flax's `Conv` or `Dense`, or a module with a method `macs(output_shape,
in_features)`, which returns the multiply-adds of one call. What such a module calls in turn counts as
part of it. A method `box_adds` of the same form tells the additions of an IC box sum.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from bionets_jax.layers import Conv

CONVENTIONS = ("macs", "ptflops")


class LayerCount(NamedTuple):
  """One call of one layer. `macs` are multiply-adds, `box_adds` the additions of an IC box sum."""

  path: str
  kind: str
  output_shape: tuple[int, ...]
  macs: int
  box_adds: int


def abstract_variables(model: nn.Module, image_shape: tuple[int, ...]) -> Mapping[str, Any]:
  """The variables of `model` as shapes and dtypes, for images of (H, W, C)."""
  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  options = eval_mode(model)
  return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, **options), images)


def eval_mode(model: nn.Module) -> dict[str, Any]:
  """`train=False` as keyword arguments, for a network whose call takes `train`; else nothing."""
  takes = inspect.signature(type(getattr(model, "transplant_host", model)).__call__).parameters
  return {"train": False} if "train" in takes else {}


def count_parameters(
    model_or_variables: nn.Module | Mapping[str, Any],
    image_shape: int | tuple[int, ...] = (224, 224, 3),
) -> int:
  """Number of trainable parameters: the entries of the `params` collection.

  Args:
    model_or_variables: a network, or variables with a `params` collection, or such a collection.
    image_shape: (H, W, C) or a side, for a network only. The networks here have the same number
      whatever the side; a number of channels other than 3 changes the stem.
  """
  variables = model_or_variables
  if isinstance(variables, nn.Module):
    variables = abstract_variables(variables, _image_shape(image_shape))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(variables.get("params", variables)))


def count_layers(model: nn.Module, image_shape: int | tuple[int, ...]) -> list[LayerCount]:
  """Every convolution and dense layer that a forward pass over one image calls, in order."""
  return measure(model, image_shape)[1]


def measure(model: nn.Module, image_shape: int | tuple[int, ...]) -> tuple[int, list[LayerCount]]:
  """What `count_parameters` and `count_layers` return, in the time of one of them."""
  layers: list[LayerCount] = []

  def note(module: nn.Module, x: Any, out: Any) -> None:
    layers.append(_count(module, x, out))

  with _outermost_calls(_is_layer, note):
    # Initialisation is a forward pass.
    variables = abstract_variables(model, _image_shape(image_shape))
  return count_parameters(variables), layers


def count_macs(
    model: nn.Module,
    image_size: int | tuple[int, ...] = 224,
    *,
    include_box: bool = False,
    convention: str = "macs",
) -> int:
  """Multiply-adds of a forward pass over one image.

  Two conventions:
    'macs': convolutions and dense layers only, taps that fall on padding counted; no biases, norms,
      activations or pools. An IC layer counts W and W'. Of Flax's own layers `Conv` and `Dense` count;
      `ConvTranspose` and `DenseGeneral` do not.
    'ptflops': what ptflops (github.com/sovrasov/flops-counter.pytorch, 0.6) says of the PyTorch twin,
      and the tables of the IC paper print. To the above come one for each output of a bias, b1 and b2
      of an IC layer included; two for each output of a norm (one without scale and bias); one for each
      output of a ReLU; one for each input of a pool, the mean over the whole image included. Other
      activations, additions of branches and products are free, and so are the box sum of an IC layer,
      its inner ReLU and its alpha: functional calls, which ptflops does not see. It is the count of a
      twin whose ReLUs and pools are modules, as torchvision's are.

  Args:
    model: the network.
    image_size: a side (RGB images are assumed) or (H, W, C).
    include_box: counts each IC box sum as the k x k depthwise filter that it replaces. The IC
      paper's printed figures leave it out.
    convention: 'macs' or 'ptflops'.

  Raises:
    ValueError: on an unknown convention.
  """
  if convention not in CONVENTIONS:
    raise ValueError(f"convention={convention!r}: give one of {', '.join(CONVENTIONS)}")
  if convention == "ptflops":
    return _ptflops(model, _image_shape(image_size), include_box)
  return sum(layer.macs + include_box * layer.box_adds for layer in count_layers(model, image_size))


def _ptflops(model: nn.Module, shape: tuple[int, ...], include_box: bool) -> int:
  total = 0

  def note(module: nn.Module, x: Any, out: Any) -> None:
    nonlocal total
    if _is_layer(module):
      layer = _count(module, x, out)
      biases = sum(bool(getattr(module, name, False)) for name in ("use_bias", "use_inner_bias"))
      total += layer.macs + include_box * layer.box_adds + biases * out.size
    else:
      total += out.size * (2 if module.use_scale or module.use_bias else 1)

  variables = abstract_variables(model, shape)
  images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  options = eval_mode(model)
  with _outermost_calls(lambda module: _is_layer(module) or _is_norm(module), note):
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, **options))(variables, images)
  return total + sum(_relu_or_pool(equation) for equation in _outside_layers(program.jaxpr))


# Layers and norms are modules and are met as they are called. ReLUs and pools are functions: these are
# read off the traced program, in which this name marks what layers and norms do inside.
_INSIDE = "inside_a_counted_module"


def _outermost_calls(
    wanted: Callable[[nn.Module], bool], note: Callable[[nn.Module, Any, Any], None]
) -> Any:
  """A context in which `note(module, input, output)` hears of each call of a wanted module.

  Calls from within a wanted module are not told, so that no layer counts twice. A convolution or dense
  layer that is seen to call others does so because a unit was transplanted into it: then these are told.
  """
  calls: list[list[tuple]] = []  # for each wanted call under way, the wanted calls within

  def intercept(next_call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext):
    module = context.module
    if context.method_name != "__call__" or not wanted(module):
      return next_call(*args, **kwargs)
    calls.append([])
    try:
      with jax.named_scope(_INSIDE):
        out = next_call(*args, **kwargs)
    finally:
      inner = calls.pop()
    call = (module, args[0] if args else next(iter(kwargs.values())), out)
    told = inner if inner and isinstance(module, nn.Conv | nn.Dense | Conv) else [call]
    if calls:
      calls[-1] += told
    else:
      for each in told:
        note(*each)
    return out

  return nn.intercept_methods(intercept)


def _outside_layers(jaxpr: Any) -> Iterator[Any]:
  """The equations of a program and of those inside it, but for what layers and norms do inside."""
  for equation in jaxpr.eqns:
    if _INSIDE in str(equation.source_info.name_stack):
      continue
    yield equation
    if _is_relu(equation):
      continue
    for value in equation.params.values():
      for program in value if isinstance(value, list | tuple) else (value,):
        if isinstance(program, ClosedJaxpr):
          program = program.jaxpr
        if isinstance(program, Jaxpr):
          yield from _outside_layers(program)


def _relu_or_pool(equation: Any) -> int:
  """What an equation costs by ptflops: a ReLU its outputs, a pool its inputs, anything else nothing."""
  name = equation.primitive.name
  x: Any = next(iter(equation.invars), None)
  if _is_relu(equation) or name in ("reduce_window_max", "reduce_window_sum"):
    return x.aval.size
  if name == "reduce_sum" and tuple(equation.params["axes"]) == tuple(range(1, x.aval.ndim - 1)):
    return x.aval.size  # the mean over the image
  return 0


def _is_relu(equation: Any) -> bool:
  return equation.params.get("name") in ("relu", "relu6")


def _is_layer(module: nn.Module) -> bool:
  return isinstance(module, nn.Conv | nn.Dense) or callable(getattr(module, "macs", None))


def _is_norm(module: nn.Module) -> bool:
  return hasattr(module, "use_scale") and hasattr(module, "use_bias")


def _count(module: nn.Module, x: Any, out: Any) -> LayerCount:
  n, in_features = out.shape, x.shape[-1]
  if isinstance(module, nn.Conv):
    window = module.kernel_size
    taps = math.prod((window,) if isinstance(window, int) else window)
    macs = math.prod(n) * taps * in_features // module.feature_group_count
  elif isinstance(module, nn.Dense):
    macs = math.prod(n) * in_features
  else:
    macs = module.macs(n, in_features)
  box = module.box_adds(n, in_features) if hasattr(module, "box_adds") else 0
  return LayerCount("/".join(module.path), type(module).__name__, n[1:], macs, box)


def _image_shape(image_size: int | tuple[int, ...]) -> tuple[int, ...]:
  return (image_size, image_size, 3) if isinstance(image_size, int) else tuple(image_size)
