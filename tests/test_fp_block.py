"""The FP unit: what its equations say, and the block that is built on it."""

import functools
import os
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bionets_jax as bn
from bionets_jax.layers import BatchNorm, FPBlock
from bionets_jax.layers.fp import DepthwisePair
from bionets_jax.ops import depthwise_conv, paired_depthwise_product

RNG = np.random.default_rng(0)
VALID = dict(strides=(1, 1), padding=((0, 0), (0, 0)))
SOBEL_X = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], float)
SOBEL_Y = SOBEL_X.T


def filters(*arrays):
  """Arrays (k, k) as depthwise kernels (k, k, 1, 1)."""
  return [jnp.asarray(a, jnp.float64)[:, :, None, None] for a in arrays]


def images(*arrays):
  return jnp.asarray(np.stack(arrays), jnp.float64)[..., None]


# The operation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("k,stride,padding,dilation,shape", [
    (3, 1, ((1, 1), (1, 1)), 1, (9, 7)), (5, 2, ((1, 2), (2, 2)), 1, (11, 8)), (3, 2, ((0, 1), (0, 1)), 1, (8, 9)),
    (3, 3, ((0, 0), (3, 1)), 2, (12, 10)), (7, 1, ((3, 3), (3, 3)), 1, (5, 6)), (1, 2, ((0, 0), (0, 0)), 1, (5, 4)),
    (3, 1, ((-1, 1), (1, -1)), 1, (9, 7))])
def test_depthwise_is_the_grouped_convolution_with_its_gradients(float64, k, stride, padding, dilation, shape):
  x, w = RNG.standard_normal((2, *shape, 4)), RNG.standard_normal((k, k, 1, 4))

  def ours(x, w):
    return depthwise_conv(x, w, strides=(stride,) * 2, padding=padding, kernel_dilation=(dilation,) * 2)

  def theirs(x, w):
    return lax.conv_general_dilated(x, w, (stride,) * 2, padding, rhs_dilation=(dilation,) * 2,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4)

  out, back = jax.vjp(ours, x, w)
  reference, reference_back = jax.vjp(theirs, x, w)
  np.testing.assert_allclose(out, reference, atol=1e-12)
  g = RNG.standard_normal(out.shape)
  for a, b in zip(back(g), reference_back(g), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-11)


def test_flax_conv_with_one_filter_per_channel_is_reproduced():
  x = RNG.standard_normal((2, 3, 9, 8, 6)).astype(np.float32)  # two batch axes
  theirs = nn.Conv(6, (3, 3), strides=2, feature_group_count=6)
  ours = bn.layers.Conv(6, (3, 3), strides=2, feature_group_count=6)
  variables = theirs.init(jax.random.key(0), x)
  np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), atol=1e-5)
  # One-dimensional, an input smaller than the window, dilated inputs: all by some way or other.
  x = RNG.standard_normal((2, 3, 6)).astype(np.float32)
  for options in (dict(kernel_size=(5,), padding="VALID"), dict(kernel_size=(3,), input_dilation=2, padding=1),
                  dict(kernel_size=(3,), padding="CAUSAL")):
    theirs = nn.Conv(6, feature_group_count=6, **options)
    variables = theirs.init(jax.random.key(0), x)
    ours = bn.layers.Conv(6, feature_group_count=6, **options)
    np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), atol=1e-5)


def test_bfloat16_is_rounded_once():
  x = RNG.standard_normal((2, 8, 8, 3)).astype(jnp.bfloat16)
  a, b = RNG.standard_normal((2, 3, 3, 1, 3)).astype(jnp.bfloat16)
  exact = paired_depthwise_product(*(v.astype(np.float32) for v in (x, a, b)))
  out = paired_depthwise_product(x, a, b)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


# Section 2 of the paper ------------------------------------------------------------------------


def test_volterra_identity(float64):
  """(a.x)(b.x) is the quadratic form of the rank-1 matrix a b^T: 81 coefficients from 18 weights."""
  a, b, x = RNG.standard_normal((3, 3, 3))
  out = paired_depthwise_product(images(x), *filters(a, b), **VALID)
  w = np.outer(a, b)
  np.testing.assert_allclose(out.item(), x.ravel() @ w @ x.ravel(), rtol=1e-12)
  symmetric = np.linalg.eigvalsh((w + w.T) / 2)
  dot, norms = (a * b).sum(), np.linalg.norm(a) * np.linalg.norm(b)
  np.testing.assert_allclose(symmetric[[0, -1]], [(dot - norms) / 2, (dot + norms) / 2], rtol=1e-12)
  np.testing.assert_allclose(symmetric[1:-1], 0, atol=1e-12)


