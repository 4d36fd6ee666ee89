"""Error against parameters, with deviations, published numbers and labels that do not lie on each other."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from bionets_jax.report.curves import COLOURS, plain
from bionets_jax.report.spread import Spread

_DISTANCES = (5, 9, 14, 20)  # of a label, in points
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))


class Point(NamedTuple):
  """A network.

  Attributes:
    parameters: their number.
    error: ours, in per cent.
    label: beside the point.
    group: in the legend; what has the same one has the same colour.
    colour, marker: as in matplotlib.
    published: (error, its deviation or None) as printed, if it is the same statistic of the same setting.
    other: whether ours is of a setting that no paper has.
  """

  parameters: int
  error: Spread
  label: str
  group: str = ""
  colour: str = COLOURS[0]
  marker: str = "o"
  published: tuple[float, float | None] | None = None
  other: bool = False


def scatter(points: Sequence[Point], *, title: str, ylabel: str, lines: bool = False) -> Figure:
  """A figure as wide as a column.

  Args:
    points: at least one.
    title: above it.
    ylabel: what the errors are.
    lines: whether the points of a group are joined, in the order of their parameters.
  """
  figure = Figure(figsize=(3.4, 3.0), layout="constrained")
  axes = figure.subplots()
  most = max(p.parameters for p in points)
  unit, name = (1e6, "millions") if most >= 2e6 else (1e3, "thousands")
  bars = dict(capsize=2, elinewidth=0.8, capthick=0.8, markersize=4.5)
  groups: dict[str, list[Point]] = {}
  for p in points:
    groups.setdefault(p.group, []).append(p)
    x = p.parameters / unit
    axes.errorbar(x, p.error.mean, yerr=p.error.std or None, color=p.colour, marker=p.marker, **bars)
    if p.published:
      axes.errorbar(x, p.published[0], yerr=p.published[1] or None, color=p.colour, marker=p.marker,
                    markerfacecolor="none", linestyle="none", **bars | dict(elinewidth=0.5, capthick=0.5))
  for group, its_points in groups.items():
    its_points = sorted(its_points)
    style = dict(color=its_points[0].colour, linewidth=0.8, alpha=0.6, zorder=1)
    if lines and len(its_points) > 1:
      axes.plot([p.parameters / unit for p in its_points], [p.error.mean for p in its_points], **style)
    if group:
      axes.plot([], [], label=group, marker="o", markersize=4.5, color=its_points[0].colour, linestyle="none")
  if any(p.published for p in points):
    axes.plot([], [], label="as published", marker="o", markersize=4.5, markerfacecolor="none", color="0.4",
              linestyle="none")
  axes.set_xlabel(f"parameters ({name})", fontsize=8)
  axes.set_ylabel(ylabel, fontsize=8)
  axes.set_title(title, fontsize=8)
  axes.tick_params(labelsize=7)
  axes.margins(0.14)
  if most > 20 * min(p.parameters for p in points):
    axes.set_xscale("log")
  plain(axes)
  if axes.get_legend_handles_labels()[0]:
    figure.legend(loc="outside lower center", ncols=3, fontsize=7, frameon=False, handletextpad=0.2,
                  columnspacing=1.2)
  figure.supxlabel(_reading(points), fontsize=6, color="0.3")
  _place_labels(axes, points, unit)
  return figure


def _reading(points: Sequence[Point]) -> str:
  counts = sorted({p.error.n for p in points})
  runs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
  text = "single runs" if counts == [1] else f"means ± sample deviation of {runs} runs"
  return text + ("; * not the setting of a paper" if any(p.other for p in points) else "")


def _place_labels(axes: Axes, points: Sequence[Point], unit: float) -> None:
  """Puts each label where it covers least: beside its point, above or below, and not far off."""
  figure = axes.figure
  renderer = FigureCanvasAgg(figure).get_renderer()
  figure.draw_without_rendering()  # lays the axes out
  inside = axes.get_window_extent(renderer)
  scale = figure.dpi / 72
  taken = []
  for p in points:
    for value, std in ((p.error.mean, p.error.std), p.published or (None, None)):
      if value is not None:
        (x, low), (_, high) = axes.transData.transform(
            [(p.parameters / unit, value - (std or 0)), (p.parameters / unit, value + (std or 0))])
        taken.append(Bbox([[x - 3 * scale, low - 3 * scale], [x + 3 * scale, high + 3 * scale]]))
  for p in points:
    text = axes.annotate(p.label + "*" * p.other, (p.parameters / unit, p.error.mean), (0, 0),
                         textcoords="offset points", fontsize=6.5, color=p.colour)
    text.set_in_layout(False)
    best = None
    for distance in _DISTANCES:
      for dx, dy in _SIDES:
        text.set(ha="left" if dx > 0 else "right" if dx < 0 else "center",
                 va="bottom" if dy > 0 else "top" if dy < 0 else "center")
        text.set_position((dx * distance, dy * distance))
        box = text.get_window_extent(renderer)
        covered = sum(_area(Bbox.intersection(box, other)) for other in taken)
        outside = _area(box) - _area(Bbox.intersection(box, inside))
        cost = covered + 2 * outside + distance * scale
        if best is None or cost < best[0]:
          best = cost, text.get_position(), text.get_ha(), text.get_va(), box
    _, position, ha, va, box = best
    text.set(position=position, ha=ha, va=va)
    taken.append(box)


def _area(box: Bbox | None) -> float:
  return 0.0 if box is None else box.width * box.height
