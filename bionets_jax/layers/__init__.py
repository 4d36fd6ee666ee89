"""Linen modules: the units and what the backbones need around them. Needs only jax and flax."""

from bionets_jax.layers.conv import Conv
from bionets_jax.layers.fp import DepthwisePair, FPBlock
from bionets_jax.layers.grouped_pointwise import GroupedPointwise, group_count
from bionets_jax.layers.ic import ICBranch, ICConv, ICDense
from bionets_jax.layers.norm import BatchNorm
from bionets_jax.layers.squeeze_excite import SqueezeExcite

__all__ = [
    "BatchNorm", "Conv", "DepthwisePair", "FPBlock", "GroupedPointwise", "ICBranch", "ICConv",
    "ICDense", "SqueezeExcite", "group_count"]