def test_symmetry_and_scaling(float64):
  x = RNG.standard_normal((2, 7, 8, 1))
  a, b = filters(*RNG.standard_normal((2, 3, 3)))
  g = functools.partial(paired_depthwise_product, **VALID)
  out = g(x, a, b)
  np.testing.assert_allclose(g(-x, a, b), out, rtol=1e-12)
  np.testing.assert_allclose(g(3 * x, a, b), 9 * out, rtol=1e-12)
  np.testing.assert_allclose(g(x, b, a), out, rtol=1e-12)
  np.testing.assert_allclose(g(x, 5 * a, b / 5), out, rtol=1e-12)
  assert (g(x, a, a) >= 0).all()
  # An AND: silent if either filter is.
  orthogonal = x[:1, :3, :3, 0] - a[:, :, 0, 0] * (x[0, :3, :3, 0] * a[:, :, 0, 0]).sum() / (a**2).sum()
  assert abs(g(orthogonal[..., None], a, b).item()) < 1e-14
  # d/dx = (b.x) a + (a.x) b
  patch = x[:1, :3, :3]
  grad = jax.grad(lambda p: g(p, a, b).sum())(patch)
  ax, bx = (patch * a[:, :, :, 0]).sum(), (patch * b[:, :, :, 0]).sum()
  np.testing.assert_allclose(grad, bx * a[None, :, :, :, 0] + ax * b[None, :, :, :, 0], rtol=1e-12)
  least = paired_depthwise_product(x, a, b, combine="min", **VALID)
  np.testing.assert_allclose(least, np.minimum(depthwise_conv(x, a, **VALID), depthwise_conv(x, b, **VALID)))


def test_a_sobel_pair_answers_to_corners_and_line_ends_alone(float64):
  """Inside the image: zero padding would make edges of its own."""
  y, x = np.mgrid[:16, :16]
  g = functools.partial(paired_depthwise_product, kernel_a=filters(SOBEL_X)[0], kernel_b=filters(SOBEL_Y)[0],
                        **VALID)
  along_one_axis = images(np.ones((16, 16)), x > 8, y > 5, (x % 5) ** 2, (y % 3) * 2.0)
  assert not g(along_one_axis).any()
  corner = g(images((x >= 8) & (y >= 8)))[0, :, :, 0]
  assert np.count_nonzero(corner) == 4
  np.testing.assert_array_equal(corner[6:8, 6:8], [[1, 3], [3, 9]])
  bar = np.asarray(g(images((abs(y - 8) <= 1) & (x >= 4) & (x <= 11))))[0, :, :, 0]
  assert bar.sum() == 0 and bar.any() and not bar[:, 5:8].any()  # at its ends only
  # Not every straight edge is silent: one at 45 degrees is not.
  assert abs(g(images(x > y))).max() == 9


# The block -------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs,features,expansion,weights,total", [
    (32, 64, 2, 14_592, 14_976), (64, 64, 2, 18_688, 19_072), (256, 512, 1, 402_432, 404_480),
    (1024, 2048, 1, 6_328_320, 6_336_512)])
def test_parameters_are_those_of_equation_4(inputs, features, expansion, weights, total):
  def count(**options):
    block = FPBlock(features, expansion=expansion, **options)
    x = jax.ShapeDtypeStruct((1, 8, 8, inputs), jnp.float32)
    return jax.eval_shape(lambda x: block.init(jax.random.key(0), x, train=False), x)

  shapes = count()
  assert sum(v.size for path, v in jax.tree_util.tree_leaves_with_path(shapes["params"])
             if "kernel" in path[-1].key) == weights
  assert bn.count_parameters(shapes) == total
  assert bn.count_parameters(count(combine="min")) == total
  assert total - bn.count_parameters(count(single_filter=True)) == 9 * expansion * features
  assert "scale" not in shapes["params"].get("bn2", {}) and set(shapes["batch_stats"]["bn2"]) == {"mean", "var"}


@pytest.fixture(scope="module")
def block():
  module = FPBlock(6, expansion=2)
  x = RNG.standard_normal((4, 9, 8, 5)).astype(np.float32)
  return module, module.init(jax.random.key(0), x, train=False), x


