"""Learning-rate schedules and optimisers, as the papers have them."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from bionets_jax.training.config import duration_in_steps, nearest

KINDS = ("step", "exponential", "cyclical25", "cosine", "constant")
OPTIMIZERS = ("sgd", "rmsprop")
_MOST_EPOCHS = 1_000_000
_LAST_STEP = 2**31 - 1  # steps are counted in 32 bits
# No decay on alpha: the WLD paper's rate and decay would move it by less than 1 % over a whole run.
_ALPHA = re.compile(r"(^|/)alpha$")
_NOT_KERNELS = re.compile(r"(^|/)(bias|inner_bias|scale|alpha)$")


def make_schedule(
    config: ml_collections.ConfigDict, *, batch_size: int, steps_per_epoch: int, total_steps: int
) -> Callable[[jax.Array | int], jax.Array]:
  """The learning rate of each step.

  'step': multiplied by `factor` at each of `boundaries`. 'exponential': `lr * factor**epoch`.
  'cyclical25': cycles of 25 epochs, `lr * cyclical25_factor(epoch)` (kEffNet, with lr=0.001).
  The last two hold a rate for a whole epoch, as Keras' LearningRateScheduler does. 'cosine': half a
  cosine to 0 over the run. 'constant': `lr`.

  Args:
    config: `config.schedule`.
    batch_size: images per step, for `reference_batch`.
    steps_per_epoch: what an epoch is in `boundaries` and `warmup`, and for the rates of an epoch.
    total_steps: where 'cosine' arrives at 0.

  Returns:
    An optax schedule: step (from 0) -> rate.

  Raises:
    ValueError: for an unknown kind, or a factor that 'exponential' cannot have.
  """
  lr = config.lr
  if config.reference_batch:
    lr = lr * batch_size / config.reference_batch
  warmup = duration_in_steps(config.warmup, steps_per_epoch, "schedule.warmup")
  if warmup > _LAST_STEP:
    raise ValueError(f"config.schedule.warmup={config.warmup!r} is {warmup:,} steps, more than a run can have")
  if config.kind == "step":
    boundaries: dict[int, float] = {}
    for epoch in config.boundaries:  # two of them may fall on the same step
      step = min(round(epoch * steps_per_epoch), _LAST_STEP)
      boundaries[step] = boundaries.get(step, 1.0) * config.factor
    main = optax.schedules.piecewise_constant_schedule(lr, boundaries)
  elif config.kind == "exponential":
    if not 0 < config.factor <= 1:
      raise ValueError(f"config.schedule.factor={config.factor}: with config.schedule.kind='exponential' "
                       "give a number above 0 and up to 1, e.g. 0.99")
    epochs = math.ceil(max(total_steps, 1) / steps_per_epoch)
    if epochs > _MOST_EPOCHS:  # each of them is a number in the compiled step
      raise ValueError(f"config.schedule.kind='exponential' has a rate for each epoch, and the run has {epochs:,}; "
                       f"{_MOST_EPOCHS:,} are the most")
    main = _per_epoch([lr * config.factor**epoch for epoch in range(epochs)], steps_per_epoch, cyclic=False)
  elif config.kind == "cyclical25":
    main = _per_epoch([lr * cyclical25_factor(e) for e in range(25)], steps_per_epoch, cyclic=True)
  elif config.kind == "cosine":
    main = optax.schedules.cosine_decay_schedule(lr, max(total_steps, 1))
  elif config.kind == "constant":
    main = optax.schedules.constant_schedule(lr)
  else:
    raise ValueError(f"config.schedule.kind={config.kind!r}{nearest(config.kind, KINDS)}; "
                     f"known: {', '.join(KINDS)}")
  if not warmup:
    return main
  return lambda step: main(step) * jnp.minimum(1.0, (step + 1) / warmup)


def cyclical25_factor(epoch: int) -> float:
  """The rate in kEffNet's cycles of 25 epochs, in units of their first: up to 4, then times 0.85 each.

  With l = epoch mod 25 it is 1 + l / 2 for l < 7, else 4 * 0.85**(l - 7). Source: the authors' code; the
  paper has "cyclical learning rate of 25 epochs".
  """
  position = epoch % 25
  return 1 + 0.5 * position if position < 7 else 4 * 0.85 ** (position - 7)


def _per_epoch(rates: Sequence[float], steps_per_epoch: int, *, cyclic: bool) -> Callable:
  """A rate for each epoch; after the last again from the first if `cyclic`, else the last one.

  Made in float64 once, and looked up by whole numbers: a float32 step / steps_per_epoch would change the
  rate some steps off the epoch's first one, and a float32 power is off by more than its last digit.
  """
  table = np.asarray(rates, np.float64)

  def schedule(step: jax.Array | int) -> jax.Array:
    epoch = step // steps_per_epoch
    return jnp.asarray(table)[epoch % len(table) if cyclic else jnp.minimum(epoch, len(table) - 1)]

  return schedule


def make_optimizer(
    config: ml_collections.ConfigDict, schedule: Callable, stays: Callable[[Any], bool] = lambda path: False
) -> optax.GradientTransformation:
  """The optimiser, with coupled weight decay: g += wd p comes first.

  'sgd' is PyTorch's: v = m v + g; p -= lr v. 'rmsprop' is Keras' of before version 2.11:
  s = rho s + (1 - rho) g^2; v = m v + lr g / (sqrt(s) + epsilon); p -= v, with s and v from 0. Later
  versions of Keras have epsilon inside the root, as has that one if m > 0; here it is outside always.
  PyTorch's takes lr out of v.

  Args:
    config: `config.optimizer`. `decay` = 'all' decays every parameter but the IC units' alpha;
      'kernels' leaves out biases, inner biases and the scales of norms too.
    schedule: step -> rate.
    stays: from a parameter's path (jax.tree_util's keys) to whether it is not trained. Its gradient has to be 0; then
      it does not decay either.

  Raises:
    ValueError: naming the key that is out of its range.
  """
  _check(config)
  exempt = _ALPHA if config.decay == "all" else _NOT_KERNELS

  def mask(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not (exempt.search("/".join(str(k.key) for k in path)) or stays(path)), params)

  parts = []
  if config.weight_decay:
    parts.append(optax.add_decayed_weights(config.weight_decay, mask))
  momentum = config.momentum or None
  if config.kind == "sgd":
    parts.append(optax.sgd(schedule, momentum=momentum, nesterov=config.nesterov))
  else:
    parts.append(optax.rmsprop(
        schedule, decay=config.rho, eps=config.epsilon, initial_scale=0.0, eps_in_sqrt=False,
        momentum=momentum))
  return optax.chain(*parts)


def _check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for a value of `config.optimizer` that cannot be meant."""
  if config.kind not in OPTIMIZERS:
    raise ValueError(f"config.optimizer.kind={config.kind!r}{nearest(config.kind, OPTIMIZERS)}; "
                     f"known: {', '.join(OPTIMIZERS)}")
  if config.decay not in ("all", "kernels"):
    raise ValueError(f"config.optimizer.decay={config.decay!r}: give 'all' or 'kernels'")
  for key in ("momentum", "rho"):
    if not 0 <= config[key] < 1:
      raise ValueError(f"config.optimizer.{key}={config[key]}: give a number from 0 to below 1")
  if not (config.epsilon > 0 and math.isfinite(config.epsilon)):
    raise ValueError(f"config.optimizer.epsilon={config.epsilon}: give a number above 0, e.g. 1e-7")
  if not (config.weight_decay >= 0 and math.isfinite(config.weight_decay)):
    raise ValueError(f"config.optimizer.weight_decay={config.weight_decay}: give 0 or more")
  if config.nesterov and config.kind != "sgd":
    raise ValueError(f"config.optimizer.nesterov=True belongs to kind='sgd'; {config.kind!r} has none")
  if config.nesterov and not config.momentum:
    raise ValueError("config.optimizer.nesterov=True needs a config.optimizer.momentum above 0")
