"""Grouped 1x1 convolution on a GPU, with its channels interleaved as they are written.

Neighbouring groups are merged until a block has about 128 input channels; a program multiplies a tile of
pixels by the block-diagonal matrix of a block on tensor cores, and writes the columns where the interleaving
puts them: runs of as many neighbours as a block has groups.

Nothing here was measured; this is counted. T pixels, C channels in G groups, F features, m groups in a block,
b bytes an element:

    forward    m T C F / G MACs (C F / G T of them are not with zeros); (C + F) T b bytes
    backward   the same MACs for dx and for the kernel's gradient; (2 C + 3 F) T b bytes: g is read twice

A H200 has about 100 tensor-core MACs in bfloat16 for each byte that its memory moves. 1152 -> 320 in 64
groups (m = 7) needs 14, one dense product with a block-diagonal matrix 125, 480 -> 80 in 20 groups 9 and 34:
the memory is the limit but for the largest dense ones, and a kernel can win what the interleaving costs (2 F
T b bytes forward and as many backward, of (C + F) T b and (2 C + 3 F) T b) where XLA cannot fold it into a
matrix. At most about 80 % of the memory's roofline is expected; the share of bytes that lie in runs shorter
than 32 is lost to the memory's bursts.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bionets_jax.ops.kernels import tile

_BLOCK = 128  # channels, and columns of one product
_PIXELS = 64  # of a tile
_WARPS = 8  # with four, the sums of large matrices do not fit into registers


def supports(x: jax.Array, kernel: jax.Array, *, groups: int) -> bool:
  """Whether `grouped_pointwise` takes these arguments; arrays or their shapes and dtypes.

  Two to 128 channels per group, float32 or half precision.
  """
  channels, features = x.shape[-1], kernel.shape[-1]
  return (
      str(x.dtype) in tile.DTYPES and groups > 0 and not channels % groups and not features % groups
      and kernel.shape == (channels // groups, features) and 2 <= channels // groups <= _BLOCK
      and tile.addressable(x.shape, (*x.shape[:-1], features)))


def grouped_pointwise(
    x: jax.Array, kernel: jax.Array, *, groups: int, interleaved: bool = False, interpret: bool = False
) -> jax.Array:
  """`ops.grouped_pointwise`, and where `interleaved` `ops.interleave` of it, as kernels.

  Args:
    x: (..., C).
    kernel: (C // groups, features), columns in the order of the outputs before they are interleaved.
    groups: number of channel groups.
    interleaved: whether to write y[r * groups + g] for what is [g * s + r] with s features per group.
    interpret: run the kernels as JAX operations, on any device.

  Returns:
    (..., features) in the dtype of x; sums are in float32. Products of float32 numbers are as precise as
    the device's default, 10 bits of mantissa on tensor cores, as XLA's are.

  Raises:
    ValueError: on what `supports` does not.
  """
  if not supports(x, kernel, groups=groups):
    raise ValueError(f"no grouped kernel for {x.dtype} of {x.shape} with a kernel of {kernel.shape} in "
                     f"{groups} groups: see grouped.supports")
  flat = x.reshape(-1, x.shape[-1])
  y = _grouped(flat, kernel.astype(x.dtype), groups, interleaved, interpret)
  return y.reshape(*x.shape[:-1], kernel.shape[-1])


class Layout(NamedTuple):
  """How the product is cut.

  Attributes:
    pixels, groups, rows, columns: T, G, and the inputs and outputs of a group.
    merge: groups of a block.
    part: outputs of each group that one product computes.
    interleaved: the order of the results.
  """

  pixels: int
  groups: int
  rows: int
  columns: int
  merge: int
  part: int
  interleaved: bool

  @property
  def blocks(self) -> int:
    return -(-self.groups // self.merge)

  @property
  def parts(self) -> int:
    return -(-self.columns // self.part)

  @property
  def matrix(self) -> tuple[int, int]:
    """Extents of one block's matrix: powers of two, at least 16, which a tensor core needs."""
    rows, columns = self.merge * self.rows, self.merge * self.part
    return max(16, tile.power_of_two(rows)), max(16, tile.power_of_two(columns))


def _layout(x, kernel, groups: int, interleaved: bool) -> Layout:
  rows, columns = kernel.shape[0], kernel.shape[1] // groups
  merge = min(groups, _BLOCK // rows)
  return Layout(x.shape[0], groups, rows, columns, merge, min(columns, max(1, _BLOCK // merge)), interleaved)


def _matrices(kernel: jax.Array, layout: Layout) -> jax.Array:
  """The block-diagonal matrices, (blocks * parts * rows, columns); columns in the order of writing."""
  at = layout
  full = kernel.reshape(at.rows, at.groups, at.columns)
  full = jnp.pad(full, ((0, 0), (0, at.blocks * at.merge - at.groups), (0, at.parts * at.part - at.columns)))
  full = full.reshape(at.rows, at.blocks, at.merge, at.parts, at.part)
  full = full.transpose(1, 3, 2, 0, 4)[..., None]  # block, part, group, row, column, and the column's group
  full = full * jnp.asarray(np.eye(at.merge), kernel.dtype)[:, None, None, :]
  if not at.interleaved:
    full = full.swapaxes(-1, -2)
  full = full.reshape(at.blocks, at.parts, at.merge * at.rows, at.merge * at.part)
  rows, columns = at.matrix
  full = jnp.pad(full, ((0, 0), (0, 0), (0, rows - full.shape[2]), (0, columns - full.shape[3])))
  return full.reshape(-1, columns)


def _inputs(layout: Layout, block: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(channel, there is such a one) of each row of a block's matrix, (1, rows)."""
  row = lax.broadcasted_iota(jnp.int32, (1, layout.matrix[0]), 1)
  channel = block * (layout.merge * layout.rows) + row
  return channel, (row < layout.merge * layout.rows) & (channel < layout.groups * layout.rows)


def _outputs(layout: Layout, block: jax.Array, part: int | jax.Array) -> tuple[jax.Array, jax.Array]:
  """(feature, there is such a one) of each column of a block's matrix, (1, columns)."""
  column = lax.broadcasted_iota(jnp.int32, (1, layout.matrix[1]), 1)
  if layout.interleaved:
    group, output = column % layout.merge, column // layout.merge
  else:
    group, output = column // layout.part, column % layout.part
  real = column < layout.merge * layout.part
  group, output = block * layout.merge + group, part * layout.part + output
  real = real & (group < layout.groups) & (output < layout.columns)
  return (output * layout.groups + group if layout.interleaved else group * layout.columns + output), real


def _pixels(layout: Layout, number: jax.Array) -> tuple[jax.Array, jax.Array]:
  pixel = number * _PIXELS + lax.broadcasted_iota(jnp.int32, (_PIXELS, 1), 0)
  return pixel, pixel < layout.pixels


def _load(ref: Any, pixels, columns, width: int) -> jax.Array:
  """Elements of a flat (T, width) array, as it has them."""
  (pixel, real_pixel), (column, real_column) = pixels, columns
  return tile.load(ref, (pixel * width + column,), real_pixel & real_column).astype(ref.dtype)


def _store(ref: Any, pixels, columns, width: int, value: jax.Array) -> None:
  (pixel, real_pixel), (column, real_column) = pixels, columns
  tile.store(ref, (pixel * width + column,), value, real_pixel & real_column)


def _whole(number: jax.Array, extents: tuple[int, int]) -> tuple[jax.Array]:
  """The index of one of the matrices in a flat array of them."""
  rows, columns = (lax.broadcasted_iota(jnp.int32, extents, axis) for axis in (0, 1))
  return (number * (extents[0] * extents[1]) + rows * extents[1] + columns,)


def _dot(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
  """The product of two tiles, summed over an axis of each, in float32."""
  return lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), preferred_element_type=jnp.float32)


def _forward_kernel(layout: Layout, x_ref, matrix_ref, y_ref):
  block, pixels = tile.program_id(1), _pixels(layout, tile.program_id(0))
  x = _load(x_ref, pixels, _inputs(layout, block), layout.groups * layout.rows)

  def one(part, carry):
    matrix = matrix_ref[_whole(block * layout.parts + part, layout.matrix)]
    y = _dot(x, matrix, (1, 0))
    _store(y_ref, pixels, _outputs(layout, block, part), layout.groups * layout.columns, y)
    return carry

  tile.steps(layout.parts, jnp.int32(0), one)


def _dx_kernel(layout: Layout, g_ref, matrix_ref, dx_ref):
  block, pixels = tile.program_id(1), _pixels(layout, tile.program_id(0))

  def one(part, total):
    g = _load(g_ref, pixels, _outputs(layout, block, part), layout.groups * layout.columns)
    matrix = matrix_ref[_whole(block * layout.parts + part, layout.matrix)]
    return total + _dot(g, matrix, (1, 1))

  total = tile.steps(layout.parts, jnp.zeros((_PIXELS, layout.matrix[0]), jnp.float32), one)
  _store(dx_ref, pixels, _inputs(layout, block), layout.groups * layout.rows, total)


def _dmatrix_kernel(layout: Layout, turns: int, x_ref, g_ref, sums_ref):
  """Each program sums over `turns` tiles of pixels: (programs, blocks, parts, *matrix)."""
  block, part = tile.program_id(1) // layout.parts, tile.program_id(1) % layout.parts
  first = tile.program_id(0) * turns

  def turn(number, total):
    pixels = _pixels(layout, first + number)
    x = _load(x_ref, pixels, _inputs(layout, block), layout.groups * layout.rows)
    g = _load(g_ref, pixels, _outputs(layout, block, part), layout.groups * layout.columns)
    return total + _dot(x, g, (0, 0))

  total = tile.steps(turns, jnp.zeros(layout.matrix, jnp.float32), turn)
  number = (tile.program_id(0) * layout.blocks + block) * layout.parts + part
  sums_ref[_whole(number, layout.matrix)] = total


def product(
    x: jax.Array, kernel: jax.Array, *, groups: int, interleaved: bool, interpret: bool
) -> jax.Array:
  """`grouped_pointwise` of (T, C), without a derivative of its own."""
  layout = _layout(x, kernel, groups, interleaved)
  (y,) = tile.call(
      functools.partial(_forward_kernel, layout), [x.reshape(-1), _matrices(kernel, layout).reshape(-1)],
      [jax.ShapeDtypeStruct((layout.pixels * kernel.shape[1],), x.dtype)],
      grid=(-(-layout.pixels // _PIXELS), layout.blocks), warps=_WARPS, interpret=interpret,
      name="grouped_forward")
  return y.reshape(-1, kernel.shape[1])


def gradients(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, groups: int, interleaved: bool, interpret: bool
) -> tuple[jax.Array, jax.Array]:
  """The gradients of `product` with respect to x and kernel."""
  layout = _layout(x, kernel, groups, interleaved)
  matrices, pull = jax.vjp(lambda kernel: _matrices(kernel, layout), kernel.astype(jnp.float32))
  tiles = -(-layout.pixels // _PIXELS)
  (dx,) = tile.call(
      functools.partial(_dx_kernel, layout), [g.reshape(-1), matrices.astype(x.dtype).reshape(-1)],
      [jax.ShapeDtypeStruct((x.size,), x.dtype)], grid=(tiles, layout.blocks), warps=_WARPS,
      interpret=interpret, name="grouped_dx")
  # A program for several tiles of pixels: its sums are as large as a matrix.
  products = layout.blocks * layout.parts
  turns = max(1, -(-tiles * products // tile.PROGRAMS))
  programs = -(-tiles // turns)
  (sums,) = tile.call(
      functools.partial(_dmatrix_kernel, layout, turns), [x.reshape(-1), g.reshape(-1)],
      [jax.ShapeDtypeStruct((programs * matrices.size,), jnp.float32)], grid=(programs, products),
      warps=_WARPS, interpret=interpret, name="grouped_dkernel")
  (dkernel,) = pull(sums.reshape(programs, *matrices.shape).sum(0))
  return dx.reshape(x.shape), dkernel.astype(kernel.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _grouped(x, kernel, groups, interleaved, interpret):
  return product(x, kernel, groups=groups, interleaved=interleaved, interpret=interpret)


def _forward(x, kernel, groups, interleaved, interpret):
  return _grouped(x, kernel, groups, interleaved, interpret), (x, kernel)


def _backward(groups, interleaved, interpret, saved, g):
  return gradients(*saved, g, groups=groups, interleaved=interleaved, interpret=interpret)


_grouped.defvjp(_forward, _backward)