def test_scales_of_the_filters_do_not_matter(block):
  module, variables, x = block
  params = variables["params"]
  a, b = 4 * params["filters"]["kernel_a"], 4 * params["filters"]["kernel_b"]  # far above epsilon
  s = RNG.uniform(0.5, 2, a.shape[-1]).astype(np.float32)

  def run(a, b):
    changed = {**variables, "params": {**params, "filters": {"kernel_a": a, "kernel_b": b}}}
    return module.apply(changed, x, train=True, mutable=["batch_stats"])[0]

  out = run(a, b)
  assert (out >= 0).all() and out.shape == (4, 9, 8, 6)
  for other in (run(b, a), run(a * s, b / s), run(3 * a, b)):
    # The norm behind the product takes the scale away, but for its epsilon.
    np.testing.assert_allclose(other, out, atol=2e-4)


def test_the_norm_after_the_product(block):
  module, variables, x = block
  _, state = module.apply(variables, x, train=True, mutable=["batch_stats", "intermediates"],
                          capture_intermediates=lambda m, _: m.name in ("filters", "bn2"))
  product = state["intermediates"]["filters"]["__call__"][0]
  normed = state["intermediates"]["bn2"]["__call__"][0]
  variance = product.var((0, 1, 2))
  np.testing.assert_allclose(normed.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(normed.var((0, 1, 2)), variance / (variance + 1e-5), rtol=1e-4)


def test_norm_factories_of_flax_and_of_ours(block):
  module, variables, x = block
  for norm in (functools.partial(BatchNorm, use_running_average=True),
               functools.partial(nn.BatchNorm, use_running_average=True)):
    np.testing.assert_allclose(FPBlock(6, norm=norm).apply(variables, x),
                               module.apply(variables, x, train=False), atol=1e-5)


def test_journal_block_at_odd_sizes():
  """Shortcut without parameters: means of what the last window holds, zeros for new channels at the end."""
  x = RNG.standard_normal((2, 5, 7, 3)).astype(np.float32)
  module = FPBlock(5, variant="journal", pool=True)
  variables = module.init(jax.random.key(0), x, train=False)
  assert "bn2" not in variables["batch_stats"] and "shortcut_conv" not in variables["params"]
  silent = jax.tree.map(jnp.zeros_like, variables["params"]["bn3"])
  out = module.apply({**variables, "params": {**variables["params"], "bn3": silent}}, x, train=False)
  assert out.shape == (2, 3, 4, 5) and not out[..., 3:].any()
  np.testing.assert_allclose(out[:, 0, 0, :3], x[:, :2, :2].mean((1, 2)), rtol=1e-5)
  np.testing.assert_allclose(out[:, 2, 3, :3], x[:, 4, 6], rtol=1e-5)


@pytest.mark.parametrize("options,match", [
    (dict(variant="paper"), "give one of 'seed', 'journal'"), (dict(combine="max"), "give one of 'product', 'min'"),
    (dict(combine="min", single_filter=True), "single_filter leaves one"),
    (dict(pointwise=FPBlock), "FPBlock replaces the blocks of a whole stage")])
def test_mistakes(options, match):
  with pytest.raises(ValueError, match=match):
    FPBlock(4, **options).init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False)


def test_macs_of_the_pair():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
      return FPBlock(8, expansion=2, pool=True)(x, train)

  assert bn.count_macs(Net(), (10, 12, 4)) == 120 * (4 * 16 + 2 * 9 * 16 + 16 * 8)
  assert DepthwisePair().macs((1, 5, 6, 16), 16) == 2 * 9 * 30 * 16


def test_the_authors_outputs():
  """Needs BIONETS_TEST_FIXTURES: a block's weights and what PyTorch computes with them."""
  folder = os.environ.get("BIONETS_TEST_FIXTURES")
  if not folder:
    pytest.skip("BIONETS_TEST_FIXTURES is not set")
  golden = dict(np.load(pathlib.Path(folder) / "fpnets_fpblock_fixture.npz"))
  x, y_train, y_eval = (golden[k].transpose(0, 2, 3, 1) for k in ("x_nchw", "y_train_nchw", "y_eval_nchw"))
  module = FPBlock(6, pool=True)
  arrays = [v.transpose(2, 3, 1, 0) if v.ndim == 4 else v for k, v in golden.items() if k.startswith("w/")]
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
  variables = bn.weights.load_in_call_order(module, shapes, arrays, inputs=x)
  out, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
  np.testing.assert_allclose(out, y_train, atol=1e-5)
  names = {"bn1": "b1", "bn2": "bp", "bn3": "b2"}
  for ours, theirs in names.items():
    np.testing.assert_allclose(new["batch_stats"][ours]["mean"], golden[f"after/{theirs}.running_mean"], atol=1e-6)
    variables["batch_stats"][ours] = {
        k: golden[f"after/{theirs}.running_{k}"] for k in ("mean", "var")}
  np.testing.assert_allclose(module.apply(variables, x, train=False), y_eval, atol=1e-6)
