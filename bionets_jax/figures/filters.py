"""Pictures of filters: of a network's first layer, and of the pairs of its FP-blocks."""

import math
from typing import Any

import matplotlib
import numpy as np
from flax.traverse_util import flatten_dict
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bionets_jax.figures.pairs import Pairs, find_pairs
from bionets_jax.figures.style import SIGNED, TEXT, WIDTH

_MOST = 64  # patches of the first layer
_COLUMNS = 8
_MOST_PAIRS = 12  # of a layer
_PAIR_COLUMNS = 6
_SCALE = 8  # points of a tile for each weight, so that gaps can be narrower than a weight


def draw_filters(loaded: Any) -> Figure | None:
  """The filters of the first convolution, as wide as a column; of FP-networks also filter pairs of each layer.

  Filters of three channels are patches of RGB, others one grey patch for each channel; 0 is mid-grey, and each
  patch is divided by its largest weight. Of many filters the first are shown, 64 patches; of pairs 12, evenly from
  the smallest to the largest angle.

  Args:
    loaded: a `weights.Loaded` or `detection.LoadedDetector`, or anything with such `variables`.

  Returns:
    None for a network that has neither a first convolution named `stem_conv` nor pairs.
  """
  kernel = first_kernel(loaded.variables)
  pairs = find_pairs(loaded.variables)
  if kernel is None and not pairs:
    return None
  parts = []  # (inches, how it is drawn)
  if kernel is not None:
    of = kernel.shape[3]
    kernel = kernel[..., :max(_MOST // (1 if kernel.shape[2] == 3 else kernel.shape[2]), 1)]
    tiles = _tiles(kernel)
    parts.append((_height(len(tiles), _COLUMNS), lambda axes: _draw_first(axes, kernel, tiles, of)))
  for layer in pairs:
    shown = spread_over_angles(layer, _MOST_PAIRS)
    parts.append((pairs_height(len(shown)), lambda axes, layer=layer, shown=shown: draw_pairs(axes, layer, shown)))
  heights = [height for height, _ in parts]
  figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
  panels = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
  for axes, (_, draw) in zip(panels, parts, strict=True):
    draw(axes)
  return figure


def first_kernel(variables: Any) -> np.ndarray | None:
  """Of the first convolution, (k, k, C, features) float32; None without a layer `stem_conv`."""
  for path, leaf in flatten_dict(variables["params"]).items():
    if path[-2:] == ("stem_conv", "kernel"):
      return np.asarray(leaf, np.float32)
  return None


def draw_pairs(axes: Axes, layer: Pairs, shown: np.ndarray) -> None:
  """Pairs of a layer side by side, red above 0 and blue below, with their angles in degrees.

  Args:
    axes: to draw in.
    layer: whose pairs.
    shown: which of them, in this order.
  """
  colours = matplotlib.colormaps[SIGNED]
  tiles = []
  for i in shown:
    a, b = (colours(0.5 + 0.5 * _scaled(kernel[..., i]))[..., :3] for kernel in (layer.a, layer.b))
    a, b = _framed(a), _framed(b)
    tiles.append(np.concatenate([a, np.ones((len(a), _SCALE // 2, 3)), b], axis=1))
  gap = (2 * _SCALE, int(1.5 * _SCALE))
  columns = min(_PAIR_COLUMNS, len(tiles))
  axes.imshow(_mosaic(tiles, columns, gap), interpolation="nearest")
  angles = layer.angles()
  height, width = tiles[0].shape[:2]
  for place, i in enumerate(shown):
    row, column = divmod(place, columns)
    angle = "-" if np.isnan(angles[i]) else f"{angles[i]:.0f}°"  # a filter of zeros has no direction
    axes.text(column * (width + gap[1]) + width / 2, row * (height + gap[0]) + height, angle, ha="center", va="top",
              fontsize=TEXT)
  k = layer.a.shape[0]
  of = f"{len(shown)} of {layer.count}" if len(shown) < layer.count else f"{layer.count}"
  _titled(axes, f"{layer.path}: {of} pairs of {k} x {k}\nred > 0, blue < 0; below, the angle between the two")


def spread_over_angles(layer: Pairs, most: int) -> np.ndarray:
  """Indices of at most `most` pairs, evenly from the smallest to the largest angle."""
  by_angle = np.argsort(layer.angles(), kind="stable")
  return by_angle[np.linspace(0, layer.count - 1, min(most, layer.count)).round().astype(int)]


def pairs_height(pairs: int) -> float:
  return 0.1 + _height(pairs, _PAIR_COLUMNS, 0.63)  # a second line of title, and the angles


def _height(tiles: int, columns: int, ratio: float = 1.0) -> float:
  """Inches of a panel that is a column wide: its tiles, and a line of title."""
  return 0.22 + math.ceil(tiles / columns) * ratio * WIDTH / min(columns, max(tiles, 4))


def _tiles(kernel: np.ndarray) -> list[np.ndarray]:
  """RGB of 0..1, one for each filter of three channels; else one for each filter and channel."""
  if kernel.shape[2] == 3:
    return [_framed(0.5 + 0.5 * _scaled(kernel[..., i])) for i in range(kernel.shape[3])]
  return [_framed(np.repeat(0.5 + 0.5 * _scaled(kernel[:, :, c, i])[..., None], 3, axis=2))
          for i in range(kernel.shape[3]) for c in range(kernel.shape[2])]


def _draw_first(axes: Axes, kernel: np.ndarray, tiles: list[np.ndarray], of: int) -> None:
  axes.imshow(_mosaic(tiles, min(_COLUMNS, len(tiles)), (_SCALE // 2,) * 2), interpolation="nearest")
  k, _, channels, features = kernel.shape
  shown = f"{features} of {of}" if features < of else f"{of}"
  _titled(axes, f"stem_conv: {shown} filters of {k} x {k} x {channels}; mid-grey is 0")


def _mosaic(tiles: list[np.ndarray], columns: int, gap: tuple[int, int]) -> np.ndarray:
  """Tiles of one shape in rows on white, with gaps between them."""
  height, width = tiles[0].shape[0] + gap[0], tiles[0].shape[1] + gap[1]
  rows = math.ceil(len(tiles) / columns)
  image = np.ones((rows * height - gap[0], columns * width - gap[1], 3))
  for place, tile in enumerate(tiles):
    row, column = divmod(place, columns)
    image[row * height:row * height + tile.shape[0], column * width:column * width + tile.shape[1]] = tile
  return image


def _scaled(weights: np.ndarray) -> np.ndarray:
  """-1..1; zeros stay."""
  return weights / max(np.abs(weights).max(), np.finfo(np.float32).tiny)


def _framed(tile: np.ndarray) -> np.ndarray:
  """Enlarged, in a thin frame: a weight may have the page's colour."""
  tile = np.kron(tile, np.ones((_SCALE, _SCALE, 1)))
  return np.pad(tile, ((1, 1), (1, 1), (0, 0)), constant_values=0.55)


def _titled(axes: Axes, title: str) -> None:
  axes.set_axis_off()
  axes.set_title(title, fontsize=TEXT + 0.5, loc="left", pad=3)
