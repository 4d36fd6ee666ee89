"""Learning-rate schedules and the optimiser, as the papers have them."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from bionets_jax.training.config import duration_in_steps, nearest

KINDS = ("step", "cosine", "constant")
# No decay on alpha: the WLD paper's rate and decay would move it by less than 1 % over a whole run.
_ALPHA = re.compile(r"(^|/)alpha$")
_NOT_KERNELS = re.compile(r"(^|/)(bias|inner_bias|scale|alpha)$")


def make_schedule(
    config: ml_collections.ConfigDict, *, batch_size: int, steps_per_epoch: int, total_steps: int
) -> Callable[[jax.Array | int], jax.Array]:
  """The learning rate of each step.

  Args:
    config: `config.schedule`.
    batch_size: images per step, for `reference_batch`.
    steps_per_epoch: what an epoch is in `boundaries` and `warmup`.
    total_steps: where 'cosine' arrives at 0.

  Returns:
    An optax schedule: step (from 0) -> rate.
  """
  lr = config.lr
  if config.reference_batch:
    lr = lr * batch_size / config.reference_batch
  warmup = duration_in_steps(config.warmup, steps_per_epoch, "schedule.warmup")
  if config.kind == "step":
    boundaries: dict[int, float] = {}
    for epoch in config.boundaries:  # two of them may fall on the same step
      step = round(epoch * steps_per_epoch)
      boundaries[step] = boundaries.get(step, 1.0) * config.factor
    main = optax.schedules.piecewise_constant_schedule(lr, boundaries)
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


def make_optimizer(
    config: ml_collections.ConfigDict, schedule: Callable
) -> optax.GradientTransformation:
  """SGD with momentum and coupled weight decay, as PyTorch's: g += wd p; v = m v + g; p -= lr v.

  Args:
    config: `config.optimizer`. `decay` = 'all' decays every parameter but the IC units' alpha;
      'kernels' leaves out biases, inner biases and the scales of norms too.
    schedule: step -> rate.
  """
  if config.decay not in ("all", "kernels"):
    raise ValueError(f"config.optimizer.decay={config.decay!r}: give 'all' or 'kernels'")
  exempt = _ALPHA if config.decay == "all" else _NOT_KERNELS

  def mask(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not exempt.search("/".join(str(k.key) for k in path)), params)

  parts = []
  if config.weight_decay:
    parts.append(optax.add_decayed_weights(config.weight_decay, mask))
  parts.append(optax.sgd(schedule, momentum=config.momentum or None, nesterov=config.nesterov))
  return optax.chain(*parts)
