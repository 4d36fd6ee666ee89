"""Anchors: the boxes that a dense detector's predictions are differences from."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Anchors:
  """Anchors of several sizes and ratios, centred on the upper left corner of each cell of each level.

  Their order is that of torchvision and of mmdetection: level, row, column, ratio, size.

  Attributes:
    strides: of the levels, pixels of the image per cell.
    sizes: for each level the square roots of the anchors' areas, in pixels.
    ratios: height over width.
    rounded: to whole pixels, as torchvision does and mmdetection does not.
    fitted: a level's anchors lie as far apart as the image's height (width) has pixels for each row (column) of its
      features, rounded down, as in torchvision: 61 and not 64 pixels, for 13 rows of an image of 800. If not, a
      stride apart, as in mmdetection.
  """

  strides: tuple[int, ...]
  sizes: tuple[tuple[float, ...], ...]
  ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
  rounded: bool = False
  fitted: bool = False

  def __post_init__(self):
    if len(self.strides) != len(self.sizes):
      raise ValueError(f"Anchors: {len(self.strides)} strides and sizes for {len(self.sizes)} levels")
    if len({len(sizes) for sizes in self.sizes}) != 1:
      raise ValueError(f"Anchors: sizes={self.sizes}: each level needs as many")

  @property
  def per_cell(self) -> int:
    return len(self.sizes[0]) * len(self.ratios)

  def shapes(self, image: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of each level's features for images of (height, width)."""
    return tuple((-(-image[0] // s), -(-image[1] // s)) for s in self.strides)

  def __call__(self, image: Sequence[int]) -> list[np.ndarray]:
    """For each level float32 (rows * columns * per_cell, 4), computed when it is called and not on the device.

    Args:
      image: (height, width) in pixels.
    """
    made = []
    for shape, stride, sizes in zip(self.shapes(image), self.strides, self.sizes, strict=True):
      apart = tuple(side // cells for side, cells in zip(image, shape, strict=True)) if self.fitted else (stride,) * 2
      made.append(_grid(shape, apart, self._cell(sizes)))
    return made

  def _cell(self, sizes: Sequence[float]) -> np.ndarray:
    """Those of one cell, (per_cell, 4), around 0."""
    # In float32, since torchvision rounds what it computes in float32.
    root = np.sqrt(np.asarray(self.ratios, np.float32))
    side = np.asarray(sizes, np.float32)
    height, width = (root[:, None] * side).ravel(), ((1 / root)[:, None] * side).ravel()
    cell = np.stack([-width, -height, width, height], axis=1) / 2
    return np.round(cell) if self.rounded else cell


def _grid(shape: Sequence[int], apart: Sequence[int], cell: np.ndarray) -> np.ndarray:
  y, x = np.mgrid[:shape[0], :shape[1]].reshape(2, -1).astype(np.float32) * np.array(apart, np.float32)[:, None]
  return (np.stack([x, y, x, y], axis=1)[:, None] + cell).reshape(-1, 4)


def octaves(base: float, number: int) -> tuple[float, ...]:
  """`number` sizes from `base` on, within a factor of two."""
  return tuple(base * 2 ** (i / number) for i in range(number))
