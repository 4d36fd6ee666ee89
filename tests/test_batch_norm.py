"""BatchNorm against Flax's, against NumPy, and over devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bionets_jax.layers import BatchNorm
from bionets_jax.training.devices import make_mesh


def inputs(*shape):
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 2 + 1


def run(layer, variables, x):
  y, new = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
  return y, new["batch_stats"]


def test_one_group_is_flax_batch_norm():
  x = inputs(8, 5, 5, 6)
  ours, theirs = BatchNorm(), nn.BatchNorm(momentum=0.9)
  variables = ours.init(jax.random.key(0), x, use_running_average=True)
  same = theirs.init(jax.random.key(0), x, use_running_average=True)
  assert jax.tree.structure(variables) == jax.tree.structure(same)
  (y, stats), (z, other) = run(ours, variables, x), run(theirs, variables, x)
  np.testing.assert_allclose(y, z, atol=2e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stats, other)
  moved = {"params": variables["params"], "batch_stats": stats}
  np.testing.assert_allclose(ours.apply(moved, x, use_running_average=True),
                             theirs.apply(moved, x, use_running_average=True), atol=2e-6)


def reference(x, groups):
  """Each part of the batch by its own mean and variance; running statistics from their means."""
  parts = [p.astype(np.float64) for p in np.split(x, groups)]
  means, variances = [p.mean((0, 1, 2)) for p in parts], [p.var((0, 1, 2)) for p in parts]
  y = [(p - m) / np.sqrt(v + 1e-5) for p, m, v in zip(parts, means, variances, strict=True)]
  return np.concatenate(y), 0.1 * np.mean(means, 0), 0.9 + 0.1 * np.mean(variances, 0)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_groups_are_the_reference_on_any_number_of_devices(groups, devices):
  x = inputs(8, 4, 4, 3) + np.arange(8, dtype=np.float32)[:, None, None, None]
  layer = BatchNorm(groups=groups)
  variables = layer.init(jax.random.key(0), x, use_running_average=True)
  mesh = make_mesh(jax.devices()[:devices])
  sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
  y, stats = jax.jit(lambda v, x: run(layer, v, x))(variables, sharded)
  want, mean, var = reference(x, groups)
  np.testing.assert_allclose(y, want, atol=1e-5)
  np.testing.assert_allclose(stats["mean"], mean, atol=1e-6)
  np.testing.assert_allclose(stats["var"], var, rtol=1e-5)


def test_groups_differ_from_the_whole_batch():
  x = inputs(8, 4, 4, 3) + np.arange(8, dtype=np.float32)[:, None, None, None]
  variables = BatchNorm().init(jax.random.key(0), x, use_running_average=True)
  assert np.abs(run(BatchNorm(groups=4), variables, x)[0] - run(BatchNorm(), variables, x)[0]).max() > .5


def test_a_batch_that_does_not_divide():
  x = inputs(6, 2, 2, 3)
  layer = BatchNorm(groups=4)
  variables = layer.init(jax.random.key(0), x, use_running_average=True)
  with pytest.raises(ValueError, match="batch of 6 does not divide into 4 groups"):
    run(layer, variables, x)


def test_half_precision_input_float32_statistics():
  x = jnp.asarray(inputs(64, 8, 8, 4), jnp.bfloat16)
  layer = BatchNorm()
  variables = layer.init(jax.random.key(0), x, use_running_average=True)
  y, stats = run(layer, variables, x)
  assert y.dtype == jnp.bfloat16 and stats["mean"].dtype == jnp.float32
  np.testing.assert_allclose(stats["mean"], 0.1 * np.asarray(x, np.float64).mean((0, 1, 2)), rtol=1e-4)
