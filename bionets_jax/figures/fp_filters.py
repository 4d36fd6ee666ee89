"""FP-nets, Figure 1 in what a network has learned: its filter pairs, their angles, and their end-stopping."""

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from bionets_jax import ops
from bionets_jax.figures.end_stopping import degree_of_end_stopping
from bionets_jax.figures.filters import draw_pairs, pairs_height, spread_over_angles
from bionets_jax.figures.fp_product import shapes, show
from bionets_jax.figures.pairs import Pairs, find_pairs, pair_layers, random_angle_density
from bionets_jax.figures.style import TEXT, WIDTH, small
from bionets_jax.layers import DepthwisePair
from bionets_jax.report.curves import COLOURS, STYLES, plain
from bionets_jax.weights import Loaded

_SHOWN = 18  # pairs
_MOST = 3  # layers whose angles are drawn apart
_RANDOM = 1000  # pairs that the learned ones are compared with
_GREY = "0.35"


def draw(loaded: Loaded) -> Figure:
  """Pairs of the first layer that has some, what one of them sees, and of all layers the angles and the degrees of
  end-stopping.

  The degrees (see `end_stopping`) stand beside those of the same filters each with itself, which have the power
  of a product but no AND, and of pairs of independent Gaussian filters.

  Args:
    loaded: an FP-network.

  Raises:
    ValueError: a network without filter pairs.
  """
  layers = find_pairs(loaded.variables)
  if not layers:
    raise ValueError(f"{loaded.source}: {loaded.name} has no filter pairs; give the weights of an FP-network")
  units = pair_layers(loaded.model, loaded.variables, loaded.image_shape)
  shown = spread_over_angles(layers[0], _SHOWN)
  heights = (pairs_height(len(shown)), 1.1, 1.75)
  figure = Figure(figsize=(WIDTH, sum(heights) + 0.25), layout="constrained")
  top, middle, bottom = figure.subfigures(3, 1, height_ratios=heights)
  draw_pairs(top.subplots(), layers[0], shown)
  learned, alone, random = _measure(layers, units)
  _draw_responses(middle, units[layers[0].path], layers[0], learned[:layers[0].count])
  angles, stopping = bottom.subplots(1, 2)
  _draw_angles(angles, layers)
  _draw_degrees(stopping, learned, alone, random)
  figure.suptitle(f"{loaded.name}, {_name(loaded.source)}", fontsize=TEXT + 1)
  return figure


def degrees(unit: DepthwisePair, a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Of each pair, (C,), combined as `unit` combines.

  Args:
    unit: of stride 1.
    a, b: (k, k, C).
  """
  params = {"kernel_a": a[:, :, None], "kernel_b": b[:, :, None]}
  return degree_of_end_stopping(
      lambda x: unit.apply({"params": params}, jnp.broadcast_to(x, (*x.shape[:-1], a.shape[-1]))), a.shape[0])


def _measure(layers: list[Pairs], units: dict[str, DepthwisePair]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Degrees of all pairs in order, of all filters each with itself, and of random pairs."""
  learned, alone, random = [], [], np.zeros(0)
  for i, layer in enumerate(layers):
    k, n = layer.a.shape[0], layer.count
    others = np.random.default_rng(0).standard_normal((2, k, k, _RANDOM if i == 0 else 0)).astype(np.float32)
    # All at once: every number of channels is a program of its own.
    a = np.concatenate([layer.a, layer.a, layer.b, others[0]], axis=-1)
    b = np.concatenate([layer.b, layer.a, layer.b, others[1]], axis=-1)
    found = degrees(units[layer.path], a, b)
    learned.append(found[:n])
    alone.append(found[n:3 * n])
    random = found[3 * n:] if i == 0 else random
  return np.concatenate(learned), np.concatenate(alone), random


def _draw_responses(figure: SubFigure, unit: DepthwisePair, layer: Pairs, measured: np.ndarray) -> None:
  """Shapes, and what the layer's most end-stopped pair makes of them."""
  i = int(measured.argmax())
  image = shapes()
  kernels = [kernel[:, :, None, i:i + 1] for kernel in (layer.a, layer.b)]
  x = jnp.asarray(image)[None, :, :, None]
  k = layer.a.shape[0]
  where = dict(strides=(1, 1), padding=((k // 2,) * 2,) * 2)
  seen = [ops.depthwise_conv(x, jnp.asarray(kernel), **where) for kernel in kernels]
  seen.append(unit.apply({"params": dict(zip(("kernel_a", "kernel_b"), kernels, strict=True))}, x))
  panels = figure.subplots(1, 4)
  show(panels[0], image, "shapes")
  result = "a · b" if unit.combine == "product" else f"{unit.combine}(a, b)"
  titles = ("a", "b", result + (", normed" if unit.branch else ""))
  for axes, response, title in zip(panels[1:], seen, titles, strict=True):
    response = np.asarray(response)[0, :, :, 0]
    show(axes, response, title, float(np.abs(response).max()))
  figure.supxlabel(f"the most end-stopped pair of {_block(layer)}: {layer.angles()[i]:.0f}°, degree "
                   f"{measured[i]:.2f}", fontsize=TEXT)


def _draw_angles(axes: Axes, layers: list[Pairs]) -> None:
  edges = np.linspace(0, 180, 19)
  angles = {_block(layer): layer.angles() for layer in layers}
  if len(layers) > _MOST:
    angles = {"all layers": np.concatenate(list(angles.values()))}
  for i, (label, found) in enumerate(angles.items()):
    axes.hist(found, edges, weights=np.full(len(found), 100 / len(found)), histtype="step", color=COLOURS[i],
              linestyle=STYLES[i], linewidth=1.1, label=f"{label} ({len(found)})")
  degrees = np.linspace(0, 180, 181)
  weights = layers[0].a.shape[0] ** 2
  axes.plot(degrees, 100 * edges[1] * random_angle_density(degrees, weights), color=_GREY, linewidth=0.9,
            linestyle=":", label=f"random: sin$^{{{weights - 2}}}$")
  axes.set(xlabel="angle of the two filters (°)", ylabel="pairs per 10° (%)", xticks=(0, 45, 90, 135, 180))
  axes.set_ylim(top=axes.get_ylim()[1] * 1.45)  # for the legend
  _finish(axes)


def _draw_degrees(axes: Axes, learned: np.ndarray, alone: np.ndarray, random: np.ndarray) -> None:
  for values, colour, style, width, label in (
      (learned, COLOURS[0], "-", 1.3, f"pairs ({len(learned)})"),
      (alone, COLOURS[1], "--", 1.0, "each filter with itself"), (random, _GREY, ":", 1.0, "random pairs")):
    axes.plot(np.sort(values), np.linspace(0, 100, len(values)), color=colour, linestyle=style, linewidth=width,
              label=label)
  axes.set(xlabel="degree of end-stopping", ylabel="share up to this degree (%)", xlim=(-1, 1), xticks=(-1, 0, 1),
           ylim=(0, 140), yticks=(0, 25, 50, 75, 100))
  _finish(axes)


def _finish(axes: Axes) -> None:
  plain(axes)
  small(axes)
  axes.legend(frameon=False, fontsize=TEXT, loc="upper left", handlelength=1.4, borderaxespad=0, labelspacing=0.2)


def _block(layer: Pairs) -> str:
  return layer.path.removesuffix("/filters")


def _name(source: str) -> str:
  return source.rstrip("/").rsplit("/", 1)[-1]
