"""The figure of heatmaps: a row a picture, a column a network."""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from bionets_jax.heatmaps.display import COLOURS, normalised, overlay
from bionets_jax.heatmaps.maps import Maps

MOST = 60  # rows of a figure: more would be taller than image files can be
_COLUMN, _PANEL = 3.4, 1.02  # inches: width of a column of text; least width of a panel
_GAP, _LINE = 0.08, 0.125
_FOOT = 0.62  # below the rows: colour bar and three lines
_SIZE, _SMALL = 7.0, 6.5  # of text, in points
_LONGEST = 200  # characters that are looked at
_SIDE = 128  # pixels that a small picture is enlarged to, for a smooth map over it
_ENDS = {"grad-cam": ("lowest", "highest value of each map"), "cam": ("0", "highest value of each map")}
_WRONG = ", wrong"
_NAMES = {"grad-cam": "Grad-CAM", "cam": "CAM"}


class Picture(NamedTuple):
  """A row: its name, and the label that it has, if any."""

  name: str
  label: int | None


class Column(NamedTuple):
  """A network: the lines above its column, its maps, and what it has seen, uint8 (H, W, 3) of one size."""

  names: Sequence[str]
  maps: Maps
  seen: Sequence[np.ndarray]


def draw(
    pictures: Sequence[Picture], columns: Sequence[Column], class_names: Sequence[str], *, method: str, of: str
) -> Figure:
  """The pictures as the first network sees them, and beside them each network's heatmaps over what it sees.

  As wide as a column of text for one or two networks; text of 6.5 points at least.

  Args:
    pictures: at most `MOST`.
    columns: at least one, of networks with the same classes.
    class_names: of the labels and logits.
    method: 'grad-cam' or 'cam', for the scale.
    of: what the maps are of, such as 'the predicted class', for the line below.

  Raises:
    ValueError: for more pictures.
  """
  if len(pictures) > MOST:
    raise ValueError(f"{len(pictures)} pictures: a figure has room for {MOST}")
  number = 1 + len(columns)
  panel = max((_COLUMN - (number + 1) * _GAP) / number, _PANEL)
  tall = panel * max(shown.shape[0] / shown.shape[1] for column in columns for shown in column.seen[:1])
  head = max(len(column.names) for column in columns) * _LINE + 0.1
  texts = [[says(column.maps, r, picture.label, class_names) for column in columns]
           for r, picture in enumerate(pictures)]
  lines = max(len(text) for row in texts for text in row)
  row = lines * _LINE + tall + 2 * _GAP
  width, height = number * (panel + _GAP) + _GAP, head + len(pictures) * row + _FOOT
  figure = Figure(figsize=(width, height))

  def write(x, y, text, *, size=_SIZE, room=panel, weight="normal", **style):
    figure.text(x / width, 1 - y / height, shortened(text, room, size, weight), fontsize=size, weight=weight, va="top",
                parse_math=False, **style)

  def left(i):
    return _GAP + i * (panel + _GAP)

  def show(i, top, image):
    high = panel * image.shape[0] / image.shape[1]
    axes = figure.add_axes((left(i) / width, 1 - (top + high) / height, panel / width, high / height))
    axes.imshow(image, interpolation="nearest", aspect="auto")
    axes.set_axis_off()

  for i, names in enumerate((["picture"], *(column.names for column in columns))):
    for j, name in enumerate(names):
      write(left(i), 0.06 + j * _LINE, name, size=_SMALL if j else _SIZE, weight="normal" if j else "bold")
  shares = [normalised(column.maps.values, method) for column in columns]
  for r, picture in enumerate(pictures):
    below = head + r * row + lines * _LINE
    mine = [picture.name] if picture.label is None else [picture.name, f"true: {class_names[picture.label]}"]
    for i, text in enumerate([mine, *texts[r]]):
      for j, line in enumerate(text):
        write(left(i), below - (len(text) - j) * _LINE, line, weight="bold" if line.endswith(_WRONG) else "normal")
    show(0, below, zoomed(columns[0].seen[r]))
    for i, column in enumerate(columns, start=1):
      show(i, below, overlay(zoomed(column.seen[r]), shares[i - 1][r]))
  _bar(figure, width, height)
  low, high = _ENDS[method]
  foot = height - _FOOT + 0.12
  write(_GAP, foot, low, size=_SMALL)
  write(min(width, _COLUMN) - _GAP, foot, high, size=_SMALL, room=_COLUMN - 1, ha="right")
  for j, line in enumerate((f"{_NAMES[method]} of {of}", "above each map: the predicted class, its probability")):
    write(_GAP, foot + (j + 1) * _LINE, line, size=_SMALL, room=width - 2 * _GAP)
  return figure


def says(maps: Maps, row: int, label: int | None, class_names: Sequence[str]) -> list[str]:
  """The predicted class, its probability and whether it is the true one; the map's class if that is another."""
  logits = maps.logits[row].astype(np.float64)
  shares = np.exp(logits - logits.max())
  shares /= shares.sum()
  best, of = int(logits.argmax()), int(maps.classes[row])
  verdict = "" if label is None else ", correct" if best == label else _WRONG
  lines = [class_names[best], f"{_percent(shares[best])}{verdict}"]
  return lines if of == best else [*lines, f"map: {class_names[of]}, {_percent(shares[of])}"]


def zoomed(picture: np.ndarray) -> np.ndarray:
  """A small picture enlarged by a whole number, pixel by pixel."""
  zoom = math.ceil(_SIDE / min(picture.shape[:2]))
  return np.repeat(np.repeat(picture, zoom, axis=0), zoom, axis=1)


def shortened(text: str, room: float, size: float, weight: str = "normal") -> str:
  """The text, cut to what fits into `room` inches at `size` points."""
  text = " ".join(text.split())[:_LONGEST]
  font = FontProperties(weight=weight)

  def is_long(text):
    return TextPath((0, 0), text, size=size, prop=font).get_extents().width > 72 * room

  if not text or not is_long(text):
    return text
  return text[:bisect.bisect_left(range(1, len(text)), True, key=lambda n: is_long(text[:n] + "…"))].rstrip() + "…"


def _percent(share: float) -> str:
  return "<1 %" if 0 < share < 0.01 else ">99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def _bar(figure: Figure, width: float, height: float) -> None:
  long = min(width, _COLUMN) - 2 * _GAP
  axes = figure.add_axes((_GAP / width, (_FOOT - 0.08) / height, long / width, 0.07 / height))
  bar = figure.colorbar(matplotlib.cm.ScalarMappable(cmap=COLOURS), cax=axes, orientation="horizontal", ticks=[])
  bar.outline.set_visible(False)
