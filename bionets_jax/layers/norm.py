"""BatchNorm whose statistics are a stated choice: over the whole batch, or over groups of it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bionets_jax import ops
from bionets_jax.layers.conv import Initializer


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last, in whole-batch or grouped ("ghost") form.

  Under `jit` over a mesh the batch axis of x is the global batch, on however many devices it lies.
  With `groups = 1` the statistics are therefore global (synchronised). With `groups = n` the batch
  is cut into n contiguous parts that are normalised separately, as n GPUs with their own BatchNorm
  would do, on any number of devices; the running statistics take the mean over the parts.

  Variables have Flax's names: `params` scale, bias; `batch_stats` mean, var; all (features,). The
  running variance takes the biased batch variance, as Flax does and PyTorch does not.

  Statistics and the normalisation are computed in float32 at least; the result has `dtype`.

  A drop-in for `flax.linen.BatchNorm` without its `axis`, `axis_name` and `mask`.

  Where x is the result of an operation that `bionets_jax.ops` has together with the normalisation, `fused` of
  the call is that: a function of `epsilon`, `groups` and `dtype` to (y, mean, var), in place of
  `ops.batch_normalize` of x. In training it stands for x, which is then not computed.

  Attributes:
    use_running_average: normalise by the running statistics (evaluation) or by the batch's
      (training); here or in the call, not in both.
    groups: number of parts of the batch in training.
    momentum: decay of the running statistics, 1 - PyTorch's momentum.
    epsilon: added to the variance.
    dtype: of the result (default: of the input).
    param_dtype: of scale and bias.
    use_scale, use_bias: whether there are affine parameters.

  Raises:
    ValueError: in training, if the batch does not divide into the groups; if `fused` meets a scale or bias.
  """

  use_running_average: bool | None = None
  groups: int = 1
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = None
  param_dtype: Any = jnp.float32
  use_scale: bool = True
  use_bias: bool = True
  scale_init: Initializer = nn.initializers.ones_init()
  bias_init: Initializer = nn.initializers.zeros_init()

  @nn.compact
  def __call__(
      self, x: jax.Array, use_running_average: bool | None = None, *,
      fused: Callable[..., tuple[jax.Array, jax.Array, jax.Array]] | None = None,
  ) -> jax.Array:
    use_running_average = nn.merge_param(
        "use_running_average", self.use_running_average, use_running_average)
    features = x.shape[-1]
    dtype = self.dtype or x.dtype
    wide = jnp.promote_types(x.dtype, jnp.float32)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
    running_var = self.variable("batch_stats", "var", jnp.ones, (features,), jnp.float32)

    scale = self.param("scale", self.scale_init, (features,), self.param_dtype) if self.use_scale else None
    bias = self.param("bias", self.bias_init, (features,), self.param_dtype) if self.use_bias else None
    if fused and (self.use_scale or self.use_bias):
      raise ValueError(f"BatchNorm '{'/'.join(self.path)}': fused is for one with neither scale nor bias")
    if use_running_average:
      mean, var = running_mean.value.astype(wide), running_var.value.astype(wide)
      factor = jax.lax.rsqrt(var + self.epsilon)
      y = (x.astype(wide) - mean) * (factor if scale is None else factor * scale)
      y = y if bias is None else y + bias
    else:
      if x.shape[0] % self.groups:
        raise ValueError(
            f"BatchNorm '{'/'.join(self.path)}': a batch of {x.shape[0]} does not divide into "
            f"{self.groups} groups")
      how: dict[str, Any] = dict(epsilon=self.epsilon, groups=self.groups, dtype=dtype)
      y, mean, var = fused(**how) if fused else ops.batch_normalize(x, scale, bias, **how)
      if not self.is_initializing():
        keep = self.momentum
        running_mean.value = keep * running_mean.value + (1 - keep) * mean.mean(0)
        running_var.value = keep * running_var.value + (1 - keep) * var.mean(0)
    return y.astype(dtype)
