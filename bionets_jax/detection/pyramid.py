"""The feature pyramid (Lin et al. 2017), as torchvision and mmdetection build it."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bionets_jax.layers import Conv

EXTRA = ("pool", "convs_on_input", "convs_on_output")


class FeaturePyramid(nn.Module):
  """Features of several resolutions, each with what the coarser ones know: [(N, H_i, W_i, C_i)] to [(N, H_i, W_i, C)].

  Two levels may follow the coarsest: 'pool' adds one, every second pixel of it (Faster R-CNN); 'convs_on_input' two, by
  3x3 convolutions of stride 2, the first on the coarsest input (mmdetection's RetinaNet); 'convs_on_output' likewise on
  the coarsest output, with a ReLU before the second (torchvision's).

  Attributes:
    extra: see above; '' for none.
    channels: C of all levels.
    dtype: of the computation.

  Raises:
    ValueError: for another `extra`.
  """

  extra: str = ""
  channels: int = 256
  dtype: Any = None

  @nn.compact
  def __call__(self, features: Sequence[jax.Array]) -> list[jax.Array]:
    if self.extra and self.extra not in EXTRA:
      raise ValueError(f"extra={self.extra!r}: give '' or one of {', '.join(map(repr, EXTRA))}")

    def conv(extent, name, stride=1):
      return Conv(self.channels, (extent, extent), strides=stride, padding=extent // 2, dtype=self.dtype,
                  kernel_init=nn.initializers.xavier_uniform(), name=name)

    sums = [conv(1, f"inner{i}")(x) for i, x in enumerate(features)]
    for i in reversed(range(len(sums) - 1)):
      sums[i] += nearest(sums[i + 1], sums[i].shape[1:3])
    levels = [conv(3, f"layer{i}")(x) for i, x in enumerate(sums)]
    if self.extra == "pool":
      levels.append(levels[-1][:, ::2, ::2])
    elif self.extra:
      last = features[-1] if self.extra == "convs_on_input" else levels[-1]
      levels.append(conv(3, "extra0", 2)(last))
      last = nn.relu(levels[-1]) if self.extra == "convs_on_output" else levels[-1]
      levels.append(conv(3, "extra1", 2)(last))
    return levels


def nearest(x: jax.Array, size: Sequence[int]) -> jax.Array:
  """x (N, h, w, C) enlarged to (N, *size, C): each pixel is the one of x that its upper left corner lies in."""
  for axis, wide in enumerate(size, start=1):
    if wide == 2 * x.shape[axis]:
      x = jnp.repeat(x, 2, axis=axis)
    elif wide != x.shape[axis]:
      x = jnp.take(x, np.arange(wide) * x.shape[axis] // wide, axis=axis)
  return x
