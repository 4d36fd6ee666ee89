"""Pure array functions behind the layers. One public function per operation; needs only jax."""

from bionets_jax.ops.compiling import compiler_options
from bionets_jax.ops.conv import conv
from bionets_jax.ops.depthwise import depthwise_conv, paired_depthwise_product
from bionets_jax.ops.derivatives import plain_derivatives
from bionets_jax.ops.fp import paired_depthwise_normalize
from bionets_jax.ops.grouped import deinterleave, grouped_pointwise, interleave
from bionets_jax.ops.ic import box_sum, ic_combine, ic_conv, ic_dense
from bionets_jax.ops.normalize import batch_normalize
from bionets_jax.ops.padding import explicit_padding

__all__ = [
    "batch_normalize", "box_sum", "compiler_options", "conv", "deinterleave", "depthwise_conv", "explicit_padding",
    "grouped_pointwise", "ic_combine", "ic_conv", "ic_dense", "interleave", "paired_depthwise_normalize",
    "paired_depthwise_product", "plain_derivatives"]
