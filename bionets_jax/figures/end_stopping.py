"""How much a filter, or the AND of two, prefers the corners of a square to its edges and to planes."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

SIDE, SQUARE = 32, 16  # pixels of the image and of the bright square in it
ORIENTATIONS = tuple(range(0, 90, 15))  # degrees; at 90 the square is itself again
_LARGEST = 11  # window that, turned by 45 degrees, lies between two corners
_SAMPLES = 8  # of a pixel's side, of which a turned square's pixels are the mean


class Stimulus(NamedTuple):
  """A bright square on dark, turned, and what is where in it.

  Attributes:
    image: (32, 32) float32 of 0..1.
    edges: (4, 32, 32) bool; strips along the edges where the window of a k x k filter holds a part of this edge
      and of no other.
    corners: (4, 32, 32) bool; where the strips of two edges would cross.
    planes: (2, 32, 32) bool; where the window holds nothing but the inside, and nothing but the outside.
  """

  image: np.ndarray
  edges: np.ndarray
  corners: np.ndarray
  planes: np.ndarray


def stimulus(degrees: float, kernel_size: int) -> Stimulus:
  """The square of 16 x 16 pixels in the middle of 32 x 32, turned by `degrees`, for filters of k x k."""
  cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

  def turned(n):
    at = (np.arange(SIDE * n) + 0.5) / n - SIDE / 2
    x, y = np.meshgrid(at, at)
    return cos * x + sin * y, cos * y - sin * x

  half = SQUARE / 2
  u, v = turned(_SAMPLES)
  image = ((abs(u) < half) & (abs(v) < half)).reshape(SIDE, _SAMPLES, SIDE, _SAMPLES).mean((1, 3))
  u, v = turned(1)
  # As far as the window of the filter reaches from its middle, across the turned edges. The same for corners, so
  # that what is far from an edge weighs as much in the means of both.
  reach = kernel_size / 2 * (abs(cos) + abs(sin)) - 1e-6
  corners = [(abs(u - s * half) < reach) & (abs(v - t * half) < reach) for s in (-1, 1) for t in (-1, 1)]
  edges = [(abs(p - s * half) < reach) & (abs(q) <= half - reach) for p, q in ((u, v), (v, u)) for s in (-1, 1)]
  farther = np.maximum(abs(u), abs(v)) - half
  return Stimulus(image.astype(np.float32), np.stack(edges), np.stack(corners),
                  np.stack([farther <= -reach, farther >= reach]))


def degree_of_end_stopping(respond: Callable[[jax.Array], jax.Array], kernel_size: int) -> np.ndarray:
  """1 for what responds to corners alone, 0 for what some edge or plane excites as much, -1 for these alone.

  With E the mean of the squared responses in a part of the image of a bright square turned by t, of the strongest
  of its four corners, and of the strongest of its four edges, its inside and its outside,

      D(t) = (E_corner - E_other) / (E_corner + E_other),    D = max of D(t) over t = 0, 15, ..., 75 degrees.

  The square and its three parts are those of the analysis that FP-nets' authors published later; the formula and
  the orientations are ours. A pair that ignores edges in one direction and its normal need not have it along the
  axes: Sobel's two filters have D = 1 at t = 0, and their diagonal forms at t = 45. At other orientations such
  pairs do respond to edges: D says that there are corners which the cell tells from their edges. A linear
  filter has little of it: 0.04 one of Sobel's, 0.2 a Laplacian, which responds twice as strongly to a corner.

  Args:
    respond: (N, 32, 32, 1) to (N, 32, 32, C), the responses of C cells; padded with zeros; traceable.
    kernel_size: k, of what is seen at once.

  Returns:
    (C,) float64; 0 for cells that do not respond at all.

  Raises:
    ValueError: for windows too large to see an edge of the square without its ends.
  """
  if not 1 <= kernel_size <= _LARGEST:
    raise ValueError(f"filters of {kernel_size} x {kernel_size}: the square of {SQUARE} x {SQUARE} pixels is for 1 "
                     f"to {_LARGEST}")
  stimuli = [stimulus(t, kernel_size) for t in ORIENTATIONS]
  images = np.stack([s.image for s in stimuli])[..., None]
  responses = np.asarray(jax.jit(respond)(images), np.float64)
  degrees = []
  for s, energy in zip(stimuli, responses**2, strict=True):
    corner = np.max([energy[mask].mean(0) for mask in s.corners], axis=0)
    other = np.max([energy[mask].mean(0) for mask in (*s.edges, *s.planes)], axis=0)
    total = corner + other
    degrees.append((corner - other) / np.where(total > 0, total, 1))
  return np.max(degrees, axis=0)
