"""States to save, small and different at each step."""


import jax
import jax.numpy as jnp
import numpy as np

from bionets_jax.training.checkpoints import Checkpoints
from bionets_jax.training.devices import make_mesh, replicated
from bionets_jax.training.keeping import Keep


def quiet(text):
  pass


def make_state(step, devices=1, size=5000):
  """A state whose numbers depend on the step and do not compress away, on some devices."""
  numbers = np.random.default_rng(step).standard_normal(size).astype(np.float32)
  tree = {"params": {"a": {"kernel": numbers.reshape(-1, 50)}, "b": numbers[:7].astype(jnp.bfloat16)},
          "step": np.int32(step), "none": {}}
  return jax.device_put(tree, replicated(make_mesh(jax.devices()[:devices])))


def clock_of(step, error=None):
  last = {} if error is None else {"step": step, "top1_error": error}
  return {"train": step + 0.1, "total": 1.0, "last": last, "best": last, "inputs": {"train_examples": 3}}


def fill(workdir, steps, keep=None, said=None):
  """Saves states of these steps."""
  checkpoints = Checkpoints(str(workdir), keep or Keep(last=99), say=(said if said is not None else []).append)
  for step in steps:
    checkpoints.save(step, make_state(step), clock_of(step))
    checkpoints.wait()
  return checkpoints


def assert_step(state, step):
  jax.tree.map(np.testing.assert_array_equal, state, make_state(step))
