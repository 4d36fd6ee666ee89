"""IC units against the paper's theorems and against direct definitions in NumPy, float64."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from bionets_jax import ops
from bionets_jax.layers import BatchNorm, Conv, ICConv, ICDense

pytestmark = pytest.mark.usefixtures("float64")


def rand(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


def patches(x, window, stride, pad, dilation):
  """(N, Ho, Wo, kh, kw, C) by plain indexing."""
  x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
  kh, kw = window
  ho = (x.shape[1] - (kh - 1) * dilation - 1) // stride + 1
  wo = (x.shape[2] - (kw - 1) * dilation - 1) // stride + 1
  out = np.empty((x.shape[0], ho, wo, kh, kw, x.shape[3]))
  for i, j, a, b in itertools.product(range(ho), range(wo), range(kh), range(kw)):
    out[:, i, j, a, b] = x[:, i * stride + a * dilation, j * stride + b * dilation]
  return out


def reference(x, w, adjust, b1, b2, alpha, *, stride, pad, dilation, groups):
  """Eq. 6 with Eq. 3's biases and Eq. 7's alpha, one filter at a time."""
  p = patches(x, w.shape[:2], stride, pad, dilation)
  features, per_group = w.shape[-1], w.shape[-2]
  out = np.empty((*p.shape[:3], features))
  for i in range(features):
    g = i // (features // groups)
    q = p[..., g * per_group:(g + 1) * per_group]
    u = (q * w[..., i]).sum((3, 4, 5))
    v = (q.sum((3, 4)) * adjust[:, i]).sum(-1)
    out[..., i] = u + alpha * np.maximum(u - v + b1[i], 0) + b2[i]
  return out


@pytest.mark.parametrize("k,stride,dilation,groups", [
    (1, 1, 1, 1), (1, 2, 1, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 1), (3, 2, 1, 2), (5, 1, 1, 4),
    (5, 2, 2, 2), (7, 2, 1, 1)])
def test_ic_conv_is_eq_6(k, stride, dilation, groups):
  x, w = rand(2, 11, 10, 4), rand(k, k, 4 // groups, 8, seed=1)
  adjust, b1, b2 = rand(4 // groups, 8, seed=2), rand(8, seed=3), rand(8, seed=4)
  pad = (k - 1) * dilation // 2
  got = ops.ic_conv(
      jnp.asarray(x), w, jnp.asarray(adjust), inner_bias=jnp.asarray(b1), outer_bias=jnp.asarray(b2),
      alpha=0.7, strides=stride, padding=[(pad, pad)] * 2, kernel_dilation=dilation, groups=groups)
  want = reference(x, w, adjust, b1, b2, 0.7, stride=stride, pad=pad, dilation=dilation, groups=groups)
  np.testing.assert_allclose(got, want, atol=1e-12)


def test_biases_of_numpy_count():
  x, w, adjust, b1, b2 = rand(1, 4, 4, 2), rand(3, 3, 2, 3), rand(2, 3), rand(3, seed=1), rand(3, seed=2)
  got = ops.ic_conv(x, w, adjust, inner_bias=b1, outer_bias=b2)
  want = reference(x, w, adjust, b1, b2, 1.0, stride=1, pad=1, dilation=1, groups=1)
  np.testing.assert_allclose(got, want, atol=1e-12)


def test_dense_adjust_beside_a_grouped_kernel():
  x, w, adjust = rand(1, 5, 5, 4), rand(3, 3, 2, 6, seed=1), rand(4, 6, seed=2)
  got = ops.ic_conv(jnp.asarray(x), w, jnp.asarray(adjust), groups=2, adjust_groups=1)
  p = patches(x, (3, 3), 1, 1, 1)
  v = np.einsum("nhwabc,cf->nhwf", p, adjust)
  u = np.concatenate([np.einsum("nhwabc,abcf->nhwf", p[..., :2], w[..., :3]),
                      np.einsum("nhwabc,abcf->nhwf", p[..., 2:], w[..., 3:])], -1)
  np.testing.assert_allclose(got, u + np.maximum(u - v, 0), atol=1e-12)


@pytest.mark.parametrize("padding", ["SAME", "VALID", 1, (1, 2), ((0, 1), (2, 1)), "CIRCULAR", "REFLECT"])
@pytest.mark.parametrize("options", [dict(), dict(strides=2), dict(kernel_dilation=2),
                                     dict(strides=(1, 2), feature_group_count=2),
                                     dict(input_dilation=2, kernel_dilation=(1, 2))])
def test_conv_is_flax_conv(padding, options):
  if isinstance(padding, str) and "input_dilation" in options:
    pytest.skip("Flax takes explicit padding only here")
  x = jnp.asarray(rand(2, 9, 8, 4))
  theirs = nn.Conv(6, (3, 3), padding=padding, param_dtype=jnp.float64, **options)
  ours = Conv(6, (3, 3), padding=padding, param_dtype=jnp.float64, **options)
  variables = theirs.init(jax.random.key(0), x)
  np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), atol=1e-12)


@pytest.mark.parametrize("shape,kernel,options", [
    ((3, 9, 4), (3,), dict(padding="CAUSAL", strides=2)), ((9, 8, 4), (3, 3), {}),
    ((2, 3, 6, 6, 4), (3, 3), {}), ((1, 4, 5, 6, 2), (3, 3, 3), dict(strides=2)),
    ((2, 8, 8, 4), (1, 1), dict(strides=2, use_bias=False)), ((2, 8, 8, 4), (1, 3), {})])
def test_drop_in_for_flax_conv_in_other_shapes(shape, kernel, options):
  """Same batch axes, ranks and variables; and at alpha = 0 the IC layer is the convolution."""
  x = jnp.asarray(rand(*shape))
  theirs = nn.Conv(6, kernel, **options)
  variables = theirs.init(jax.random.key(0), x)
  want = theirs.apply(variables, x)
  np.testing.assert_allclose(Conv(6, kernel, **options).apply(variables, x), want, atol=1e-12)
  layer = ICConv(6, kernel, alpha=0.0, **options)
  params = layer.init(jax.random.key(1), x)["params"] | variables["params"]
  np.testing.assert_allclose(layer.apply({"params": params}, x), want, atol=1e-12)


def test_mask_acts_on_the_kernel():
  x, mask = jnp.asarray(rand(1, 6, 6, 2)), jnp.asarray(rand(3, 3, 2, 4, seed=5) > 0, jnp.float32)
  layer = ICConv(4, (3, 3), mask=mask)
  params = layer.init(jax.random.key(0), x)["params"]
  masked = params | {"kernel": params["kernel"] * mask}
  np.testing.assert_array_equal(layer.apply({"params": params}, x),
                                ICConv(4, (3, 3)).apply({"params": masked}, x))
  with pytest.raises(ValueError, match="mask has shape"):
    ICConv(4, (3, 3), mask=mask[:2]).init(jax.random.key(0), x)


def test_parameters_of_the_layers():
  x = jnp.zeros((1, 8, 8, 4))
  def names(layer, x=x):
    return {k: v.shape for k, v in layer.init(jax.random.key(0), x)["params"].items()}
  assert names(ICConv(6, (3, 3))) == {
      "kernel": (3, 3, 4, 6), "adjust": (4, 6), "inner_bias": (6,), "bias": (6,)}
  assert names(ICConv(6, (3, 3), feature_group_count=2))["adjust"] == (2, 6)
  assert names(ICConv(6, (3, 3), feature_group_count=2, adjust_groups=1))["adjust"] == (4, 6)
  assert names(ICConv(6, (3, 3), alpha="learned"))["alpha"] == ()
  assert names(ICConv(6, (3, 3), alpha="learned_per_channel"))["alpha"] == (6,)
  assert set(names(ICConv(6, (3, 3), use_bias=False, use_inner_bias=False))) == {"kernel", "adjust"}
  # Eq. 3: n + 3 parameters for each neuron.
  dense = names(ICDense(6), jnp.zeros((1, 10)))
  assert sum(math.prod(s) for s in dense.values()) == 6 * (10 + 3)
  scheduled = ICConv(6, (3, 3), alpha="scheduled").init(jax.random.key(0), x)
  assert scheduled["scheduled"]["alpha"] == 0 and "alpha" not in scheduled["params"]


def test_bad_arguments_say_what_is_right():
  x = jnp.zeros((1, 8, 8, 4))
  for kwargs, match in [
      (dict(alpha="lerned"), "learned_per_channel"), (dict(adjust_init="he"), "kaiming_fan_out"),
      (dict(feature_group_count=3), "feature_group_count=3"), (dict(adjust_groups=3), "adjust_groups=3"),
      (dict(padding="SOME"), "SAME"), (dict(strides=(2,)), "1 numbers for a kernel of 2")]:
    with pytest.raises(ValueError, match=match):
      ICConv(6, (3, 3), **kwargs).init(jax.random.key(0), x)


# The neuron of Eqs. 1 to 3 -------------------------------------------------------------------

SQUARE = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], float)


def neuron(x, w, adjust, inner, outer):
  """relu(Eq. 3) through the layer's own path."""
  layer = ICDense(1, param_dtype=jnp.float64)
  params = {"kernel": np.reshape(w, (-1, 1)), "adjust": np.array([adjust]),
            "inner_bias": np.array([inner]), "bias": np.array([outer])}
  return jax.nn.relu(layer.apply({"params": jax.tree.map(jnp.asarray, params)}, jnp.asarray(x)))[:, 0]


