"""FP-nets, Figure 1: the FP-block, as the layer itself says that it is."""

from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from bionets_jax.figures.style import TEXT, WIDTH
from bionets_jax.layers import Conv, DepthwisePair, FPBlock
from bionets_jax.report.curves import COLOURS

_MIDDLE = 4.0  # of the boxes, in the figure's own units
_SHADES = {Conv: COLOURS[5], DepthwisePair: COLOURS[4]}


class Step(NamedTuple):
  """One thing that happens to the array.

  Attributes:
    kind: class of the layer; None for a function without parameters.
    label: what it is.
    shape: (H, W, C) behind it.
    parameters: trainable ones.
  """

  kind: type | None
  label: str
  shape: tuple[int, ...]
  parameters: int


def steps(block: FPBlock, image_shape: tuple[int, int, int]) -> list[Step]:
  """What a block does to an array of (H, W, C), in order: read off a call of it.

  The functions between its layers are found by their values: an array that is the one before without what is
  negative has passed ReLU, one that is its 2 x 2 maxima a pool.

  Raises:
    ValueError: if something else happens between two layers.
  """
  modules = []

  @jax.jit
  def run(x):
    arrays = []

    def note(call, args, kwargs, context):
      y = call(*args, **kwargs)
      if len(context.module.path) == 1 and context.method_name == "__call__":
        modules.append(context.module.clone(parent=None))
        arrays.append((args[0], y))
      return y

    with nn.intercept_methods(note):
      y, variables = block.init_with_output(jax.random.key(1), x, train=True)
    return arrays, y, variables["params"]

  arrays, y, params = jax.device_get(run(jax.random.normal(jax.random.key(0), (2, *image_shape))))
  found = []
  for module, (_, out), following in zip(modules, arrays, [*(into for into, _ in arrays[1:]), y], strict=True):
    own = params.get(module.name, {})
    size = sum(leaf.size for leaf in jax.tree.leaves(own))
    found.append(Step(type(module), _describe(module, own), out.shape[1:], size))
    for label, function in (("ReLU", lambda a: np.maximum(a, 0)), ("max-pool 2 x 2", _max_pool)):
      if _same(out, following):
        break
      if not _same(after := function(out), out):
        out = after
        found.append(Step(None, label, out.shape[1:], 0))
    if not _same(out, following):
      raise ValueError(f"FPBlock: {module.name} is followed by something that this figure does not know")
  return found


def draw(block: FPBlock | None = None, image_shape: tuple[int, int, int] = (32, 32, 32)) -> Figure:
  """The steps from top to bottom with their shapes and parameters; the two filters of the pairs side by side.

  Args:
    block: by default the first of FP-ResNet-32 '001': 32 to 64 channels, expansion 2, with its pool.
    image_shape: (H, W, C) of its input.
  """
  block = block or FPBlock(64, expansion=2, pool=True)
  done = steps(block, image_shape)
  paired = any(step.kind is DepthwisePair for step in done)
  height = len(done) + paired  # a pair takes two rows
  figure = Figure(figsize=(WIDTH, 0.29 * (height + 2)), layout="constrained")
  axes = figure.subplots()
  axes.set(xlim=(0.4, 10.2), ylim=(-height - 0.5, 0.65))
  axes.set_axis_off()
  _shape(axes, 0.4, image_shape)
  y = 0.0
  for step in done:
    if step.kind is DepthwisePair:
      y = _draw_pair(axes, y, step, block.combine)
      continue
    _line(axes, (_MIDDLE, _MIDDLE), (y + 0.2, y))
    _box(axes, (_MIDDLE - 2, y - 0.8), 4.0, step.label, _SHADES.get(step.kind, "0.92" if step.kind else "white"))
    _beside(axes, y - 0.4, step)
    y -= 1
  _line(axes, (_MIDDLE, _MIDDLE), (y + 0.2, y))
  _shape(axes, y - 0.3, done[-1].shape)
  weights = sum(step.parameters for step in done if step.kind in _SHADES)
  rest = sum(step.parameters for step in done) - weights
  axes.set_title(f"FP-block, {image_shape[-1]} to {done[-1].shape[-1]} channels: {weights:,} weights"
                 f"{' (Eq. 4)' * paired}\nand {rest:,} parameters of batch norms", fontsize=TEXT + 0.5)
  return figure


def _same(a: np.ndarray, b: np.ndarray) -> bool:
  return a.shape == b.shape and np.allclose(a, b, atol=1e-5)  # compiled together, they are rounded apart


def _max_pool(x: np.ndarray) -> np.ndarray:
  n, height, width, channels = x.shape
  return x[:, :height // 2 * 2, :width // 2 * 2].reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


def _describe(module: nn.Module, params) -> str:
  if isinstance(module, Conv):
    return ("conv " if module.feature_group_count == 1 else "depthwise ") + _text(module.window)
  if isinstance(module, DepthwisePair):
    return "depthwise " + _text(module.kernel_size)
  return "batch norm" if params else "batch norm, not affine"


def _draw_pair(axes: Axes, y: float, step: Step, combine: str) -> float:
  """The two filters beside each other; returns where the next step begins."""
  _line(axes, (_MIDDLE, _MIDDLE), (y + 0.2, y))
  for side, name in ((-1, "a"), (1, "b")):
    middle = _MIDDLE + 1.8 * side
    _line(axes, (_MIDDLE, middle, middle), (y, y, y - 0.2))
    _box(axes, (middle - 1.7, y - 1), 3.4, f"{step.label}, {name}", _SHADES[DepthwisePair])
    _line(axes, (middle, middle, _MIDDLE), (y - 1, y - 1.45, y - 1.45))
  _beside(axes, y - 0.6, step)
  circle = dict(boxstyle="circle,pad=0.15", facecolor="white", edgecolor="0.3", linewidth=0.7)
  axes.text(_MIDDLE, y - 1.45, "×" if combine == "product" else combine, ha="center", va="center",
            fontsize=TEXT + 1, bbox=circle)
  return y - 2


def _line(axes: Axes, x: tuple[float, ...], y: tuple[float, ...]) -> None:
  axes.plot(x, y, color="0.3", linewidth=0.8, zorder=0)


def _box(axes: Axes, corner: tuple[float, float], width: float, text: str, colour: str) -> None:
  axes.add_patch(FancyBboxPatch(corner, width, 0.8, boxstyle="round,pad=0,rounding_size=0.15", facecolor=colour,
                                edgecolor="0.3", linewidth=0.7))
  axes.text(corner[0] + width / 2, corner[1] + 0.38, text, ha="center", va="center", fontsize=TEXT)


def _beside(axes: Axes, y: float, step: Step) -> None:
  parameters = f"\n{step.parameters:,} parameters" if step.parameters else ""
  axes.text(_MIDDLE + 3.7, y, _text(step.shape) + parameters, va="center", fontsize=TEXT, linespacing=1.05)


def _shape(axes: Axes, y: float, shape: tuple[int, ...]) -> None:
  axes.text(_MIDDLE, y, _text(shape), ha="center", va="center", fontsize=TEXT)


def _text(shape: tuple[int, ...]) -> str:
  return " x ".join(map(str, shape))
