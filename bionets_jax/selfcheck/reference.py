"""One training step in float32 beside the same step in float64, and its gradient beside differences of losses."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bionets_jax.selfcheck.check import Check, Context
from bionets_jax.selfcheck.runs import relative, small_config
from bionets_jax.training.program import jit_init
from bionets_jax.training.setup import make_setup
from bionets_jax.training.state import make_train_step

# 24 bits are 6e-8. Measured are 1e-7 of the loss and 1.4e-5 of what is a difference of large sums.
FLOAT32 = 1e-4
# So short because whole regions of an image are of one grey, and pass the kink of a ReLU together: with 1e-6 that
# happens. What float64 leaves of a difference of losses that near is good to 1e-7.
_H = 1e-8
DIFFERENCES = 1e-5


def check_reference(context: Context) -> list[Check]:
  """float32 with its reference, and the reference with itself."""
  config = small_config(context)
  config.mixup = 0.0  # draws other numbers in float64
  setup = make_setup(config, context.devices[:1])
  batches = setup.pipeline.train_batches(0)
  batch = jax.device_get(next(batches))
  batches.close()
  state = jax.device_get(jit_init(setup)(jax.random.key(0), {}))
  options = dict(seed=0, accumulate=1, ema_decay=config.ema_decay, unroll=True)

  context.say("one step in float32")
  with jax.default_matmul_precision("float32"):  # a GPU would round products to 10 bits
    step = jax.jit(make_train_step(setup.task, setup.optimizer, **options))
    single = jax.device_get(step(state, {}, batch))

  # A TPU has no float64.
  where = jax.devices("cpu")[0] if context.devices[0].platform == "tpu" else context.devices[0]
  context.say(f"the same step in float64, on {where.device_kind}")
  with jax.enable_x64(True), jax.default_device(where):
    task = copy.copy(setup.task)
    task.model = task.model.clone(dtype=jnp.float64)
    state, batch = _wide(state), _wide(batch) | {"image": batch["image"].astype(np.float64)}
    step = jax.jit(make_train_step(task, setup.optimizer, **options))
    double = jax.device_get(step(state, {}, batch))
    gradient, slope = _slopes(task, state, batch)

  (new, metrics), (exact, wanted) = single, double
  losses = abs(float(metrics["loss"]) / float(wanted["loss"]) - 1)
  arrays = [relative(a, b) for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(new), strict=True)]
  return [
      Check("float64", f"a step in float32 and in float64: loss, {len(arrays)} arrays of the new state",
            max(losses, *arrays), FLOAT32),
      Check("gradient", "float64, in a random direction: gradient and difference of losses",
            abs(gradient - slope) / abs(slope), DIFFERENCES)]


def _slopes(task: Any, state: Any, batch: Any) -> tuple[float, float]:
  """The loss's slope in a random direction: by its gradient, and by a central difference."""
  def loss(params):
    values, _, _ = task.train_losses(params, state.model_state, {}, batch, state.step, jax.random.key(0))
    return values.mean()

  random = np.random.default_rng(0)
  direction = jax.tree.map(lambda x: random.standard_normal(x.shape) * (0.1 + np.std(x)), state.params)
  value = jax.jit(loss)
  ahead, behind = (float(value(jax.tree.map(lambda p, d, h=h: p + h * d, state.params, direction)))
                   for h in (_H, -_H))
  grads = jax.device_get(jax.jit(jax.grad(loss))(state.params))
  products = jax.tree.map(lambda g, d: float(np.sum(g * d)), grads, direction)
  return sum(jax.tree.leaves(products)), (ahead - behind) / (2 * _H)


def _wide(tree: Any) -> Any:
  return jax.tree.map(lambda x: x.astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x, tree)