def test_one_neuron_computes_xnor():
  np.testing.assert_array_equal(neuron(SQUARE, (1, 1), 3, 2, -1), [1, 0, 0, 1])
  np.testing.assert_allclose(neuron(SQUARE, (.3, .3), 1, .7, -.4), [.3, 0, 0, .2], atol=1e-15)


def test_figure_2c_as_printed_is_xnor():
  got = neuron(SQUARE, (.2805, .2805), 1, .6463, -.3506)
  np.testing.assert_allclose(got, [.2957, 0, 0, .2104], atol=5e-5)


def test_eq_2_is_the_bias_free_case():
  x, w = rand(50, 5), rand(5, seed=1)
  layer = ICDense(1, use_bias=False, use_inner_bias=False, param_dtype=jnp.float64)
  got = layer.apply({"params": {"kernel": jnp.asarray(w[:, None]), "adjust": jnp.ones(1)}}, x)[:, 0]
  want = np.where(x @ (w - 1) >= 0, 2 * x @ w - x.sum(1), x @ w)
  np.testing.assert_allclose(got, want, atol=1e-14)


def test_theorem_1_w_prime_turns_the_hyperplane_through_half_a_circle():
  """The kink's normal w - w' 1, read off the layer's gradients, makes the stated angle with 1."""
  n = 6
  w = rand(n, seed=3)
  e1 = np.ones(n) / np.sqrt(n)
  perp = w - (w @ e1) * e1
  angles = np.linspace(0.05, np.pi - 0.05, 25)
  measured = []
  for theta in angles:
    adjust = (w @ e1 - np.linalg.norm(perp) / np.tan(theta)) / np.sqrt(n)
    f = lambda x, a=adjust: ops.ic_dense(x, jnp.asarray(w[:, None]), jnp.asarray([a]))[0]  # noqa: E731
    x = jnp.asarray(rand(n, seed=4))
    one, other = jax.grad(f)(x), jax.grad(f)(-x)  # one side of the kink and the other
    normal = np.asarray(one - other) * np.sign(x @ (w - adjust))
    measured.append(np.arctan2(normal @ perp / np.linalg.norm(perp), normal @ e1))
  np.testing.assert_allclose(measured, angles, atol=1e-12)
  assert np.all(np.diff(measured) > 0)


