"""IC networks, Figure 2: what one MP neuron and one IC neuron compute of two inputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bionets_jax.figures.style import TEXT, VALUES, WIDTH, small
from bionets_jax.layers import ICDense

CORNERS = np.array([(0, 0), (0, 1), (1, 0), (1, 1)], np.float32)
_POINTS = 241  # of a side of the map


class Neuron(NamedTuple):
  """`readout(relu(layer(x)))`, for x of (..., 2).

  Attributes:
    layer: of one feature.
    params: its parameters.
    title: of the panel.
    readout: of the neuron's output f.
    value: what it is called.
  """

  layer: nn.Module
  params: dict[str, Any]
  title: str
  readout: Callable[[jax.Array], jax.Array] = lambda f: f
  value: str = "f"

  def __call__(self, x: jax.Array) -> jax.Array:
    """(...,)"""
    return self.readout(nn.relu(self.layer.apply({"params": self.params}, x))[..., 0])


def neurons() -> dict[str, Neuron]:
  """The four of the figure.

  'a', 'b' and 'c' have the paper's numbers; its b1 and b2, which the caption has the other way round than Eq. 1,
  are `bias` and `inner_bias` here. What 'c' computes is XNOR, 0 for (0, 1) and (1, 0): the paper's text has it
  the other way round, and calls it XOR. No single IC neuron with a positive hinge and a monotone activation
  computes XOR; 'd' is one, by Eq. 3, of which 1 - f does.
  """
  exact = dict(precision="highest")  # on accelerators too: the values are printed
  ic = ICDense(1, **exact)
  return {
      "a": Neuron(nn.Dense(1, **exact), _params((1, -1), bias=0), "(a) MP neuron"),
      "b": Neuron(ic, _params((1, -1), adjust=1, inner_bias=0, bias=0), "(b) IC neuron"),
      "c": Neuron(ic, _params((0.2805, 0.2805), adjust=1, inner_bias=0.6463, bias=-0.3506),
                  "(c) IC neuron as printed: XNOR"),
      "d": Neuron(ic, _params((1, 1), adjust=3, inner_bias=2, bias=-1), "(d) 1 − f of another one: XOR",
                  lambda f: 1 - f, "1−f"),
  }


def draw() -> Figure:
  """The four as maps of their values, with the lines between linear pieces; 'c' and 'd' with their corners."""
  figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
  for axes, (key, neuron) in zip(figure.subplots(2, 2).flat, neurons().items(), strict=True):
    corners = key in "cd"
    _draw_map(figure, axes, neuron, (-0.3, 1.3) if corners else (-1, 1), CORNERS if corners else CORNERS[:0])
  return figure


def evaluate(neuron: Neuron, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """What a neuron gives at points, and the number of the linear piece that each lies in: pieces differ in slope.

  Args:
    neuron: to look at.
    points: (n, 2) float32.

  Returns:
    values (n,) float32; pieces (n,) int, from 0.
  """
  values, slopes = jax.device_get(jax.jit(jax.vmap(jax.value_and_grad(neuron)))(points))
  return values, np.unique(np.round(slopes, 4), axis=0, return_inverse=True)[1]


def _params(weights: tuple[float, float], **numbers: float) -> dict[str, jax.Array]:
  kernel = jnp.asarray(weights, jnp.float32)[:, None]
  return {"kernel": kernel} | {name: jnp.full((1,), value, jnp.float32) for name, value in numbers.items()}


def _draw_map(figure: Figure, axes: Axes, neuron: Neuron, limits: tuple[float, float], marked: np.ndarray) -> None:
  side = np.linspace(*limits, _POINTS)
  # Off the lines between the pieces, where the slope is that of neither.
  points = np.stack(np.meshgrid(side + 1e-4 * np.sqrt(2), side + 1e-4 * np.sqrt(3)), axis=-1).reshape(-1, 2)
  values, pieces = (array.reshape(_POINTS, _POINTS) for array in evaluate(neuron, points.astype(np.float32)))
  if len(marked):
    _write_values(axes, marked, evaluate(neuron, marked)[0])
  image = axes.imshow(values, origin="lower", extent=(*limits, *limits), cmap=VALUES, interpolation="bilinear",
                      vmin=round(float(values.min()), 2), vmax=round(float(values.max()), 2))
  for piece in np.unique(pieces)[1:]:
    axes.contour(side, side, pieces == piece, levels=[0.5], colors="white", linewidths=0.9)
  axes.set(xlabel="$x_1$", ylabel="$x_2$", xticks=_ticks(limits), yticks=_ticks(limits))
  small(axes, f"{neuron.title}\n{pieces.max() + 1} linear pieces")
  bar = figure.colorbar(image, cax=axes.inset_axes((1.05, 0, 0.06, 1)))
  bar.ax.tick_params(labelsize=TEXT, length=2, pad=1)
  bar.ax.locator_params(nbins=5)
  bar.ax.set_title(neuron.value, fontsize=TEXT, pad=3)
  bar.outline.set_visible(False)


def _write_values(axes: Axes, points: np.ndarray, values: np.ndarray) -> None:
  box = dict(boxstyle="round,pad=0.15", facecolor="white", edgecolor="none", alpha=0.85)
  for (x, y), value in zip(points, values, strict=True):
    axes.plot(x, y, "o", markersize=3, color="white", markeredgecolor="black", markeredgewidth=0.6, zorder=3)
    axes.annotate(f"{value:.4g}" if abs(value) > 1e-6 else "0", (x, y), (0, 5 if y < 0.5 else -5),
                  textcoords="offset points", ha="center", va="bottom" if y < 0.5 else "top",
                  fontsize=TEXT, bbox=box)


def _ticks(limits: tuple[float, float]) -> list[int]:
  return [tick for tick in (-1, 0, 1) if limits[0] <= tick <= limits[1]]
