"""The kernels behind `depthwise`: strips of rows that walk along the columns of an image.

A program holds a tile of lanes by channels. A lane is a strip of a few rows of one image; all lanes step from
column to column together and keep the window's columns in registers, so that every input is loaded once per
strip. Shifts along rows and columns are other variables, not other threads: nothing is exchanged between
threads before the sums over lanes at the end.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bionets_jax.ops.kernels import tile

Columns = list[list[jax.Array]]


class Plan(NamedTuple):
  """The integers that a sweep is made of.

  Attributes:
    batch, height, width, channels: of x.
    taps, strides, low, out: of the window, per axis: extents, strides, padding before, extents of the result.
    filters: 1 or 2.
    rows: of the result in a strip.
    lanes, tile_channels: of a tile; powers of two.
    turns: tiles of lanes that one program takes one after the other, into the same sums.
  """

  batch: int
  height: int
  width: int
  channels: int
  taps: tuple[int, int]
  strides: tuple[int, int]
  low: tuple[int, int]
  out: tuple[int, int]
  filters: int
  rows: int
  lanes: int
  tile_channels: int
  turns: int

  @property
  def strips(self) -> int:
    """Of one image: enough for all rows of the result, and of x."""
    return max(-(-self.out[0] // self.rows), -(-self.height // (self.rows * self.strides[0])))

  @property
  def grid(self) -> tuple[int, int]:
    tiles = -(-self.batch * self.strips // self.lanes)
    return -(-tiles // self.turns), -(-self.channels // self.tile_channels)

  def reach(self, axis: int, owned: int) -> tuple[int, int]:
    """First and last result, relative to the strip's own, that the inputs of its `owned` have a part in."""
    stride, low = self.strides[axis], self.low[axis]
    return -((self.taps[axis] - 1 - low) // stride), (stride * owned - 1 + low) // stride


class _Tile(NamedTuple):
  """Where the lanes and channels of a tile lie."""

  image: jax.Array  # (lanes, 1): of the lane
  strip: jax.Array  # (lanes, 1)
  real: jax.Array  # (lanes, 1): there is such a lane
  channel: jax.Array  # (1, tile_channels)
  real_channel: jax.Array  # (1, tile_channels)


def _channels(plan: Plan) -> tuple[jax.Array, jax.Array]:
  first = tile.program_id(1) * plan.tile_channels
  channel = first + lax.broadcasted_iota(jnp.int32, (1, plan.tile_channels), 1)
  return channel, channel < plan.channels


def _tiles(plan: Plan) -> Callable[[jax.Array], _Tile]:
  """What makes this program's tile of a turn: in a loop the interpreter knows no program's number."""
  first, channels = tile.program_id(0) * plan.turns, _channels(plan)

  def make(turn):
    lane = (first + turn) * plan.lanes + lax.broadcasted_iota(jnp.int32, (plan.lanes, 1), 0)
    return _Tile(lane // plan.strips, lane % plan.strips, lane < plan.batch * plan.strips, *channels)

  return make


class _Image(NamedTuple):
  """An array (N, height, width, C) as one row of elements, seen from a tile.

  Attributes:
    ref: reference to the flat array.
    height, width, channels: of the array.
    start: (lanes, tile_channels), offset of column 0 in row `first` of each lane.
    first: (lanes, 1), the row that row 0 stands for; before the image where it is negative.
    at: the tile.
  """

  ref: Any
  height: int
  width: int
  channels: int
  start: jax.Array
  first: jax.Array
  at: _Tile

  @classmethod
  def of(cls, ref: Any, height: int, width: int, channels: int, first: jax.Array, at: _Tile) -> "_Image":
    start = (at.image * height + first) * (width * channels) + at.channel
    return cls(ref, height, width, channels, start, first, at)

  def place(self, row: int, column: jax.Array) -> tuple[tuple[jax.Array], jax.Array]:
    """(index, mask) of one row and column of every lane."""
    inside = (self.first >= -row) & (self.first < self.height - row) & (column >= 0) & (column < self.width)
    index = self.start + (row * self.width + column) * self.channels
    return (index,), inside & self.at.real & self.at.real_channel

  def column(self, column: jax.Array, rows: Sequence[int]) -> list[jax.Array]:
    return [tile.load(self.ref, *self.place(row, column)) for row in rows]


def _weights(refs: Sequence[Any], plan: Plan) -> list[list[list[jax.Array]]]:
  """[filter][row of taps][column of taps], each (1, tile_channels), of flat (taps * C,) arrays."""
  channel, real = _channels(plan)
  height, width = plan.taps
  return [[[tile.load(ref, ((i * width + j) * plan.channels + channel,), real) for j in range(width)]
           for i in range(height)] for ref in refs]


def _responses(window: Columns, weights, row: int) -> list[jax.Array]:
  """Each filter's, of a window [column][row] from its row `row`."""
  found = []
  for weight in weights:
    total = None
    for i, taps in enumerate(weight):
      for j, tap in enumerate(taps):
        part = window[j][row + i] * tap
        total = part if total is None else total + part
    found.append(total)
  return found


def _and(responses: Sequence[jax.Array], combine: str) -> jax.Array:
  """What the filters' responses become."""
  if not combine:
    return responses[0]
  return jnp.minimum(*responses) if combine == "min" else responses[0] * responses[1]


def _and_gradients(responses: Sequence[jax.Array], g: jax.Array, combine: str) -> list[jax.Array]:
  """The gradients of `_and`. A minimum of equals gives half to either, as in JAX and PyTorch."""
  if not combine:
    return [g]
  a, b = responses
  if combine == "min":
    share = jnp.where(a < b, 1.0, jnp.where(a == b, 0.5, 0.0))
    return [g * share, g * (1.0 - share)]
  return [g * b, g * a]


def _put_sum(ref: Any, row: int, rows: int, value: jax.Array, plan: Plan) -> None:
  """Writes the sum over the lanes as this program's row of `rows` in a flat (programs * rows * C,) array."""
  channel, real = _channels(plan)
  row = tile.program_id(0) * rows + row
  tile.store(ref, (row * plan.channels + channel,), value.sum(0, keepdims=True), real)


def forward(plan: Plan, combine: str, moments: bool, *refs: Any) -> None:
  """x, kernels -> p; with `moments` also the sums of p and of p^2 of each program, (programs, 2, C)."""
  x_ref, *refs = refs
  kernel_refs, p_ref, sums_ref = refs[:plan.filters], refs[plan.filters], refs[-1]
  weights, tiles = _weights(kernel_refs, plan), _tiles(plan)
  (down, right), (height, width) = plan.strides, plan.taps
  rows = range(down * (plan.rows - 1) + height)

  def turn(number, sums):
    at = tiles(number)
    first = at.strip * plan.rows
    x = _Image.of(x_ref, plan.height, plan.width, plan.channels, first * down - plan.low[0], at)
    p = _Image.of(p_ref, *plan.out, plan.channels, first, at)

    def step(column, carry):
      window, sums = carry
      newest = right * column - plan.low[1] + width
      window = window + [x.column(newest - right + j, rows) for j in range(right)]
      for row in range(plan.rows):
        index, mask = p.place(row, column)
        value = _and(_responses(window, weights, down * row), combine).astype(p_ref.dtype)
        tile.store(p_ref, index, value, mask)
        if moments:  # of what is written, so that it has them exactly
          value = jnp.where(mask, value.astype(jnp.float32), 0.0)
          sums = [sums[0] + value, sums[1] + value * value]
      return window[right:], sums

    window = [x.column(jnp.int32(j - plan.low[1]), rows) for j in range(width - right)]
    return tile.steps(plan.out[1], (window, sums), step)[1]

  zero = jnp.zeros((plan.lanes, plan.tile_channels), jnp.float32)
  sums = tile.steps(plan.turns, [zero, zero] if moments else [], turn)
  for row, value in enumerate(sums):
    _put_sum(sums_ref, row, 2, value, plan)


def backward(plan: Plan, combine: str, line: bool, *refs: Any) -> None:
  """x, g, kernels -> dx and the kernels' gradients, summed in each program: (programs, filters, taps, C).

  With `line` a flat (3, C) array follows the kernels, and the cotangent is line[0] g + line[1] p + line[2]. A
  strip owns the rows of x that its rows of the result begin at. It computes again all responses that they
  have a part in, its neighbours' too, and adds up the kernels' gradients for its own rows of the result
  alone.
  """
  x_ref, g_ref, *refs = refs
  kernel_refs, dx_ref, sums_ref = refs[:plan.filters], refs[-2], refs[-1]
  weights, tiles = _weights(kernel_refs, plan), _tiles(plan)
  channel, real = _channels(plan)
  coefficients = [tile.load(refs[plan.filters], (i * plan.channels + channel,), real)
                  for i in range(3)] if line else None
  (down, right), (height, width) = plan.strides, plan.taps
  above, below = plan.reach(0, plan.rows)
  left, ahead = plan.reach(1, 1)
  rows = range(down * (below - above) + height)
  columns = max(-(-plan.width // right), plan.out[1] - ahead)

  def turn(number, sums):
    at = tiles(number)
    first = at.strip * plan.rows
    x = _Image.of(x_ref, plan.height, plan.width, plan.channels, (first + above) * down - plan.low[0], at)
    g = _Image.of(g_ref, *plan.out, plan.channels, first, at)
    dx = _Image.of(dx_ref, plan.height, plan.width, plan.channels, first * down, at)

    def cotangents(window, column):
      """[row][filter] of one column of the result."""
      found = []
      for row in range(above, below + 1):
        responses = _responses(window, weights, down * (row - above))
        index, mask = g.place(row, column)
        value = tile.load(g_ref, index, mask)
        if line:  # which outside of the result is not zero
          p = _and(responses, combine).astype(g_ref.dtype).astype(jnp.float32)
          value = jnp.where(mask, coefficients[0] * value + coefficients[1] * p + coefficients[2], 0.0)
        found.append(_and_gradients(responses, value, combine))
      return found

    def step(column, carry):
      # `column`: of the strip's own columns. The newest column of the result is `ahead` of it.
      window, flows, sums = carry
      newest = right * (column + ahead) - plan.low[1] + width
      window = window + [x.column(newest - right + j, rows) for j in range(right)]
      flows = flows + [cotangents(window, column + ahead)]
      for row in range(plan.rows):
        sums = [total + window[j][down * (row - above) + i] * flows[-1][row - above][f]
                for total, (f, i, j) in zip(sums, taps, strict=True)]
      for row in range(down * plan.rows):
        for own in range(right):
          index, mask = dx.place(row, right * column + own)
          tile.store(dx_ref, index, _to_input(flows, row, own), mask)
      return window[right:], flows[1:], sums

    def _to_input(flows, row, own):
      total = jnp.zeros((plan.lanes, plan.tile_channels), jnp.float32)
      for f, i, j in taps:
        to_row, to_column = row + plan.low[0] - i, own + plan.low[1] - j
        if to_row % down == 0 and to_column % right == 0:
          total = total + weights[f][i][j] * flows[to_column // right - left][to_row // down - above][f]
      return total

    # The columns of the result before the first, which have no cotangents.
    window = [x.column(jnp.int32(j - plan.low[1]), rows) for j in range(width - right)]
    zero = jnp.zeros((plan.lanes, plan.tile_channels), jnp.float32)
    flows = [[[zero] * plan.filters for _ in range(above, below + 1)] for _ in range(left, ahead)]
    return tile.steps(columns + ahead, (window, flows, sums), step, start=-ahead)[2]

  taps = [(f, i, j) for f in range(plan.filters) for i in range(height) for j in range(width)]
  zero = jnp.zeros((plan.lanes, plan.tile_channels), jnp.float32)
  sums = tile.steps(plan.turns, [zero] * len(taps), turn)
  for row, value in enumerate(sums):
    _put_sum(sums_ref, row, len(taps), value, plan)
