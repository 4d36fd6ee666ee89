"""GPU kernels, run as JAX operations, against the plain forms in float64; and their lowering."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bionets_jax import ops
from bionets_jax.layers import BatchNorm, FPBlock
from bionets_jax.ops.grouped import grouped_pointwise_reference
from bionets_jax.ops.kernels import choice, depthwise, grouped, ic, tile

ONES = ((1, 1), (1, 1))


def random(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


def everything(f, arrays, dtype):
  """Results of f, and gradients of all arrays for fixed cotangents."""
  arrays = [jnp.asarray(a, dtype) for a in arrays]

  @jax.jit
  def run(*arrays):
    y, pull = jax.vjp(f, *arrays)
    g = jax.tree.map(lambda leaf: jnp.asarray(random(*leaf.shape, seed=1), leaf.dtype), y)
    return y, pull(g)

  return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(run(*arrays))]


def agree(kernel, plain, arrays, dtype=jnp.float32, tolerance=1e-6):
  """Both in float32 and half precision against the plain form, differentiated by JAX, in float64."""
  with jax.enable_x64(True), ops.plain_derivatives():
    wide = [np.asarray(jnp.asarray(a, jnp.float32).astype(dtype), np.float64) for a in arrays]
    want = everything(plain, wide, jnp.float64)
  kernel = functools.partial(kernel, interpret=True)
  assert "pallas_call" in str(jax.make_jaxpr(kernel)(*(jnp.asarray(a, dtype) for a in arrays)))
  have = everything(kernel, arrays, dtype)
  assert len(have) == len(want)
  for a, b in zip(have, want, strict=True):
    assert a.shape == b.shape
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


def chosen(f):
  """An operation with its kernels, as `gpu_kernels` has it."""
  def run(*arrays, interpret=False):
    with choice.gpu_kernels("interpret" if interpret else "on"):
      return f(*arrays)

  return run


# shape, window, strides, padding
RAGGED = (2, 5, 4, 20), (3, 3), (1, 1), ONES  # no whole tile of lanes or of channels
STRIDED = (2, 9, 8, 5), (3, 3), (2, 2), ONES
TALL = (1, 7, 5, 33), (5, 1), (1, 1), ((2, 2), (0, 0))
UNEQUAL = (3, 6, 5, 4), (3, 2), (2, 1), ((0, 1), (0, 0))  # with rows of x that nothing was made of


@pytest.mark.parametrize("case,dtype,tolerance", [(STRIDED, jnp.float32, 1e-6), (TALL, jnp.bfloat16, 1e-2)])
def test_depthwise_conv(case, dtype, tolerance):
  shape, window, strides, padding = case
  where = dict(strides=strides, padding=padding)
  plain = functools.partial(ops.depthwise_conv, **where)
  agree(chosen(plain), plain, [random(*shape), random(*window, 1, shape[-1], seed=2)], dtype, tolerance)


def test_the_smaller_of_two_filters():
  shape, window, strides, padding = UNEQUAL
  options = dict(strides=strides, padding=padding, combine="min")
  kernel, other = (random(*window, 1, shape[-1], seed=seed) for seed in (2, 3))
  other = np.where(np.arange(shape[-1]) == 1, kernel, other)  # and equal in one channel
  plain = functools.partial(ops.paired_depthwise_product, **options)
  agree(chosen(plain), plain, [random(*shape), kernel, other])


def test_product_with_batch_norm():
  shape, window, strides, padding = RAGGED
  plain = functools.partial(ops.paired_depthwise_normalize, epsilon=1e-3, strides=strides, padding=padding)
  agree(chosen(plain), plain, [random(*shape), *(random(*window, 1, shape[-1], seed=seed) for seed in (2, 3))], tolerance=2e-6)


def test_fp_block_with_kernels():
  """The kernel stands for the filters, their product and its norm, and leaves the running statistics as they are."""
  block, x = FPBlock(4, kernel_init=jax.nn.initializers.normal(0.5)), jnp.asarray(random(2, 5, 4, 3), jnp.float32)
  variables = jax.jit(lambda x: block.init(jax.random.key(0), x, train=False))(x)

  def run(mode):
    def loss(params):
      with choice.gpu_kernels(mode):
        y, state = block.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
      return (y * y).sum(), state

    return jax.jit(jax.value_and_grad(loss, has_aux=True)), variables["params"]

  step, params = run("interpret")
  assert "depthwise_forward" in str(jax.make_jaxpr(step)(params))
  for a, b in zip(jax.tree.leaves(step(params)), jax.tree.leaves(run("off")[0](params)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_programs_that_take_several_tiles(monkeypatch):
  monkeypatch.setattr(tile, "PROGRAMS", 1)
  x, kernel, padding = random(9, 4, 3, 40), random(2, 1, 1, 40, seed=2), ((1, 0), (0, 0))
  plan = depthwise.plan(x, kernel, 1, (1, 1), padding, True)
  assert plan.turns == 3 and plan.grid == (1, 2)
  plain = functools.partial(ops.depthwise_conv, strides=(1, 1), padding=padding)
  agree(chosen(plain), plain, [x, kernel])
  agree(functools.partial(grouped.grouped_pointwise, groups=2),
        functools.partial(grouped_pointwise_reference, groups=2), [random(150, 6), random(3, 4, seed=2)])


# A last block with fewer groups than the others; columns in several products, the last not full; a single
# block
@pytest.mark.parametrize("pixels,channels,features,groups,interleaved", [
    (70, 300, 150, 10, True), (65, 80, 480, 5, True), (3, 12, 8, 4, False)])
def test_grouped_pointwise(pixels, channels, features, groups, interleaved):
  def plain(x, kernel):
    y = grouped_pointwise_reference(x, kernel, groups=groups)
    return ops.interleave(y, groups) if interleaved else y

  agree(functools.partial(grouped.grouped_pointwise, groups=groups, interleaved=interleaved), plain,
        [random(1, pixels, channels), random(channels // groups, features, seed=2)])


def test_half_precision_is_rounded_once():
  x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in (random(64, 480), random(24, 80, seed=2)))
  y = grouped.grouped_pointwise(x, kernel, groups=20, interpret=True)
  wide = grouped_pointwise_reference(x.astype(jnp.float32), kernel.astype(jnp.float32), groups=20)
  assert y.dtype == jnp.bfloat16 and np.mean(np.asarray(y != wide.astype(jnp.bfloat16))) < 1e-3


@pytest.mark.parametrize("shape,window,features,strides,padding,full", [
    ((2, 5, 7, 20), (3, 3), 24, (1, 1), ONES, True),
    ((1, 4, 5, 4), (1, 3), 40, (1, 1), ((0, 0), (1, 1)), False),
    ((1, 9, 8, 40), (3, 3), 130, (2, 2), ONES, True),
    ((1, 6, 7, 5), (3, 3), 6, (1, 1), ((0, 0), (0, 0)), False)])
def test_ic_conv(shape, window, features, strides, padding, full):
  arrays = [random(*shape), random(*window, shape[-1], features, seed=2), random(shape[-1], features, seed=3)]
  if full:
    arrays += [random(features, seed=seed) for seed in (4, 5, 6)]

  def layer(x, kernel, adjust, *hinge):
    return ops.ic_conv(x, kernel, adjust, strides=strides, padding=padding,
                       **dict(zip(("inner_bias", "outer_bias", "alpha"), hinge, strict=False)))

  agree(chosen(layer), layer, arrays, tolerance=2e-6)


def test_a_tie_of_the_hinge_has_the_gradient_of_the_linear_response():
  x, kernel, adjust = jnp.zeros((1, 4, 4, 3)), jnp.asarray(random(3, 3, 3, 4), jnp.float32), jnp.ones((3, 4))
  def layer(x):
    return ops.ic_conv(x, kernel, adjust, strides=(1, 1), padding=ONES)

  for f in (layer, functools.partial(chosen(layer), interpret=True)):
    found = jax.jit(jax.grad(lambda x, f=f: f(x).sum()))(x)
    want = jax.jit(jax.grad(lambda x: ops.conv(x, kernel, strides=(1, 1), padding=ONES).sum()))(x)
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_vmap():
  x, a = (jnp.asarray(v, jnp.float32) for v in (random(2, 1, 4, 4, 4), random(2, 1, 2, 1, 4, seed=2)))
  plain = functools.partial(ops.depthwise_conv, strides=(1, 1), padding=((0, 0), (1, 0)))

  def gradients(f):
    return jax.jit(jax.vmap(jax.grad(lambda x, a: (f(x, a)**2).sum(), (0, 1))))(x, a)

  for one, other in zip(gradients(functools.partial(chosen(plain), interpret=True)), gradients(plain), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


# Lowering for a GPU -----------------------------------------------------------------------------------------


def abstract_gpu():
  """Newer versions of JAX ask for a model of GPU if there is none."""
  if not hasattr(jax.sharding, "AbstractDevice"):
    return contextlib.nullcontext()
  device = jax.sharding.AbstractDevice("NVIDIA H100", None, "cuda")
  return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def with_gradients(f):
  def run(*arrays):
    y, pull = jax.vjp(f, *arrays)
    return y, pull(y)

  return run


def lowered(f, *shapes):
  arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
  with abstract_gpu():
    return jax.jit(f).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()


KERNELS = {  # function, shapes, and the number of its kernels forward and backward
    "normalize": (chosen(functools.partial(ops.paired_depthwise_normalize, epsilon=1e-3)), ((2, 6, 6, 64), (3, 3, 1, 64), (3, 3, 1, 64)), 2),
    "strided": (chosen(functools.partial(ops.depthwise_conv, strides=(2, 2), padding=((2, 2), (2, 2)))),
                ((2, 7, 7, 40), (5, 5, 1, 40)), 2),
    "grouped": (functools.partial(grouped.grouped_pointwise, groups=4, interleaved=True),
                ((70, 96), (24, 16)), 3),
    "ic": (chosen(functools.partial(ops.ic_conv, padding=ONES)), ((2, 6, 6, 40), (3, 3, 40, 24), (40, 24)), 2),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_lowered_for_a_gpu(name):
  f, shapes, count = KERNELS[name]
  assert lowered(with_gradients(f), *shapes).count("stablehlo.custom_call @__gpu$xla.gpu.triton") == count


def test_vmapped_kernels_are_lowered_for_a_gpu():
  f = jax.vmap(with_gradients(chosen(lambda x, a: ops.paired_depthwise_product(x, a, a))))
  text = lowered(f, (3, 2, 6, 6, 8), (3, 3, 3, 1, 8))
  assert text.count("stablehlo.custom_call @__gpu$xla.gpu.triton") == 2


# The choice -------------------------------------------------------------------------------------------------


def test_choice(monkeypatch):
  x = jax.ShapeDtypeStruct((32, 8, 8, 16), jnp.float32)
  assert not any(choice.WINS.values())  # or this test has to tell of what was measured
  found = choice.chosen("ic", x, 3, supported=True)
  assert found == ""
  for mode, want in (("on", "gpu"), ("interpret", "interpret"), ("off", "")):
    with choice.gpu_kernels(mode):
      assert choice.chosen("ic", x, 3, supported=True) == want
      assert choice.chosen("ic", x, 3, supported=False) == ""
      with ops.plain_derivatives():
        assert choice.chosen("ic", x, 3, supported=True) == ""
  monkeypatch.setitem(choice.WINS, "ic", {("float32", 8, 8, 16, 3): 32})
  assert choice.chosen("ic", x, 3, supported=True) == ""  # several devices
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert choice.chosen("ic", x, 3, supported=True) == "gpu"
  assert choice.chosen("ic", jax.ShapeDtypeStruct((31, 8, 8, 16), jnp.float32), 3, supported=True) == ""
  with pytest.raises(ValueError, match="'fast'.: give one of 'auto', 'on', 'off', 'interpret'"):
    with choice.gpu_kernels("fast"):
      pass


def test_either_compiles_one_form_for_each_platform():
  def kernel(x, interpret):
    def twice(x, y):
      i = jnp.arange(8)
      tile.store(y, (i,), 2 * x[i], i < 8)

    (y,) = tile.call(twice, [x], [jax.ShapeDtypeStruct(x.shape, x.dtype)], grid=(1,), warps=1,
                     interpret=interpret, name="twice")
    return y

  x = jnp.arange(8.0)
  for how in ("", "gpu", "interpret"):
    f = functools.partial(choice.either, how, kernel, lambda x: x + x)
    np.testing.assert_array_equal(jax.jit(f)(x), 2 * x)
  on_gpu = lowered(lambda x: choice.either("gpu", kernel, lambda x: x + x, x), (8,))
  assert on_gpu.count("xla.gpu.triton") == 1


@pytest.mark.parametrize("call,message", [
    (lambda: BatchNorm(use_scale=False).init(jax.random.key(0), jnp.ones((2, 3)), False, fused=max),
     "fused is for one with neither scale nor bias"),
    (lambda: grouped.grouped_pointwise(jnp.ones((2, 6)), jnp.ones((1, 6)), groups=6),
     "no grouped kernel for float32"),
])
def test_what_has_no_kernel_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_there_is_no_ic_kernel_for_groups_of_channels():
  where = dict(strides=(1, 1), padding=ONES)
  x, adjust = jnp.ones((1, 4, 4, 4)), jnp.ones((4, 4))
  assert ic.supports(x, jnp.ones((3, 3, 4, 4)), adjust, **where)
  assert not ic.supports(x, jnp.ones((3, 3, 2, 4)), adjust, **where)