def test_theorem_2_on_a_box_some_ic_neuron_is_the_plain_neuron():
  n = 8
  w, low = rand(n, seed=1), rand(n, seed=2)
  high = low + np.abs(rand(n, seed=3))
  x = low + (high - low) * np.random.default_rng(4).random((1000, n))
  for adjust in (-2.0, 0.3, 5.0):
    inner = -np.maximum((w - adjust) * low, (w - adjust) * high).sum()
    arguments = (jnp.asarray(w[:, None]), jnp.asarray([adjust]))
    biases = dict(inner_bias=jnp.asarray([inner - 1e-12]), outer_bias=jnp.asarray([.25]))
    plain = jnp.asarray(x) @ jnp.asarray(w[:, None]) + .25
    np.testing.assert_array_equal(ops.ic_dense(jnp.asarray(x), *arguments, **biases), plain)
    far = np.concatenate([10 * x, -10 * x])  # off the box the two differ
    gap = ops.ic_dense(jnp.asarray(far), *arguments, **biases) - (far @ w[:, None] + .25)
    assert np.abs(gap).max() > 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("stride", [1, 2])
def test_theorem_2_for_convolutions_bit_for_bit(stride, dtype):
  """x >= 0 and w'_ic = max over taps of w_ic: u - v <= 0 everywhere, the layer is the convolution."""
  x = jnp.asarray(np.maximum(rand(2, 9, 9, 5), 0), dtype)
  w = jnp.asarray(rand(3, 3, 5, 7, seed=1), dtype)
  adjust = w.max((0, 1))
  plain = ops.conv(x, w, strides=(stride,) * 2, padding=((1, 1),) * 2)
  got = ops.ic_conv(x, w, adjust, strides=stride, padding=((1, 1),) * 2)
  np.testing.assert_array_equal(got, plain)
  # The opposite corner, the hinge always open: y = 2u - v.
  low = jnp.full_like(adjust, -10.0)
  v = ops.conv(ops.box_sum(x, (3, 3), strides=(stride,) * 2, padding=((1, 1),) * 2), low[None, None],
               strides=(1, 1), padding=((0, 0),) * 2)
  np.testing.assert_allclose(ops.ic_conv(x, w, low, strides=stride, padding=((1, 1),) * 2), 2 * plain - v,
                             rtol=1e-5)


