"""Units in a network that its owner did not write for them. `python examples/someone_elses_network.py`"""

import functools

import flax.linen as nn
import jax
import numpy as np

import bionets_jax as bn


# --- their code, as it might come from a package ----------------------------------------------------
class TheirBlock(nn.Module):
  filters: int
  norm: type

  @nn.compact
  def __call__(self, x):
    y = nn.relu(self.norm()(nn.Conv(self.filters, (3, 3), use_bias=False)(x)))
    y = self.norm()(nn.Conv(self.filters, (3, 3), use_bias=False)(y))
    if x.shape != y.shape:
      x = nn.Conv(self.filters, (1, 1), use_bias=False, name="proj")(x)
    return nn.relu(x + y)


class TheirNet(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    x = nn.relu(norm()(nn.Conv(16, (3, 3), use_bias=False, name="stem")(x)))
    for filters in (16, 32):
      x = TheirBlock(filters, norm)(x)
    return nn.Dense(10)(x.mean((1, 2)))


# --- ours -------------------------------------------------------------------------------------------
def main():
  images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
  theirs = TheirNet()
  pretrained = theirs.init(jax.random.key(1), images)

  # IC in every 3x3 convolution but the stem; alpha starts at 0, so the twin starts as their network.
  unit = functools.partial(bn.layers.ICConv, alpha="learned")
  twin = bn.transplant(theirs, unit, where=lambda path, conv: conv.kernel_size == (3, 3) and path != "stem")
  grown = bn.inherit(pretrained, twin.init(jax.random.key(2), images))
  print(grown)
  same = np.array_equal(twin.apply(grown.variables, images), theirs.apply(pretrained, images))
  print("twin starts as the network it grew from:", same)

  # Whole blocks: a function from the layer that is replaced to the one that takes its place.
  fp = bn.transplant(theirs, lambda b: bn.layers.FPBlock(b.filters, norm=b.norm), of=TheirBlock,
                     where="TheirBlock_1")
  variables = jax.eval_shape(fp.init, jax.random.key(3), images)
  print("with an FP-block:", f"{bn.count_parameters(variables):,} parameters, before",
        f"{bn.count_parameters(pretrained):,}")
  return same


if __name__ == "__main__":
  main()
