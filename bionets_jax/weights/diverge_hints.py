"""What typically makes one layer differ where all before it agree; tried out where it can be."""

from collections.abc import Callable

import numpy as np

from bionets_jax.weights.layer_outputs import Layer

_EPSILONS = (1e-3, 1e-5, 1e-6, 1e-4, 1e-2, 1e-1, 1e-7, 1e-8, 0.0)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
  """Largest absolute difference over the largest absolute value of `theirs`."""
  difference, scale = float(np.abs(ours - theirs).max(initial=0)), float(np.abs(theirs).max(initial=0))
  return difference / scale if scale else (0.0 if difference == 0 else float("inf"))


def hint(
    layer: Layer, theirs: np.ndarray, tolerance: float, *, previous: str,
    turned: Callable[[], np.ndarray] | None,
) -> str:
  """Where to look.

  Args:
    layer: the first that differs, with our output.
    theirs: the reference's, channels last.
    tolerance: to which two outputs are the same.
    previous: the layer compared before, which agrees; '' if this is the first.
    turned: for the first layer, computes its output for images with their channels reversed.
  """
  ours = layer.output
  if ours.shape != theirs.shape:
    return _of_shapes(ours.shape, theirs.shape, previous)
  if not np.isfinite(theirs).all():
    return "the reference itself is not finite there"
  if not np.isfinite(ours).all():
    return "ours is not finite: look for a variance or weight that overflows"
  if turned is not None and relative(turned(), theirs) <= tolerance:
    return "it agrees if the channels of the images are reversed (BGR for RGB)"
  between = f"what stands between {previous} and it (activation, pool, sum of branches)" if previous else \
      "the images (are they the network's own input, normalised as it expects?)"
  if layer.epsilon is not None:
    return _of_norm(layer, theirs, tolerance, between)
  if "adjust" in layer.leaves:
    return f"its alpha, the adjust kernel, or {between}"
  if len(layer.window) == 2 and max(layer.window) > 1:
    return _of_window(layer, theirs, tolerance, between)
  if ours.ndim == 2:
    return f"{between}; for a head also the order in which maps were flattened, or a transposed kernel"
  return f"{between}, its kernel (order of the axes), or its groups"


def _of_shapes(ours: tuple[int, ...], theirs: tuple[int, ...], previous: str) -> str:
  shapes = f"its shape here is {ours}, in the reference {theirs}"
  if sorted(ours) == sorted(theirs):
    return f"{shapes}: the same numbers in another order; which axis of the reference are the channels?"
  if len(ours) == len(theirs) and ours[0] == theirs[0]:
    if ours[-1] == theirs[-1]:
      pool = f", or those of a pool behind {previous}" if previous else ""
      return f"{shapes}: its strides or padding differ{pool}"
    return f"{shapes}: it has another number of channels"
  return shapes


def _of_norm(layer: Layer, theirs: np.ndarray, tolerance: float, between: str) -> str:
  ours, leaves = layer.output, layer.leaves
  if "mean" in leaves and "var" in leaves:
    bias = leaves.get("bias", np.float32(0))
    for epsilon in _EPSILONS:
      factor = np.sqrt((leaves["var"] + layer.epsilon) / (leaves["var"] + epsilon).clip(1e-30))
      if epsilon != layer.epsilon and relative((ours - bias) * factor + bias, theirs) <= tolerance:
        return f"it agrees with epsilon={epsilon:g} in place of {layer.epsilon:g}"
    axes = tuple(range(theirs.ndim - 1))
    offset = np.abs(theirs.mean(axes) - bias).max()
    if theirs.size > theirs.shape[-1] and offset <= 1e-3 * np.abs(theirs).max():
      return "the reference is normalised by the statistics of its own batch: record it in evaluation mode"
  return f"its epsilon ({layer.epsilon:g} here), scale, bias or running statistics, or {between}"


def _of_window(layer: Layer, theirs: np.ndarray, tolerance: float, between: str) -> str:
  ours = layer.output
  edges = [slice(k // 2, n - k // 2) for k, n in zip(layer.window, ours.shape[1:3], strict=True)]
  inside = (slice(None), *edges)
  if ours[inside].size and np.abs(ours[inside] - theirs[inside]).max() <= tolerance * np.abs(theirs).max():
    return "it agrees but for the border: the padding"
  if max(layer.strides, default=1) > 1:
    return ("where its stride starts: padding on both sides (PyTorch) or more of it behind (TensorFlow's "
            f"'SAME'). If not that, its kernel (order of the axes), or {between}")
  return f"its kernel (order of the axes, flipped or not), its groups, or {between}"