# Gradients -----------------------------------------------------------------------------------


def test_gradients_of_the_combine_are_the_spec_s():
  u, v = jnp.asarray(rand(4, 3)), jnp.asarray(rand(4, 3, seed=1))
  alpha, g = jnp.asarray(0.3), jnp.asarray(rand(4, 3, seed=2))
  _, pull = jax.vjp(lambda u, v, a: ops.ic_combine(u, v, alpha=a), u, v, alpha)
  du, dv, da = pull(g)
  m = (u > v).astype(u.dtype)
  np.testing.assert_allclose(du, g * (1 + alpha * m), rtol=1e-12)
  np.testing.assert_allclose(dv, -alpha * g * m, rtol=1e-12)
  np.testing.assert_allclose(da, (g * jnp.maximum(u - v, 0)).sum(), rtol=1e-12)


def test_at_a_tie_the_hinge_is_closed():
  """An all-zero patch gives u = v exactly; then dy/du = 1, dy/dx = W, as in PyTorch."""
  w, adjust = jnp.asarray(rand(3, 3, 2, 4)), jnp.asarray(rand(2, 4, seed=1))
  x = jnp.zeros((1, 5, 5, 2))
  _, pull = jax.vjp(lambda x: ops.ic_conv(x, w, adjust), x)
  _, plain = jax.vjp(lambda x: ops.conv(x, w, strides=(1, 1), padding=((1, 1),) * 2), x)
  g = jnp.asarray(rand(1, 5, 5, 4, seed=2))
  np.testing.assert_array_equal(pull(g)[0], plain(g)[0])


