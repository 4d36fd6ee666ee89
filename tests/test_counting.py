"""Counting: what counts as a layer, and ptflops' convention against the numbers that the IC paper prints."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import bionets_jax as bn
from bionets_jax.counting import count_layers, count_macs
from bionets_jax.layers import BatchNorm, Conv, ICConv, ICDense

# IC networks, Tables 1 and 3: ptflops 0.6.4 on the PyTorch models, of which the paper prints the giga.
PTFLOPS = {
    "resnet18": (1_822_177_768, 1.82), "resnet34": (3_675_629_032, 3.68),
    "resnet50": (4_121_925_096, 4.12), "resnet101": (7_849_500_136, 7.85),
    "ic_resnet18": (2_011_441_640, 2.01), "ic_resnet34": (4_072_922_600, 4.07),
    "ic_resnet50": (4_330_205_672, 4.33), "ic_resnet50_b": (5_271_708_136, 5.27),
    "ic_resnet50_c": (6_104_830_440, 6.10)}


@pytest.mark.parametrize("name", PTFLOPS)
def test_ptflops_of_the_imagenet_networks(name):
  exact, printed = PTFLOPS[name]
  assert count_macs(bn.create_model(name), 224, convention="ptflops") == exact
  assert round(exact / 1e9, 2) == printed


class Pieces(nn.Module):
  """One of everything that a convention counts or leaves out."""

  @nn.compact
  def __call__(self, x, train=False):  # 8 x 8 x 3
    x = Conv(4, (3, 3), padding=1, name="plain")(x)
    x = nn.relu(BatchNorm(use_running_average=not train)(x))
    x = nn.max_pool(x, (2, 2), strides=(2, 2))  # 4 x 4 x 4
    x = ICConv(6, (3, 3), padding=1, alpha="learned", name="ic")(x)
    x = nn.BatchNorm(use_running_average=not train, use_scale=False, use_bias=False)(x)
    x = nn.swish(x) * nn.sigmoid(x) + jnp.maximum(x, x)
    x = nn.avg_pool(x, (2, 2), strides=(2, 2))  # 2 x 2 x 6
    x = nn.Conv(2, (1, 1), use_bias=False)(nn.relu6(x))
    x = x.mean((1, 2))
    x = ICDense(5, use_inner_bias=False)(x)
    return nn.Dense(10)(x)


def test_the_pieces_of_both_conventions_by_hand():
  model = Pieces()
  macs = [64 * 4 * 27, 16 * 6 * (36 + 4), 4 * 2 * 6, 5 * (2 + 1), 50]
  assert [layer.macs for layer in count_layers(model, 8)] == macs
  assert count_macs(model, 8) == sum(macs)
  box = 16 * 4 * 9
  assert count_macs(model, 8, include_box=True) == sum(macs) + box

  biases = 64 * 4 + 2 * 16 * 6 + 0 + 5 + 10
  norms = 2 * 64 * 4 + 16 * 6
  relus = 64 * 4 + 4 * 6
  pools = 64 * 4 + 16 * 6 + 4 * 2
  total = sum(macs) + biases + norms + relus + pools
  assert count_macs(model, 8, convention="ptflops") == total
  assert count_macs(model, (8, 8, 3), convention="ptflops", include_box=True) == total + box
  with pytest.raises(ValueError, match="convention='flops': give one of macs, ptflops"):
    count_macs(model, 8, convention="flops")


class Outer(nn.Module):
  """A layer with a count of its own, made of layers that would count too."""

  @nn.compact
  def __call__(self, x):
    return nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(7)(x)))

  def macs(self, output_shape, in_features):
    return 1000


class Around(nn.Module):
  inner: nn.Module
  by_keyword: bool = False

  @nn.compact
  def __call__(self, x, train=False):
    return self.inner(inputs=x) if self.by_keyword else self.inner(x)


def test_a_module_with_macs_is_a_layer_and_what_it_calls_is_part_of_it():
  (layer,) = count_layers(Around(Outer()), 4)
  assert (layer.kind, layer.macs, layer.box_adds, layer.output_shape) == ("Outer", 1000, 0, (4, 4, 7))
  assert count_macs(Around(Outer()), 4, convention="ptflops") == 1000
  assert count_macs(Around(nn.Dense(7), by_keyword=True), 4) == 4 * 4 * 3 * 7


def test_ptflops_sees_through_what_jax_wraps_around_a_network():
  class Wrapped(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
      x = nn.remat(ICConv)(4, (3, 3))(x)
      x = jax.jit(nn.relu)(x)
      return jax.checkpoint(lambda x: nn.relu(nn.max_pool(x, (2, 2), strides=(2, 2))))(x)

  layer = 16 * 4 * (27 + 3) + 2 * 16 * 4
  assert count_macs(Wrapped(), 4, convention="ptflops") == layer + 16 * 4 + 16 * 4 + 4 * 4


def test_counting_leaves_no_interceptor_behind():
  class Broken(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
      return Conv(4, (3, 3), feature_group_count=5)(x)

  with pytest.raises(ValueError, match="do not both divide"):
    count_macs(Broken(), 8, convention="ptflops")
  assert len(count_layers(Pieces(), 8)) == 5
  assert "inside_a_counted_module" not in str(jax.make_jaxpr(
      lambda x: Pieces().init(jax.random.key(0), x))(jnp.zeros((1, 8, 8, 3))))
