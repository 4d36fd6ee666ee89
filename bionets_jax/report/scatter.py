"""Error or average precision against parameters, with deviations, published numbers and labels apart."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from bionets_jax.report.curves import COLOURS, plain
from bionets_jax.training.spread import Spread

_COLUMN = 8  # points that a column has room for
_DISTANCES = (5, 9, 14, 20, 30, 45)  # of a label, in points
_NEAR = 9  # without a line to it
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))


class Point(NamedTuple):
  """A network.

  Attributes:
    parameters: their number.
    value: ours, in per cent.
    label: beside the point.
    group: in the legend; what has the same one has the same colour.
    colour, marker: as in matplotlib.
    published: (value, its deviation or None) as printed, if it is the same statistic of the same setting.
    other: whether ours is of a setting that no paper has.
  """

  parameters: int
  value: Spread
  label: str
  group: str = ""
  colour: str = COLOURS[0]
  marker: str = "o"
  published: tuple[float, float | None] | None = None
  other: bool = False


def scatter(points: Sequence[Point], *, title: str, ylabel: str) -> Figure:
  """A figure as wide as a column, or as two for many points.

  Args:
    points: at least one.
    title: above it.
    ylabel: what the values are.
  """
  figure = Figure(figsize=(3.4, 3.0) if len(points) <= _COLUMN else (7.0, 4.2), layout="constrained")
  axes = figure.subplots()
  most = max(p.parameters for p in points)
  unit, name = (1e6, "millions") if most >= 2e6 else (1e3, "thousands")
  style = dict(linestyle="none", capsize=2, elinewidth=0.8, capthick=0.8, markersize=4.5)
  for p in points:
    x, (published, deviation) = p.parameters / unit, p.published or (None, None)
    axes.errorbar(x, p.value.mean, yerr=p.value.std or None, color=p.colour, marker=p.marker, **style)
    if published is not None:
      axes.update_datalim([(x, published - (deviation or 0)), (x, published + (deviation or 0))])
  if most > 20 * min(p.parameters for p in points):
    axes.set_xscale("log")
  axes.set_xlabel(f"parameters ({name})", fontsize=8)
  axes.set_ylabel(ylabel, fontsize=8)
  axes.tick_params(labelsize=7)
  axes.margins(x=0.24, y=0.14)  # for the labels
  axes.autoscale_view()
  axes.set_xlim(left=max(axes.get_xlim()[0], 0))
  axes.autoscale(False)
  plain(axes)
  for group, colour in {p.group: p.colour for p in points if p.group}.items():
    axes.plot([], [], label=group, marker="o", markersize=4.5, color=colour, linestyle="none")
  if any(p.published for p in points):
    axes.plot([], [], label="published", marker="o", markersize=4.5, markerfacecolor="none", color="0.4",
              linestyle="none")
  if axes.get_legend_handles_labels()[0]:
    figure.legend(loc="outside upper center", ncols=5, fontsize=7, frameon=False, handletextpad=0.2,
                  columnspacing=1.2)
  axes.set_title(title, fontsize=8)
  figure.supxlabel(_reading(points), fontsize=6.5, color="0.3")
  figure.draw_without_rendering()  # lays the axes out
  _place_labels(axes, points, unit, [_marks(axes, p, unit, style) for p in points])
  return figure


def _marks(axes: Axes, p: Point, unit: float, style: dict) -> list[Bbox]:
  """Draws the published number a little beside ours; returns where the two lie, in pixels."""
  scale = axes.figure.dpi / 72
  out = []
  for i, (value, std) in enumerate(((p.value.mean, p.value.std), p.published or (None, None))):
    if value is None:
      continue
    x, y = axes.transData.transform((p.parameters / unit, value))
    x += i * 4.5 * scale
    if i:
      beside = axes.transData.inverted().transform((x, y))[0]
      axes.errorbar(beside, value, yerr=std or None, color=p.colour, marker=p.marker,
                    markerfacecolor="none", **style)
    low, high = (axes.transData.transform((0, value + side * (std or 0)))[1] for side in (-1, 1))
    out.append(Bbox([[x - 3 * scale, min(low, y - 3 * scale)], [x + 3 * scale, max(high, y + 3 * scale)]]))
  return out


def _reading(points: Sequence[Point]) -> str:
  counts = sorted({p.value.n for p in points})
  runs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
  text = "single runs" if counts == [1] else f"means ± sample deviation of {runs} runs"
  return text + ("; * not the setting of a paper" if any(p.other for p in points) else "")


def _place_labels(axes: Axes, points: Sequence[Point], unit: float, marks: Sequence[list[Bbox]]) -> None:
  """Puts each label where it covers least: near its point, or far off with a line to it.

  Args:
    axes, points, unit: as in `scatter`.
    marks: what `_marks` returned for each point.
  """
  renderer = FigureCanvasAgg(axes.figure).get_renderer()
  inside = axes.get_window_extent(renderer)
  scale = axes.figure.dpi / 72
  taken = [box for boxes in marks for box in boxes]
  for p, own in zip(points, marks, strict=True):
    at, label = (p.parameters / unit, p.value.mean), p.label + "*" * p.other
    here = axes.transData.transform(at)
    others = [box for box in taken if box not in own]
    style = dict(textcoords="offset points", fontsize=6.5, color=p.colour)
    best = None
    for distance in _DISTANCES:
      for dx, dy in _SIDES:
        sides = dict(ha="left" if dx > 0 else "right" if dx < 0 else "center",
                     va="bottom" if dy > 0 else "top" if dy < 0 else "center")
        text = axes.annotate(label, at, (dx * distance, dy * distance), **style, **sides)
        box = text.get_window_extent(renderer)
        text.remove()
        covered = sum(_area(Bbox.intersection(box, other)) for other in taken)
        outside = _area(box) - _area(Bbox.intersection(box, inside))
        end = here + distance * scale * np.array([dx, dy])
        way = here + np.linspace(0, 1, 9)[:, None] * (end - here)
        crossed = sum(other.contains(*point) for other in others for point in way)
        cost = 2 * covered + 2 * outside + scale ** 2 * (40 * crossed + distance ** 2 / 10)
        if best is None or cost < best[0]:
          best = cost, (dx * distance, dy * distance), sides, box
    _, offset, sides, box = best
    line = dict(arrowstyle="-", color=p.colour, linewidth=0.4, shrinkA=0, shrinkB=3)
    far = max(map(abs, offset)) > _NEAR
    axes.annotate(label, at, offset, arrowprops=line if far else None, **style, **sides).set_in_layout(False)
    taken.append(box)


def _area(box: Bbox | None) -> float:
  return 0.0 if box is None else box.width * box.height