def test_at_alpha_zero_only_alpha_gets_a_gradient():
  x = jnp.asarray(rand(2, 6, 6, 3))
  layer = ICConv(4, (3, 3), alpha="learned")
  params = layer.init(jax.random.key(0), x)["params"]
  grads = jax.grad(lambda p: (layer.apply({"params": p}, x) ** 3).sum())(params)
  assert not np.any(grads["adjust"]) and not np.any(grads["inner_bias"])
  assert grads["alpha"] != 0


def test_gradients_in_groups_are_those_of_the_definition():
  args = jnp.asarray(rand(2, 5, 5, 4)), jnp.asarray(rand(3, 3, 2, 6, seed=1)), jnp.asarray(rand(2, 6, seed=2))

  def gradients():
    return jax.grad(lambda *a: jnp.sin(ops.ic_conv(*a, groups=2)).sum(), (0, 1, 2))(*args)

  got = gradients()
  with ops.plain_derivatives():
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, gradients())


def test_a_gap_out_of_range_leaves_alpha_its_gradient():
  x, w, adjust = jnp.ones((1, 1, 1, 1), jnp.float16), jnp.ones((1, 1, 1, 1), jnp.float16), jnp.float16([[6e4]])
  bias = jnp.float16([-6e4])  # together below what float16 holds
  grad = jax.grad(lambda alpha: ops.ic_conv(x, w, adjust, inner_bias=bias, alpha=alpha).sum().astype(jnp.float32))
  assert grad(jnp.float32(0.5)) == 0


def test_gradients_of_kernels_in_shard_map_are_summed_over_devices():
  x, w, adjust = jnp.asarray(rand(2, 5, 5, 4)), jnp.asarray(rand(3, 3, 4, 6)), jnp.asarray(rand(4, 6))
  one, grouped, scale = jnp.asarray(rand(3, 3, 1, 4)), jnp.asarray(rand(2, 6)), jnp.ones(4)

  def gradients(x, *kernels):
    def loss(w, adjust, one, grouped, scale):
      y = ops.depthwise_conv(x, one, strides=(1, 1), padding=((1, 1),) * 2)
      y = ops.batch_normalize(y, scale, None, epsilon=1e-3)[0]
      return jnp.sin(ops.ic_conv(y, w, adjust) + ops.grouped_pointwise(y, grouped, groups=2)).sum()

    return jax.grad(loss, range(5))(*kernels)

  # One device will do: what shard_map checks is what may vary.
  mesh = jax.sharding.Mesh(jax.devices()[:1], "d")
  data, same = jax.sharding.PartitionSpec("d"), jax.sharding.PartitionSpec()
  kernels = w, adjust, one, grouped, scale
  got = jax.shard_map(gradients, mesh=mesh, in_specs=(data, *[same] * 5), out_specs=same)(x, *kernels)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, gradients(x, *kernels))


@pytest.mark.parametrize("stride,dilation", [(1, 1), (2, 1), (1, 2), (3, 1)])
def test_box_sum_derivatives_agree_with_finite_differences(stride, dilation):
  def box(x):
    return ops.box_sum(x, (3, 3), strides=(stride,) * 2, padding=((1, 1), (0, 2)),
                       kernel_dilation=(dilation,) * 2)
  check_grads(jax.jit(box), (jnp.asarray(rand(1, 7, 8, 2)),), order=2, modes=("fwd", "rev"))


# Scale ---------------------------------------------------------------------------------------


