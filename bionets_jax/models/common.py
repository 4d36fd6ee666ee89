"""What the backbones share: initialisers, the last pool, endpoints, rematerialisation."""

import functools
from collections.abc import Collection

import flax.linen as nn
import jax
import jax.numpy as jnp

from bionets_jax.layers.socket import Unit

REMATS = ("", "blocks")

# PyTorch's kaiming_normal_ in its two modes, and its default for linear layers and convolutions,
# U(+-1/sqrt(fan_in)).
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
he_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int) -> nn.initializers.Initializer:
  """PyTorch's default for the bias of a layer, U(+-1/sqrt(fan_in))."""
  bound = fan_in**-0.5
  return lambda rng, shape, dtype=jnp.float32: jax.random.uniform(rng, shape, dtype, -bound, bound)


def mean_pool(x: jax.Array) -> jax.Array:
  """(N, H, W, C) to (N, C), the mean over height and width, in float32 at least.

  Raises:
    ValueError: if the strides and pools before have left nothing of the image.
  """
  _check_not_empty(x)
  return x.mean(axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


def _check_not_empty(x: jax.Array) -> None:
  if 0 in x.shape[1:3]:
    raise ValueError("the images are too small for this network: of their height and width "
                     f"{x.shape[1]} x {x.shape[2]} is left before the last pool")


def adaptive_mean_pool(x: jax.Array, side: int) -> jax.Array:
  """(N, H, W, C) to (N, side, side, C), in float32 at least: PyTorch's AdaptiveAvgPool2d.

  Pixel i is the mean over the rows (columns) from floor(i H / side) to ceil((i + 1) H / side): windows
  overlap where `side` does not divide H, and repeat where it is larger.

  Raises:
    ValueError: as `mean_pool`.
  """
  if side == 1:
    return mean_pool(x)[:, None, None]
  _check_not_empty(x)
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  for axis in (1, 2):
    size = x.shape[axis]
    if size != side:
      windows = [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
      x = jnp.concatenate(
          [jax.lax.slice_in_dim(x, *window, axis=axis).mean(axis, keepdims=True) for window in windows], axis)
  return x


def select_endpoints(
    logits: jax.Array, found: dict[str, jax.Array], wanted: bool | Collection[str]
) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
  """What a backbone returns: logits, or (logits, the endpoints asked for).

  Raises:
    ValueError: for an endpoint that the network has not.
  """
  if wanted is False:
    return logits
  if wanted is True:
    return logits, found
  wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
  if missing := [name for name in wanted if name not in found]:
    raise ValueError(f"no endpoint {missing[0]!r}; this network has {', '.join(found)}")
  return logits, {name: found[name] for name in wanted}


def rematerialised(block: Unit, remat: str) -> Unit:
  """A block as it is, or so that the backward pass keeps its input alone and computes what is inside again.

  Variables, their names, and the statistics of a step stay the same.

  Args:
    block: a module class that is called with one array, or a functools.partial of one.
    remat: 'blocks', or '' to leave it.

  Raises:
    ValueError: for another `remat`.
  """
  if remat not in REMATS:
    raise ValueError(f"remat={remat!r}: give {' or '.join(map(repr, REMATS))}")
  if not remat:
    return block
  if isinstance(block, functools.partial):
    return functools.partial(rematerialised(block.func, remat), *block.args, **block.keywords)
  return nn.remat(block)
