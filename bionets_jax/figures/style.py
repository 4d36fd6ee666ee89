"""What the figures share: their width, and text that can be read at it."""

from matplotlib.axes import Axes

WIDTH = 3.4  # inches, of a column
TEXT = 6.5  # points
SIGNED = "RdBu_r"  # colour map of values around 0
VALUES = "viridis"


def small(axes: Axes, title: str = "") -> None:
  """Text of the size that a column has room for."""
  axes.tick_params(labelsize=TEXT, length=2, pad=2)
  for label in (axes.xaxis.label, axes.yaxis.label):
    label.set_size(TEXT + 0.5)
  if title:
    axes.set_title(title, fontsize=TEXT + 0.5, pad=3)


def picture(axes: Axes, title: str = "") -> None:
  """Without ticks: what is shown is an image."""
  axes.set(xticks=[], yticks=[])
  small(axes, title)
