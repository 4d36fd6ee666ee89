"""What stands in the middle of an FP-block: two depthwise filters, their AND, and batch norm of it."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bionets_jax.ops.depthwise import paired_depthwise_product
from bionets_jax.ops.derivatives import varying_alike
from bionets_jax.ops.kernels import choice
from bionets_jax.ops.kernels import depthwise as on_gpu
from bionets_jax.ops.normalize import batch_normalize
from bionets_jax.ops.padding import Pads


def paired_depthwise_normalize(
    x: jax.Array,
    kernel_a: jax.Array,
    kernel_b: jax.Array,
    *,
    epsilon: float,
    strides: Sequence[int] = (1, 1),
    padding: Pads = ((1, 1), (1, 1)),
    combine: str = "product",
    groups: int = 1,
    dtype: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`batch_normalize` of `paired_depthwise_product`, without scale and bias (FP-nets, section 2).

  As kernels, where they are chosen and there is one group, each direction takes one pass less over the products.

  Args:
    x, kernel_a, kernel_b, strides, padding, combine: as in `paired_depthwise_product`.
    epsilon, groups, dtype: as in `batch_normalize`.

  Returns:
    (y, mean, var): y (N, *out, C); mean and biased variance of the products of each part of the batch, (groups, C).

  Raises:
    ValueError: as the two raise.
  """
  where = _Where(tuple(strides), tuple((low, high) for low, high in padding), combine)
  supported = groups == 1 and jnp.dtype(dtype or x.dtype) == x.dtype and on_gpu.supports(
      x, kernel_a, strides=strides, padding=padding)
  how = choice.chosen("normalize", x, *kernel_a.shape[:-2], *strides, supported=supported)
  # Also for what it raises.
  product = functools.partial(
      paired_depthwise_product, strides=where.strides, padding=where.padding, combine=where.combine)
  if not how:
    return batch_normalize(product(x, kernel_a, kernel_b), None, None, epsilon=epsilon, groups=groups, dtype=dtype)
  jax.eval_shape(product, x, kernel_a, kernel_b)
  return _normalize(*varying_alike(x, (kernel_a, kernel_b)), where, epsilon, how)


class _Where(NamedTuple):
  """What says which pixels are combined, and how."""

  strides: tuple[int, ...]
  padding: Pads
  combine: str


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _normalize(x, kernels, where, epsilon, how):
  return _forward(x, kernels, where, epsilon, how)[0]


def _forward(x, kernels, where, epsilon, how):
  def plain(x, kernels):
    p = paired_depthwise_product(x, *kernels, **where._asdict())
    return *batch_normalize(p, None, None, epsilon=epsilon), p

  y, mean, var, p = choice.either(
      how, functools.partial(on_gpu.normalize, epsilon=epsilon, **where._asdict()), plain, x, kernels)
  return (y, mean, var), (x, kernels, p, mean, var)


def _backward(where, epsilon, how, saved, cotangents):
  def plain(x, kernels, p, mean, var, cotangents):
    del mean, var
    (dp,) = jax.vjp(lambda p: batch_normalize(p, None, None, epsilon=epsilon), p)[1](cotangents)
    return jax.vjp(lambda x, kernels: paired_depthwise_product(x, *kernels, **where._asdict()), x, kernels)[1](dp)

  return choice.either(
      how, functools.partial(on_gpu.normalize_gradients, epsilon=epsilon, **where._asdict()), plain, *saved, cotangents)


_normalize.defvjp(_forward, _backward)
