"""Pure array functions behind the layers. One public function per operation; needs only jax."""

from bionets_jax.ops.conv import conv, explicit_padding
from bionets_jax.ops.ic import box_sum, ic_combine, ic_conv, ic_dense

__all__ = ["box_sum", "conv", "explicit_padding", "ic_combine", "ic_conv", "ic_dense"]
