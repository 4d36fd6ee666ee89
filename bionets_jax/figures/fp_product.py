"""FP-nets, Figure 1: what the product of two filters sees in images, with Sobel's two filters."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from bionets_jax import ops
from bionets_jax.data.digits import DigitsSource
from bionets_jax.figures.style import SIGNED, TEXT, WIDTH, picture

SOBEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)  # responds to edges that run down
SIDE = 64
_SAMPLES = 8
_EXAMPLE = 0  # of the test digits, a five
_NOTES = (  # text, its middle, and what its arrow points at; in pixels
    ("edges:\n0", (15, 15), None), ("corners", (15, 33), ((7, 24), (23, 24))),
    ("45°: all along", (44, 31), None), ("line ends", (17, 54), ((9, 48), (27, 48))))


class Responses(NamedTuple):
  """Of Sobel's filters to an image, where they see nothing but it.

  Attributes:
    a, b: (H - 2, W - 2) float32; to edges that run down, and across.
    product: of the two, as an FP-block computes it.
  """

  a: np.ndarray
  b: np.ndarray
  product: np.ndarray


def respond(image: np.ndarray) -> Responses:
  """The responses to an image, (H, W) float32. Without padding, which would be an edge of its own."""
  x = jnp.asarray(image, jnp.float32)[None, :, :, None]
  a, b = (jnp.asarray(kernel)[:, :, None, None] for kernel in (SOBEL, SOBEL.T))
  where = dict(strides=(1, 1), padding=((0, 0), (0, 0)))
  single = [ops.depthwise_conv(x, kernel, **where) for kernel in (a, b)]
  return Responses(*(np.asarray(y)[0, :, :, 0] for y in (*single, ops.paired_depthwise_product(x, a, b, **where))))


def shapes() -> np.ndarray:
  """(64, 64) of 0..1: a square, one turned by 45 degrees, a bar, and a triangle with an edge of 60 degrees."""
  at = (np.arange(SIDE * _SAMPLES) + 0.5) / _SAMPLES
  x, y = np.meshgrid(at, at)
  image = (
      ((abs(x - 16) < 8) & (abs(y - 16) < 8)) | (abs(x - 45) + abs(y - 16) < 11)
      | ((abs(x - 18) < 9) & (abs(y - 47) < 1))
      | ((x > 38) & (y < 58) & (y - 36 > math.tan(math.radians(60)) * (x - 38))))
  return image.reshape(SIDE, _SAMPLES, SIDE, _SAMPLES).mean((1, 3)).astype(np.float32)


def digit() -> np.ndarray:
  """(80, 80) of 0..1: a handwritten digit of 8 x 8 on black, enlarged."""
  image = np.pad(DigitsSource("test").read(_EXAMPLE)[0][..., 0] / np.float32(255), 1)
  return np.clip(np.asarray(jax.image.resize(image, (80, 80), "cubic")), 0, 1)


def draw() -> Figure:
  """Drawn shapes and a digit; below each its responses and their product, all with their sign."""
  figure = Figure(figsize=(WIDTH, 4.85), layout="constrained")
  top, bottom = figure.subfigures(2, 1, height_ratios=(3.75, 1))
  image = shapes()
  found = respond(image)
  panels = top.subplots(2, 2)
  show(panels[0, 0], image, "shapes")
  show(panels[0, 1], found.a, "a: Sobel, edges that run down", 4)
  bar(show(panels[1, 0], found.b, "b: Sobel, edges that run across", 4), panels[1, 0], "response", (-4, 4))
  bar(show(panels[1, 1], found.product, "a · b", 9), panels[1, 1], "product", (-9, 9))
  _write_notes(panels[1, 1])
  image = digit()
  found = respond(image)
  panels = bottom.subplots(1, 4)
  show(panels[0], image, "a digit")
  for axes, response, title in zip(panels[1:], found, ("a", "b", "a · b"), strict=True):
    show(axes, response, title, float(np.abs(response).max()))
  bottom.supxlabel("each in a scale of its own; red > 0, blue < 0", fontsize=TEXT)
  return figure


def show(axes: Axes, image: np.ndarray, title: str, limit: float | None = None) -> AxesImage:
  """An image of 0..1 in grey; responses, with a limit, in colours around 0."""
  colours = dict(cmap="gray", vmin=0, vmax=1) if limit is None else dict(cmap=SIGNED, vmin=-limit, vmax=limit)
  picture(axes, title)
  return axes.imshow(image, interpolation="nearest", **colours)


def bar(image: AxesImage, axes: Axes, label: str, ticks: tuple[float, ...]) -> None:
  """The colours' values, below the panel."""
  colours = axes.figure.colorbar(image, ax=axes, location="bottom", pad=0.02, aspect=25, shrink=0.9, ticks=ticks)
  colours.set_label(label, fontsize=TEXT, labelpad=-6)
  colours.ax.tick_params(labelsize=TEXT, length=2, pad=1)
  colours.outline.set_linewidth(0.4)


def _write_notes(axes: Axes) -> None:
  style = dict(fontsize=TEXT, ha="center", va="center", linespacing=0.9)
  arrow = dict(arrowstyle="-", linewidth=0.5, color="0.4", shrinkA=5, shrinkB=2)
  for text, at, targets in _NOTES:
    axes.text(*at, text, **style)
    for target in targets or ():
      axes.annotate("", target, at, arrowprops=arrow)
