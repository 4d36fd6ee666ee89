"""Grouped pointwise convolutions: the rules of the kEffNet paper, in arrays and as a unit."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import bionets_jax as bn
from bionets_jax.layers.grouped_pointwise import GroupedPointwise, group_count
from bionets_jax.ops.grouped import (
    deinterleave,
    grouped_pointwise,
    grouped_pointwise_reference,
    interleave,
)


def random(*shape, seed=0, dtype=np.float64):
  return np.random.RandomState(seed).standard_normal(shape).astype(dtype)


# Arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels,features,groups", [
    (480, 80, 20), (1152, 320, 64), (92, 46, 23), (80, 480, 5), (2304, 384, 128), (12, 8, 1), (6, 6, 6),
    (6, 12, 6), (24, 4, 4)])
def test_grouped_form_equals_the_reference(channels, features, groups, float64):
  x, kernel = random(3, 5, channels), random(channels // groups, features, seed=1)
  g = random(3, 5, features, seed=2)

  def run(f):
    y, back = jax.vjp(functools.partial(f, groups=groups), x, kernel)
    return y, *back(g)

  for ours, plain in zip(
      run(jax.jit(grouped_pointwise, static_argnames="groups")), run(grouped_pointwise_reference), strict=True):
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-12 * np.abs(plain).max())


@pytest.mark.parametrize("channels,features,groups", [(480, 80, 20), (80, 480, 5), (6, 6, 6)])
def test_bfloat16_is_accumulated_in_float32_and_rounded_once(channels, features, groups):
  x = jnp.asarray(random(64, channels), jnp.bfloat16)
  kernel = jnp.asarray(random(channels // groups, features, seed=1), jnp.bfloat16)
  y = grouped_pointwise(x, kernel, groups=groups)
  wide = grouped_pointwise_reference(x.astype(jnp.float32), kernel.astype(jnp.float32), groups=groups)
  assert y.dtype == jnp.bfloat16
  # A whole step of bfloat16 apart only where a sum lies on the edge between two of them.
  assert np.mean(np.asarray(y != wide.astype(jnp.bfloat16))) < 1e-3
  np.testing.assert_allclose(y.astype(jnp.float32), wide, rtol=2**-8, atol=1e-5)


def test_no_grouped_convolution_is_left_in_the_program():
  x, kernel = jnp.zeros((2, 4, 4, 480)), jnp.zeros((24, 80))
  f = jax.grad(lambda x, k: grouped_pointwise(x, k, groups=20).sum(), (0, 1))
  assert "conv_general" not in str(jax.make_jaxpr(f)(x, kernel))


@pytest.mark.parametrize("groups,size", [(3, 4), (5, 1), (1, 6), (64, 8)])
def test_interleave(groups, size):
  channels = np.arange(groups * size)
  dealt = np.asarray(interleave(jnp.asarray(channels)[None], groups))[0]
  assert sorted(dealt) == list(channels)
  for r in range(size):
    for g in range(groups):
      assert dealt[r * groups + g] == channels[g * size + r]
  np.testing.assert_array_equal(deinterleave(interleave(jnp.asarray(channels), groups), groups), channels)


def test_channels_that_do_not_divide_are_named():
  with pytest.raises(ValueError, match="10 input channels and 8 output channels do not both divide into 4 groups"):
    grouped_pointwise(jnp.zeros((1, 10)), jnp.zeros((2, 8)), groups=4)
  with pytest.raises(ValueError, match=r"8 channels in 4 groups need a kernel of \(2, 8\), got \(8, 8\)"):
    grouped_pointwise(jnp.zeros((1, 8)), jnp.zeros((8, 8)), groups=4)
  for f in (interleave, deinterleave):
    with pytest.raises(ValueError, match="10 input channels .* 4 groups"):
      f(jnp.zeros((1, 10)), 4)


# The rule --------------------------------------------------------------------------------------


def test_group_count_on_a_grid():
  for least in (1, 8, 16, 32):
    for c in (*range(1, 70), 96, 144, 480, 672, 1024, 1152):
      for f in (*range(1, 40), 80, 96, 112, 192, 320, 512, 1152):
        allowed = [n for n in range(1, c + 1) if c % n == f % n == 0 and c // n >= least]
        assert group_count(c, f, least) == max(allowed, default=1), (c, f, least)


def test_the_example_of_the_paper():
  assert group_count(1024, 512) == 64
  x = jnp.zeros((1, 2, 2, 1024))
  params = jax.eval_shape(GroupedPointwise(512).init, jax.random.key(0), x)["params"]
  shapes = {k: v.shape for k, v in flatten_dict(params, sep="/").items()}
  assert shapes == {"conv1/kernel": (1, 1, 16, 512), "conv2/kernel": (1, 1, 8, 512)}
  assert [np.prod(s) for s in shapes.values()] == [8192, 4096]


# The unit --------------------------------------------------------------------------------------


def literal(x, params, stats, features, *, k_type=2, least=16, act=None, epsilon=1e-5):
  """Rules 1 to 6 of the unit, channel by channel."""
  channels = x.shape[-1]
  n = max([n for n in range(1, channels // least + 1) if channels % n == features % n == 0], default=1)
  if k_type == 0:
    n = 1
  s = features // n

  def layer(x, i):
    kernel = np.asarray(params[f"conv{i}"]["kernel"], np.float64)[0, 0]
    rows = x.shape[-1] // n
    y = np.stack([
        x[..., f // s * rows:(f // s + 1) * rows] @ kernel[:, f] for f in range(features)], -1)
    if "bias" in params[f"conv{i}"]:
      y = y + params[f"conv{i}"]["bias"]
    if f"bn{i}" in params:
      p, m = params[f"bn{i}"], stats[f"bn{i}"]
      y = (y - m["mean"]) / np.sqrt(m["var"] + epsilon) * p["scale"] + p["bias"]
    return np.asarray(y if act is None else act(y), np.float64)

  k = layer(x, 1)
  if n == 1:
    return k
  i = k.copy()
  if s > 1:
    for r in range(s):
      for g in range(n):
        i[..., r * n + g] = k[..., g * s + r]
  if k_type == 1 or channels < features:
    return i
  return layer(i, 2) + k


def variables_at_random(module, x):
  random = np.random.RandomState(3)
  template = jax.eval_shape(module.init, jax.random.key(0), x)
  return jax.tree.map(lambda v: jnp.asarray(random.uniform(.3, 1.3, v.shape) * (
      random.choice([-1, 1], v.shape) if len(v.shape) > 1 else 1), v.dtype), template)


@pytest.mark.parametrize("channels,features,layout", [
    (96, 24, "K I L sum"), (64, 64, "K I L sum"), (32, 128, "K I"), (64, 4, "K L sum, s = 1"),
    (48, 3, "K L sum, s = 1"), (96, 4, "K L sum, s = 1"), (24, 40, "N = 1"), (50, 21, "N = 1")])
@pytest.mark.parametrize("kind", ["norm and act", "norm", "bias and act"])
@pytest.mark.parametrize("k_type", [2, 1, 0])
def test_the_unit_is_what_the_rules_say(channels, features, layout, kind, k_type, float64):
  act = {"norm and act": nn.swish, "norm": None, "bias and act": nn.sigmoid}[kind]
  norm = functools.partial(nn.BatchNorm, use_running_average=True) if "norm" in kind else None
  unit = GroupedPointwise(features, norm=norm, act=act, use_bias="bias" in kind, k_type=k_type)
  x = random(2, 3, 1, channels)
  variables = variables_at_random(unit, x)
  y = unit.apply(variables, x)
  expected = literal(x, variables["params"], variables.get("batch_stats"), features, k_type=k_type, act=act)
  tolerance = 1e-6 if norm else 1e-12  # Flax's BatchNorm adds epsilon in float32
  np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance * np.abs(expected).max())
  second = k_type == 2 and "L" in layout
  assert ("conv2" in variables["params"]) == second
  if second:
    assert variables["params"]["conv2"]["kernel"].shape[2:] == (
        features // group_count(channels, features), features)


def test_train_flag_and_strides():
  x = jnp.asarray(random(4, 5, 6, 64, dtype=np.float32))
  unit = GroupedPointwise(32, strides=2, norm=nn.BatchNorm, act=nn.relu)
  variables = unit.init(jax.random.key(0), x, train=False)
  y, changed = unit.apply(variables, x, train=True, mutable=["batch_stats"])
  assert y.shape == (4, 3, 3, 32)
  assert all(np.abs(a - b).max() > 0 for a, b in zip(
      jax.tree.leaves(changed["batch_stats"]), jax.tree.leaves(variables["batch_stats"]), strict=True))
  small, _ = GroupedPointwise(32, norm=nn.BatchNorm, act=nn.relu).apply(
      variables, x[:, ::2, ::2], train=True, mutable=["batch_stats"])
  np.testing.assert_array_equal(y, small)
  with pytest.raises(ValueError):  # neither in the factory nor in the call
    unit.apply(variables, x)


def test_in_place_of_a_flax_convolution():
  class Net(nn.Module):
    conv: type[nn.Module]

    @nn.compact
    def __call__(self, x, train=False):
      x = self.conv(64, (1, 1), strides=1, padding="SAME", use_bias=False, name="a")(x)
      x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
      return self.conv(48, kernel_size=(1, 1), padding=((0, 0), (0, 0)), dtype=jnp.bfloat16, name="b")(x)

  x = jnp.asarray(random(2, 3, 3, 32, dtype=np.float32))
  for conv in (nn.Conv, GroupedPointwise):
    y, variables = Net(conv).init_with_output(jax.random.key(0), x)
    assert y.shape == (2, 3, 3, 48) and y.dtype == jnp.bfloat16
    assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  assert GroupedPointwise(16, (1,)).init_with_output(jax.random.key(0), x[:, 0])[0].shape == (2, 3, 16)
  assert bn.count_macs(Net(GroupedPointwise), (3, 3, 32)) == 9 * (16 * 64 + 16 * 48 + 12 * 48)


def test_initial_scale_is_that_of_keras():
  unit = GroupedPointwise(192, kernel_init=nn.initializers.glorot_uniform())
  params = unit.init(jax.random.key(0), jnp.zeros((1, 1, 1, 1152)))["params"]
  for conv, fan_in in (("conv1", 18), ("conv2", 3)):
    kernel = params[conv]["kernel"]
    assert kernel.shape == (1, 1, fan_in, 192)
    assert np.abs(kernel).max() == pytest.approx(np.sqrt(6 / (fan_in + 192)), rel=.02)


@pytest.mark.parametrize("options,match", [
    (dict(kernel_size=(3, 3)), r"replaces 1x1 convolutions only, got kernel_size=\(3, 3\)"),
    (dict(padding=1), "is not padded, got padding=1"),
    (dict(padding="same!"), "is not padded, got padding='same!'"),
    (dict(padding=((0, 0), (0, 1))), "is not padded"), (dict(k_type=3), "k_type=3: give 0, 1 or 2"),
    (dict(min_group_channels=0), "min_group_channels=0: give a whole number, 1 or more")])
def test_mistakes_are_named(options, match):
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(GroupedPointwise(8, **options).init, jax.random.key(0), jnp.zeros((1, 2, 2, 32)))
