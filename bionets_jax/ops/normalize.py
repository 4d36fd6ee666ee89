"""Normalisation by the batch's own moments, with the derivative that batch norm has on paper."""

from typing import Any

import jax
import jax.numpy as jnp

from bionets_jax.ops.derivatives import own_rules, varying_alike


def batch_normalize(
    x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, *, epsilon: float, groups: int = 1,
    dtype: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalises each channel over all other axes, in parts of the batch, in float32 at least.

  Its derivative keeps x alone and takes two sums over the batch; what JAX derives from the moments keeps
  more and passes over it oftener.

  Args:
    x: (N, ..., C).
    scale, bias: (C,), or None for none.
    epsilon: added to the variance.
    groups: number of contiguous parts of the batch, each with moments of its own.
    dtype: of y (default: of x).

  Returns:
    (y, mean, var): y like x; mean and biased variance of each part, (groups, C).

  Raises:
    ValueError: if the batch does not divide into the groups.
  """
  if x.shape[0] % groups:
    raise ValueError(f"a batch of {x.shape[0]} does not divide into {groups} groups")
  affine = {key: value for key, value in (("scale", scale), ("bias", bias)) if value is not None}
  x, affine = varying_alike(x, affine)
  return (_normalize if own_rules() else _plain)(x, affine, epsilon, groups, jnp.dtype(dtype or x.dtype))


def _plain(x, affine, epsilon, groups, dtype):
  shape = x.shape
  # The axes stay as they are: in a loop over pixels that are one axis XLA on CPUs finds each pixel's place in a fused
  # operand of more axes by divisions, and sums a fused product with one thread.
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(groups, -1, *shape[1:])
  axes = tuple(range(1, x.ndim - 1))
  # One pass over x; the difference can round below zero.
  mean = x.mean(axes, keepdims=True)
  var = jnp.maximum((x * x).mean(axes, keepdims=True) - mean * mean, 0.0)
  factor = jax.lax.rsqrt(var + epsilon)
  y = (x - mean) * (factor * affine["scale"] if "scale" in affine else factor)
  if "bias" in affine:
    y = y + affine["bias"]
  return y.reshape(shape).astype(dtype), jnp.squeeze(mean, axes), jnp.squeeze(var, axes)


_normalize = jax.custom_vjp(_plain, nondiff_argnums=(2, 3, 4))


def _forward(x, affine, epsilon, groups, dtype):
  y, mean, var = _plain(x, affine, epsilon, groups, dtype)
  return (y, mean, var), (x, affine, mean, var)


def _backward(epsilon, groups, dtype, saved, cotangents):
  x, affine, mean, var = saved
  g, dmean, dvar = cotangents
  del dtype
  shape, dtype = x.shape, x.dtype
  wide = jnp.promote_types(dtype, jnp.float32)
  x, g = (a.astype(wide).reshape(groups, -1, *shape[1:]) for a in (x, g))
  axes = tuple(range(1, x.ndim - 1))
  mean, var, dmean, dvar = (jnp.expand_dims(a, axes) for a in (mean, var, dmean, dvar))
  inverse = jax.lax.rsqrt(var + epsilon)
  centred = x - mean
  sum_g, sum_gx = g.sum(axes, keepdims=True), (g * centred).sum(axes, keepdims=True)
  # dy/dx, and what flows into the moments, which are results as well: a line in x and g for each channel.
  factor = inverse * affine["scale"] if "scale" in affine else inverse
  n = x.size // (groups * shape[-1])
  slope = (2 * dvar - factor * inverse**2 * sum_gx) / n
  offset = (dmean - factor * sum_g) / n
  dx = factor * g + slope * centred + offset
  daffine = {}
  if "scale" in affine:
    daffine["scale"] = (sum_gx * inverse).sum((0, *axes)).astype(affine["scale"].dtype)
  if "bias" in affine:
    daffine["bias"] = sum_g.sum((0, *axes)).astype(affine["bias"].dtype)
  return dx.reshape(shape).astype(dtype), daffine


_normalize.defvjp(_forward, _backward)
