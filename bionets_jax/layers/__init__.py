"""Linen modules: the units and what the backbones need around them. Needs only jax and flax."""

from bionets_jax.layers.conv import Conv
from bionets_jax.layers.ic import ICConv, ICDense
from bionets_jax.layers.norm import BatchNorm

__all__ = ["BatchNorm", "Conv", "ICConv", "ICDense"]
