"""The operations' own derivative rules against what JAX derives, and the switch between the two."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bionets_jax as bn
from bionets_jax import ops
from bionets_jax.ops.memory import in_memory, pad_in_memory

RNG = np.random.default_rng(0)
PADS = ((1, 1), (1, 1))


def normal(*shape):
  return RNG.standard_normal(shape)


def ic(strides):
  return lambda x, kernel, adjust, alpha, b1, b2: ops.ic_conv(
      x, kernel, adjust, alpha=alpha, inner_bias=b1, outer_bias=b2, strides=strides, padding=PADS)


# In each a function of arrays in the form that a network calls. The batch of 16 has its kernel's gradient in two parts.
CASES = {
    "conv": (lambda x, k: ops.conv(x, k, strides=(1, 1), padding=PADS), normal(16, 5, 6, 3), normal(3, 3, 3, 4)),
    "conv, strided": (lambda x, k: ops.conv(x, k, strides=(2, 1), padding=((0, 1), (2, -1))),
                      normal(2, 7, 6, 3), normal(3, 2, 3, 4)),
    "pair": (lambda x, a, b: ops.paired_depthwise_product(x, a, b), normal(2, 8, 5, 3), normal(3, 3, 1, 3),
             normal(3, 3, 1, 3)),
    "pair of minima, strided": (
        lambda x, a, b: ops.paired_depthwise_product(x, a, b, strides=(2, 2), combine="min"),
        normal(2, 7, 6, 3), normal(3, 3, 1, 3), normal(3, 3, 1, 3)),
    "ic": (ic(1), normal(2, 5, 6, 3), normal(3, 3, 3, 4), normal(3, 4), normal(4), normal(4), normal(4)),
    "ic, strided": (ic(2), normal(2, 5, 6, 3), normal(3, 3, 3, 4), normal(3, 4), normal(4), normal(4), normal(4)),
    "grouped, merged": (lambda x, k: ops.grouped_pointwise(x, k, groups=4), normal(2, 3, 12), normal(3, 8)),
    "batch norm": (lambda x, s, b: ops.batch_normalize(x, s, b, epsilon=1e-3, groups=2), normal(4, 3, 2, 5), normal(5),
                   normal(5)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_that_jax_derives(float64, name):
  function, *arrays = CASES[name]

  @jax.jit
  def ours(*arrays):
    out, pull = jax.vjp(function, *arrays)
    return out, pull(jax.tree.map(lambda y: jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape), out))

  @jax.jit
  def theirs(*arrays):
    with ops.plain_derivatives():
      return ours.__wrapped__(*arrays)

  for a, b in zip(jax.tree.leaves(ours(*arrays)), jax.tree.leaves(theirs(*arrays)), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(a, b, atol=1e-11)


def test_forward_mode_works_within_plain_derivatives_and_only_there(float64):
  function, x, kernel = CASES["conv"]
  direction = normal(*x.shape)
  with pytest.raises(TypeError, match="forward-mode"):
    jax.jvp(lambda x: function(x, kernel), (x,), (direction,))
  with bn.ops.plain_derivatives():
    _, found = jax.jvp(lambda x: function(x, kernel), (x,), (direction,))
  np.testing.assert_allclose(found, function(direction, kernel), atol=1e-12)  # it is linear


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_in_memory_changes_nothing(dtype):
  x = jnp.asarray(normal(2, 3, 4), dtype).at[0, 0, :3].set(jnp.asarray([np.nan, np.inf, -np.inf], dtype))

  def same(a, b):
    np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))

  same(jax.jit(in_memory)(x), x)
  for padding in (((0, 0, 0), (1, 2, 1), (0, 3, 0)), ((0, 0, 0), (-1, 2, 0), (0, 0, 0))):
    same(pad_in_memory(x, padding), jax.lax.pad(x, jnp.zeros((), dtype), padding))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="says what XLA does on CPUs")
def test_what_is_kept_in_memory_is_computed_once():
  def consumers(kept):
    def function(x):
      y = kept(jnp.sin(x))  # two readers of other shapes
      return y[1:] * 2, y[:-1] + 1
    return len(re.findall(r"= \S+ sine\(", jax.jit(function).lower(np.ones((64, 64), np.float32)).compile().as_text()))

  assert consumers(in_memory) == 1


def test_compiler_options_are_options_of_this_xla():
  run = jax.jit(lambda x, k: ops.conv(x, k, strides=(1, 1), padding=PADS),
                compiler_options=ops.compiler_options())
  x, kernel = normal(1, 4, 4, 2).astype(np.float32), normal(3, 3, 2, 32).astype(np.float32)
  np.testing.assert_allclose(
      run(x, kernel), jax.lax.conv_general_dilated(x, kernel, (1, 1), PADS, dimension_numbers=("NHWC", "HWIO", "NHWC")),
      atol=1e-5)
  assert ops.compiler_options("gpu") == ops.compiler_options("tpu") == {}


def test_determinism_is_an_option_of_this_xla_and_of_gpus_alone():
  options = ops.compiler_options("gpu", deterministic=True)
  assert options and jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2  # an unknown name is an error
  assert ops.compiler_options("cpu", deterministic=True) == ops.compiler_options("cpu")
  assert ops.compiler_options("tpu", deterministic=True) == {}
