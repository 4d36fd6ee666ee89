"""Weights as a flat list in the order in which a network's layers run.

The one order that every framework can give, whatever it calls its layers: what a Keras model's
`get_weights()` returns, or a PyTorch state dict in order of execution.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Path = tuple[str, ...]

# Within a layer: filters, then what scales, then what is added, then statistics. Any others after these.
_LEAVES = ("kernel", "kernel_a", "kernel_b", "embedding", "scale", "adjust", "inner_bias", "bias", "alpha",
           "mean", "var")
_SHOWN = 12


def call_order(model: nn.Module, variables: Mapping[str, Any], inputs: Any = None) -> list[Path]:
  """The paths of all variables, ('params', ..., 'kernel') and so on, in the order of the calls.

  A layer comes where it is first called; its own leaves are in the order kernel, scale, adjust,
  inner_bias, bias, alpha, mean, var. The forward pass is traced, not run.

  Args:
    model: maps one array to logits or features; `train=False` is passed where it takes `train`.
    variables: of the model, arrays or shapes.
    inputs: an example input or its jax.ShapeDtypeStruct. By default one of (1, 64, 64, C), with the
      C that fits the variables.

  Raises:
    ValueError: if no default input fits, or the forward pass leaves variables unread.
  """
  leaves = flatten_dict(flax.core.unfreeze(dict(variables)))
  found: list[Path] | None = None
  if inputs is not None:
    found = _trace(model, variables, leaves, inputs)
  else:
    for channels in _possible_channels(leaves):
      try:
        order = _trace(
            model, variables, leaves, jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32))
      except (flax.errors.FlaxError, ValueError, TypeError):
        continue
      if len(order) == len(leaves):
        return order
      found = found or order
  if found is None:
    raise ValueError("no input of (1, 64, 64, channels) fits this model and its variables; give an "
                     "example: inputs=jax.ShapeDtypeStruct(shape, dtype)")
  if unread := [path for path in leaves if path not in set(found)]:
    raise ValueError(f"the forward pass does not call the layers of {len(unread)} variables: "
                     f"{_names(unread)}")
  return found


def list_in_call_order(
    model: nn.Module, variables: Mapping[str, Any], inputs: Any = None
) -> list[np.ndarray]:
  """All variables as a flat list, the inverse of `load_in_call_order`."""
  leaves = flatten_dict(flax.core.unfreeze(dict(variables)))
  return [np.asarray(leaves[path]) for path in call_order(model, variables, inputs)]


def load_in_call_order(
    model: nn.Module, variables: Mapping[str, Any], arrays: Sequence[Any], *, inputs: Any = None
) -> dict[str, Any]:
  """`variables` with every parameter and statistic set from a flat list in order of execution.

      arrays = keras_model.get_weights()
      variables = load_in_call_order(model, model.init(rng, images), arrays)

  Args:
    model: a network or a single layer; see `call_order`.
    variables: of the model, arrays or shapes (`jax.eval_shape(model.init, ...)`).
    arrays: one for each leaf, in `call_order`, with our axes: convolutions (H, W, in / groups, out),
      dense layers (in, out). Keras' depthwise kernels (H, W, C, 1) fit too. An array of the right
      shape in the wrong order of axes, such as a square matrix transposed, cannot be told.
    inputs: see `call_order`.

  Returns:
    A tree like `variables`, in its dtypes.

  Raises:
    ValueError: if the number of arrays or a shape differs, naming the first that do.
  """
  leaves = flatten_dict(flax.core.unfreeze(dict(variables)))
  order = call_order(model, variables, inputs)
  arrays = [np.asarray(a) for a in arrays]
  wrong = [f"array {i} has shape {a.shape}, {'/'.join(path)} has {tuple(leaves[path].shape)}"
           for i, (path, a) in enumerate(zip(order, arrays, strict=False))
           if not _same(a.shape, leaves[path].shape)]
  if len(arrays) != len(order):
    wrong.insert(0, f"{len(arrays)} arrays for {len(order)} variables, the last of which is "
                    f"{'/'.join(order[-1])}")
  if wrong:
    shown = "\n  ".join(wrong[:_SHOWN])
    raise ValueError(f"the arrays do not fit {type(model).__name__} in order of its calls:\n  {shown}"
                     + (f"\n  ... and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""))
  return unflatten_dict({
      path: jnp.asarray(a.reshape(leaves[path].shape), leaves[path].dtype)
      for path, a in zip(order, arrays, strict=True)})


def _trace(model: nn.Module, variables: Any, leaves: Mapping[Path, Any], inputs: Any) -> list[Path]:
  owned: dict[Path, list[Path]] = {}
  for path in leaves:
    owned.setdefault(path[1:-1], []).append(path)
  order: list[Path] = []

  def visit(left: dict, next_call: Callable, args: tuple, kwargs: dict, context: Any):
    if context.method_name == "__call__":
      order.extend(sorted(left.pop(context.module.path, []), key=_rank))
    return next_call(*args, **kwargs)

  # Norms may be set to training, and then write their statistics; dropout may ask for a key.
  collections = [name for name in variables if name != "params"]

  def forward(v, x, **options):
    return model.apply(v, x, mutable=collections, rngs={"dropout": jax.random.key(0)}, **options)

  train = inspect.signature(type(model).__call__).parameters.get("train")
  options = [{"train": False}] if train else [{}]
  if train and train.default is not inspect.Parameter.empty:
    options.append({})  # a layer whose norm takes no mode from the call
  for i, option in enumerate(options):
    left = dict(owned)
    order.clear()
    try:
      with nn.intercept_methods(functools.partial(visit, left)):
        jax.eval_shape(functools.partial(forward, **option), variables, inputs)
      return order
    except Exception:
      if i == len(options) - 1:
        raise
  raise AssertionError("the last of the options has returned or raised")


def _rank(path: Path) -> tuple[int, str]:
  return (_LEAVES.index(path[-1]) if path[-1] in _LEAVES else len(_LEAVES), path[-1])


def _possible_channels(leaves: Mapping[Path, Any]) -> list[int]:
  """RGB and grey, then whatever any kernel could stand on: rows times a divisor of its columns."""
  found = {3: None, 1: None}
  for leaf in leaves.values():
    if len(leaf.shape) >= 2:
      rows, columns = leaf.shape[-2:]
      found |= {rows * n: None for n in range(1, columns + 1) if columns % n == 0}
    elif leaf.shape:
      found |= {leaf.shape[0]: None}
  return list(found)


def _same(theirs: Sequence[int], ours: Sequence[int]) -> bool:
  """Equal shapes; or a Keras depthwise kernel (H, W, C, 1); or one of the two a dense layer's, the other
  a 1x1 convolution's."""
  if len(theirs) == len(ours) == 4 and ours[2] == 1 and theirs[3] == 1:
    theirs = (*theirs[:2], 1, theirs[2])
  dense = {len(theirs), len(ours)} == {2, 4} and tuple(theirs[:-2]) + tuple(ours[:-2]) == (1, 1)
  return tuple(theirs) == tuple(ours) or (dense and tuple(theirs[-2:]) == tuple(ours[-2:]))


def _names(paths: Sequence[Path]) -> str:
  shown = ", ".join("/".join(path) for path in paths[:_SHOWN])
  return shown + (", ..." if len(paths) > _SHOWN else "")
