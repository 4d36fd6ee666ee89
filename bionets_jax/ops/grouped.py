"""Grouped 1x1 convolution without XLA's grouped convolution, and the interleaving of its channels.

XLA on CPUs computes `feature_group_count` slowly, above all its gradient: 80 to 250 times as slow as
PyTorch where each group has few outputs (1152 -> 320 channels in 64 groups: 880 ms against 4.6 ms).
As dense matrix products the same arithmetic is as fast as PyTorch's, padded with zeros or not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bionets_jax.ops.derivatives import own_rules, varying_alike
from bionets_jax.ops.kernels import choice
from bionets_jax.ops.kernels import grouped as on_gpu

# The choice between the forms, from times of forward and backward passes on two CPU cores (jax
# 0.10.2) over the grouped layers of kEffNet-B0. Ratios are to the best form of each shape:
#   compression (24 -> 4, 18 -> 3, 18 -> 5 per group): blocks of 128 1.0, of 256 1.1 to 1.3, one batched
#     product over groups 1.1 to 1.8, one dense product 1.1 to 2.6.
#   expansion (16 -> 96, 16 -> 64 per group): one batched product over groups 1.0, blocks 1.1 to 1.2,
#     one dense product 1.3 to 1.7.
# A batched product over the blocks takes 1.0 to 1.4 times a product for each. Between 5 and 64 outputs
# per group nothing was measured; accelerators were not either.
_BLOCK_CHANNELS = 128
_MANY_OUTPUTS = 48  # per group
_MAX_BLOCKS = 16  # wider blocks beyond, so that the programs of large networks stay short


def grouped_pointwise(
    x: jax.Array, kernel: jax.Array, *, groups: int, precision: lax.PrecisionLike = None
) -> jax.Array:
  """1x1 convolution in groups: output group g sees input group g, both contiguous.

  Few outputs per group: neighbouring groups are merged into block-diagonal matrices, the zeros of
  which are multiplied too (an infinite input therefore makes NaN in its neighbour groups). Many: one
  product per group, batched. One channel per group: a product of arrays. Half precision is
  accumulated in float32, which XLA does in matrix products of its own accord, and rounded once.

  Args:
    x: (..., C).
    kernel: (C // groups, features), columns in the order of the outputs.
    groups: number of channel groups.
    precision: as in `jax.lax`.

  Returns:
    (..., features), in the dtype of x.

  Raises:
    ValueError: if the channels do not divide into the groups, or the kernel has other rows.
  """
  channels, features = x.shape[-1], kernel.shape[-1]
  rows, columns = _per_group(channels, features, groups)
  if kernel.shape != (rows, features):
    raise ValueError(f"grouped_pointwise: {channels} channels in {groups} groups need a kernel of "
                     f"{(rows, features)}, got {kernel.shape}")
  if rows == 1:
    y = x[..., None] * kernel.reshape(channels, columns)
    return y.reshape(*x.shape[:-1], features)
  # Flat, because XLA on CPUs transposes the cotangent of a product with more than two dimensions.
  flat = x.reshape(-1, channels)
  how = choice.chosen(
      "grouped", x, features, groups,
      supported=precision is None and kernel.dtype == x.dtype and on_gpu.supports(x, kernel, groups=groups))
  y = _chosen(*varying_alike(flat, kernel), groups, how) if how else _product(flat, kernel, groups, precision)
  return y.reshape(*x.shape[:-1], features)


def _product(
    x: jax.Array, kernel: jax.Array, groups: int, precision: lax.PrecisionLike = None
) -> jax.Array:
  """`grouped_pointwise` of (T, C)."""
  rows, columns = kernel.shape[0], kernel.shape[1] // groups
  if columns < _MANY_OUTPUTS:
    return _merged(x, kernel, groups, tuple(precision) if isinstance(precision, list) else precision)
  y = jnp.matmul(
      x.reshape(-1, groups, rows).swapaxes(0, 1), kernel.reshape(rows, groups, columns).swapaxes(0, 1),
      precision=precision)
  return y.swapaxes(0, 1).reshape(x.shape[0], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _chosen(x, kernel, groups, how):
  return choice.either(how, functools.partial(on_gpu.product, groups=groups, interleaved=False),
                       functools.partial(_product, groups=groups), x, kernel)


def _chosen_backward(groups, how, saved, g):
  def plain(x, kernel, g):
    return jax.vjp(functools.partial(_product, groups=groups), x, kernel)[1](g)

  return choice.either(
      how, functools.partial(on_gpu.gradients, groups=groups, interleaved=False), plain, *saved, g)


_chosen.defvjp(lambda x, kernel, *static: (_chosen(x, kernel, *static), (x, kernel)), _chosen_backward)


def grouped_pointwise_reference(x: jax.Array, kernel: jax.Array, *, groups: int) -> jax.Array:
  """`grouped_pointwise` as one contraction, in the form that its definition has."""
  rows, columns = _per_group(x.shape[-1], kernel.shape[-1], groups)
  y = jnp.einsum("...gi,igo->...go", x.reshape(*x.shape[:-1], groups, rows),
                 kernel.reshape(rows, groups, columns))
  return y.reshape(*x.shape[:-1], -1)


def interleave(x: jax.Array, groups: int) -> jax.Array:
  """Deals the channels of each group out over all: with s channels per group, y[r * groups + g] = x[g * s + r].

  Args:
    x: (..., C).
    groups: number of contiguous channel groups.

  Raises:
    ValueError: if the channels do not divide into the groups.
  """
  per_group, _ = _per_group(x.shape[-1], x.shape[-1], groups)
  return x.reshape(*x.shape[:-1], groups, per_group).swapaxes(-1, -2).reshape(x.shape)


def deinterleave(x: jax.Array, groups: int) -> jax.Array:
  """The inverse of `interleave` with the same `groups`."""
  per_group, _ = _per_group(x.shape[-1], x.shape[-1], groups)
  return x.reshape(*x.shape[:-1], per_group, groups).swapaxes(-1, -2).reshape(x.shape)


def _per_group(channels: int, features: int, groups: int) -> tuple[int, int]:
  if groups < 1 or channels % groups or features % groups:
    raise ValueError(f"{channels} input channels and {features} output channels do not both divide into "
                     f"{groups} groups")
  return channels // groups, features // groups


def _merged(x: jax.Array, kernel: jax.Array, groups: int, precision: lax.PrecisionLike) -> jax.Array:
  """(T, C) times the block-diagonal matrix of the groups, in blocks of about 128 rows."""
  return (_blockwise if own_rules() else _plain_blockwise)(*varying_alike(x, kernel), groups, precision)


def _blocks(kernel: jax.Array, groups: int):
  """For each block its rows and columns, which of its entries are weights, and the matrix (rows, columns)."""
  rows, columns = kernel.shape[0], kernel.shape[1] // groups
  blocks = min(-(-groups * rows // _BLOCK_CHANNELS), _MAX_BLOCKS)
  merge = -(-groups // blocks)  # groups in a block; the last one may have fewer
  for first in range(0, groups, merge):
    n = min(merge, groups - first)
    inputs, outputs = slice(first * rows, (first + n) * rows), slice(first * columns, (first + n) * columns)
    diagonal = np.repeat(np.eye(n, dtype=bool), columns, axis=1)[:, None]
    yield inputs, outputs, diagonal, jnp.where(diagonal, kernel[:, outputs], 0).reshape(n * rows, n * columns)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _plain_blockwise(x, kernel, groups, precision):
  return _beside([jnp.matmul(x[:, inputs], matrix, precision=precision)
                  for inputs, _, _, matrix in _blocks(kernel, groups)])


_blockwise = jax.custom_vjp(_plain_blockwise, nondiff_argnums=(2, 3))


def _forward(x, kernel, groups, precision):
  return _plain_blockwise(x, kernel, groups, precision), (x, kernel)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backward(groups, precision, saved, g):
  """What JAX derives from slices is a sum of arrays as wide as x, one for each block."""
  x, kernel = saved
  dx, dkernel = [], []
  for inputs, outputs, diagonal, matrix in _blocks(kernel, groups):
    dx.append(jnp.matmul(g[:, outputs], matrix.T, precision=precision))
    product = jnp.matmul(x[:, inputs].T, g[:, outputs], precision=precision)
    dkernel.append(jnp.where(diagonal, product.reshape(len(diagonal), kernel.shape[0], -1), 0).sum(0))
  return _beside(dx), _beside(dkernel).astype(kernel.dtype)


_blockwise.defvjp(_forward, _backward)


def _beside(parts: list[jax.Array]) -> jax.Array:
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
