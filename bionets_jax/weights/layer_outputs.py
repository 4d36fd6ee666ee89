"""What every layer of a network gives for a batch of images."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np

from bionets_jax.counting import eval_mode
from bionets_jax.weights.layouts import flatten


@dataclasses.dataclass(frozen=True)
class Layer:
  """A module after a call.

  Attributes:
    path: 'stage1_block0/conv1'.
    kind: its class.
    output: channels last, float32.
    leaves: its own variables by their last name.
    window, strides: of a convolution; () for other modules.
    epsilon: of a norm; None for other modules.
  """

  path: str
  kind: str
  output: Any
  leaves: Mapping[str, np.ndarray]
  window: tuple[int, ...]
  strides: tuple[int, ...]
  epsilon: float | None


def layer_outputs(
    model: nn.Module, variables: Mapping[str, Any], images: np.ndarray, wanted: Collection[str]
) -> list[Layer]:
  """Runs a network in evaluation mode, and returns the wanted modules in the order in which they return.

  Args:
    model: maps images to logits.
    variables: of the model.
    images: (N, H, W, C), float32, as the network takes them.
    wanted: paths of modules, such as 'stage1_block0/conv1'; those that are not met are left out.

  Raises:
    ValueError: if images and variables do not fit the network.
  """
  leaves: dict[str, dict[str, np.ndarray]] = {}
  for (_, *path, leaf), value in flatten(variables).items():
    leaves.setdefault("/".join(path), {})[leaf] = np.asarray(value)
  met: list[Layer] = []

  def forward(variables, images):
    met.clear()

    def note(call, args, kwargs, context):
      output = call(*args, **kwargs)
      path = "/".join(context.module.path)
      if path in wanted and context.method_name == "__call__" and isinstance(output, jax.Array):
        met.append(_layer(context.module, path, output, leaves.get(path, {})))
      return output

    with nn.intercept_methods(note):
      model.apply(variables, images, **eval_mode(model))
    return [layer.output for layer in met]

  try:
    outputs = jax.jit(forward)(dict(variables), images)
  except flax.errors.FlaxError as error:
    raise ValueError(f"images of {images.shape} and these variables do not fit {type(model).__name__}: "
                     f"{error}") from error
  return [dataclasses.replace(layer, output=np.asarray(output, np.float32))
          for layer, output in zip(met, outputs, strict=True)]


def _layer(module: nn.Module, path: str, output: Any, leaves: Mapping[str, np.ndarray]) -> Layer:
  window, strides = (
      (value,) * 2 if isinstance(value, int) else tuple(value or ())
      for value in (getattr(module, "kernel_size", ()), getattr(module, "strides", ())))
  return Layer(path, type(module).__name__, output, leaves, window, strides, getattr(module, "epsilon", None))