def test_joint_scaling_leaves_a_network_with_batch_norm_unchanged():
  """y is homogeneous in (W, W', b1, b2), so BatchNorm behind it removes a common factor."""
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      y = ICConv(5, (3, 3), param_dtype=jnp.float64, name="ic")(x)
      return BatchNorm(epsilon=1e-12, name="bn")(y, use_running_average=False)

  x = jnp.asarray(rand(4, 6, 6, 3))
  variables = Net().init(jax.random.key(0), x)
  params = variables["params"]
  noise = [jnp.asarray(rand(5, seed=i)) for i in (1, 2)]
  params["ic"] |= {"inner_bias": noise[0], "bias": noise[1]}
  scaled = params | {"ic": jax.tree.map(lambda p: 7.0 * p, params["ic"])}
  run = lambda p: Net().apply(variables | {"params": p}, x, mutable=["batch_stats"])[0]  # noqa: E731
  np.testing.assert_allclose(run(scaled), run(params), atol=1e-9)


@pytest.mark.parametrize("r,mean,square,variance,relu_square,corr", [
    (0.0, .399, 2.5, 2.341, 2.00, .980), (0.5, .446, 2.625, 2.426, 2.128, .963),
    (1.0, .564, 3.0, 2.682, 2.524, .916), (3.0, 1.262, 7.0, 5.408, 6.63, .646),
    (6.0, 2.427, 20.5, 14.61, 20.2, .392)])
def test_moments_for_gaussian_branches(r, mean, square, variance, relu_square, corr):
  """u ~ N(0, 1), v ~ N(0, r^2) independent: the closed forms behind the choice of W's init."""
  rng = np.random.default_rng(0)
  u, v = rng.standard_normal(2_000_000), r * rng.standard_normal(2_000_000)
  y = np.asarray(ops.ic_combine(jnp.asarray(u), jnp.asarray(v)))
  got = (y.mean(), (y**2).mean(), y.var(), (np.maximum(y, 0) ** 2).mean(), np.corrcoef(y, u)[0, 1])
  np.testing.assert_allclose(got, (mean, square, variance, relu_square, corr), rtol=6e-3)


@pytest.mark.parametrize("kind,ratio", [("scaled", 1 / 3), ("same", 1.0)])
def test_adjust_init_spread_relative_to_the_kernel(kind, ratio):
  layer = ICConv(64, (3, 3), adjust_init=kind, kernel_init=nn.initializers.he_normal())
  params = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]
  assert np.std(params["adjust"]) / np.std(params["kernel"]) == pytest.approx(ratio, rel=.05)
  assert np.corrcoef(params["adjust"].ravel(), params["kernel"][1, 1].ravel())[0, 1] < .05


def test_adjust_init_options():
  def adjust(kind, **kwargs):
    layer = ICConv(64, (3, 3), adjust_init=kind, **kwargs)
    return layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]["adjust"]
  assert not np.any(adjust("zeros"))
  assert np.std(adjust("kaiming_fan_out")) == pytest.approx(math.sqrt(2 / 64), rel=.05)
  assert np.all(adjust(nn.initializers.constant(2.0)) == 2)
  assert adjust("scaled", feature_group_count=4, adjust_groups=1).shape == (64, 64)


# Half precision ------------------------------------------------------------------------------


def test_bfloat16_stays_near_float32():
  x = rand(2, 8, 8, 16).astype(np.float32)
  layer = ICConv(32, (3, 3), param_dtype=jnp.float32)
  params = layer.init(jax.random.key(0), x)
  want = layer.apply(params, x)
  half = ICConv(32, (3, 3), dtype=jnp.bfloat16)
  got = half.apply(params, x)
  assert got.dtype == jnp.bfloat16 and params["params"]["kernel"].dtype == jnp.float32
  error = np.sqrt(np.mean((np.asarray(got, np.float32) - want) ** 2) / np.mean(np.square(want)))
  assert error < 0.006
  # Nine ones and a large value that bfloat16 cannot add them to, one at a time.
  x = jnp.full((1, 3, 3, 1), 1.0, jnp.bfloat16).at[0, 0, 0, 0].set(256.0)
  assert ops.box_sum(x, (3, 3), strides=(1, 1), padding=((0, 0),) * 2)[0, 0, 0, 0] == 264
