"""Parameters and multiply-adds of a network, without running it."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bionets_jax.layers import Conv, ICConv, ICDense


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
  return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


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
  shape = _image_shape(image_shape)
  layers: list[LayerCount] = []

  def count(next_call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext):
    out = next_call(*args, **kwargs)
    module = context.module
    if context.method_name == "__call__" and isinstance(module, _COUNTED):
      n, in_features = out.shape, args[0].shape[-1]
      if isinstance(module, nn.Conv):
        window = module.kernel_size
        taps = math.prod((window,) if isinstance(window, int) else window)
        macs = math.prod(n) * taps * in_features // module.feature_group_count
      elif isinstance(module, nn.Dense):
        macs = math.prod(n) * in_features
      else:
        macs = module.macs(n, in_features)
      box = module.box_adds(n, in_features) if isinstance(module, ICConv) else 0
      layers.append(LayerCount("/".join(module.path), type(module).__name__, n[1:], macs, box))
    return out

  with nn.intercept_methods(count):
    abstract_variables(model, shape)  # initialisation is a forward pass
  return layers


def count_macs(
    model: nn.Module, image_size: int | tuple[int, ...] = 224, *, include_box: bool = False
) -> int:
  """Multiply-adds of a forward pass over one image.

  The convention of the field's tables: convolutions and dense layers only, taps that fall on
  padding counted, no biases, norms, activations or pools. An IC layer counts W and W'. Of Flax's own
  layers `Conv` and `Dense` count; `ConvTranspose` and `DenseGeneral` do not.

  Args:
    model: the network.
    image_size: a side (RGB images are assumed) or (H, W, C).
    include_box: counts each IC box sum as the k x k depthwise filter that it replaces. The IC
      paper's printed figures leave it out.
  """
  return sum(layer.macs + include_box * layer.box_adds for layer in count_layers(model, image_size))


_COUNTED = (Conv, ICConv, ICDense, nn.Conv, nn.Dense)


def _image_shape(image_size: int | tuple[int, ...]) -> tuple[int, ...]:
  return (image_size, image_size, 3) if isinstance(image_size, int) else tuple(image_size)
