"""The train state and the two compiled functions over it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from bionets_jax.training.tasks import Batch, Metrics, Task, Tree


class TrainState(struct.PyTreeNode):
  """Everything that a step reads and writes, and that a checkpoint holds.

  step: int32 scalar, the number of updates made.
  params: the trainable parameters, float32.
  model_state: the other collections: `batch_stats`, `scheduled`.
  opt_state: the optimiser's.
  ema: {'params', 'model_state'} averages, or {} where config.ema_decay is 0.
  best: {'params', 'model_state', 'error'} of the evaluation with the lowest error so far, or {} where
    config.select is 'last'.
  loss_scale: {'scale', 'good_steps'} of float16, or {}.
  nonfinite: {'skipped', 'in_a_row'}, int32: how many steps changed nothing because their loss or gradients
    were not finite, and how many of these the last ones were; GIVEN_UP there if the state is to stay as it is.
  """

  step: jax.Array
  params: Tree
  model_state: Tree
  opt_state: Tree
  ema: Tree
  best: Tree
  loss_scale: Tree
  nonfinite: Tree

  @property
  def evaluated(self) -> tuple[Tree, Tree]:
    """(params, model_state) that evaluation uses: the averages where there are any."""
    if self.ema:
      return self.ema["params"], self.ema["model_state"]
    return self.params, self.model_state

  @property
  def selected(self) -> tuple[Tree, Tree]:
    """(params, model_state) that the run is about in the end."""
    if self.best:
      return self.best["params"], self.best["model_state"]
    return self.evaluated


def older_fields(state: Tree) -> Tree:
  """Of a `TrainState` what checkpoints hold that are older than its `nonfinite`, by name; another tree as it is."""
  if not isinstance(state, TrainState):
    return state
  return {name: value for name, value in vars(state).items() if name != "nonfinite"}


def from_older_fields(fields: Tree, like: Tree) -> Tree:
  """The tree that `older_fields` was of, of the kind of `like`."""
  return TrainState(**fields, nonfinite=no_nonfinite_steps()) if isinstance(like, TrainState) else fields


# The loss scale of float16, as Keras' LossScaleOptimizer has it.
FIRST_SCALE = 2.0**15
GOOD_STEPS = 2000
GIVEN_UP = -1


def no_nonfinite_steps() -> Tree:
  """`TrainState.nonfinite` before the first step."""
  return {"skipped": jnp.int32(0), "in_a_row": jnp.int32(0)}


def make_init(
    task: Task, optimizer: optax.GradientTransformation, *, ema: bool,
    select_best: bool = False, loss_scaling: bool = False,
) -> Callable[[jax.Array, Tree], TrainState]:
  """(rng, inherited) -> TrainState. `inherited` leaves replace those of the same path."""

  def init(rng: jax.Array, inherited: Tree) -> TrainState:
    params, model_state = task.init(rng)
    params = _replace(params, inherited.get("params", {}))
    model_state = _replace(model_state, {k: v for k, v in inherited.items() if k != "params"})
    variables = {"params": params, "model_state": model_state}
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, model_state=model_state,
        opt_state=optimizer.init(params),
        ema=variables if ema else {},
        best=variables | {"error": jnp.float32(jnp.inf)} if select_best else {},
        loss_scale={"scale": jnp.float32(FIRST_SCALE), "good_steps": jnp.int32(0)} if loss_scaling else {},
        nonfinite=no_nonfinite_steps())

  return init


def make_train_step(
    task: Task, optimizer: optax.GradientTransformation, *, seed: int | jax.Array,
    accumulate: int, ema_decay: float, unroll: bool, give_up: int = 1,
) -> Callable[[TrainState, Tree, Batch], tuple[TrainState, Metrics]]:
  """(state, frozen, batch) -> (state, metrics); pure.

  A batch is computed in `accumulate` parts, part i the examples i, i + accumulate, ...: each part
  then lies evenly over the devices. BatchNorm and the batch hinge of WLD see one part at a time.

  Metrics are sums over the batch beside their 'count', so that they add up over steps.

  A step whose loss, running statistics or gradients are not finite changes nothing but `nonfinite` and its
  number. The metric 'in_a_row' is that of the new state, and no sum. After `give_up` such steps in a row no step
  changes anything any more: the host, which learns of them late, finds the state as they found it.

  In float16 the loss is scaled so that small gradients do not vanish. A step of which only the gradients are
  not finite then halves the scale, and is none of those above. At a scale of 1 it is.

  The metric 'skipped' counts steps of either kind; it is there where steps can be skipped.

  Args:
    task: what is learned.
    optimizer: optax.
    seed: of dropout and the like, folded with the step; a number or an array of one.
    accumulate: number of parts.
    ema_decay: 0 for none.
    unroll: writes the parts out one after the other. On CPU a convolution's gradient inside a loop
      is 12 to 24 times as slow.
    give_up: 1 or more.
  """

  def train_step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, Metrics]:
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    model_state = task.at_step(state.model_state, state.step)

    def loss(params, model_state, part, rng):
      values, model_state, metrics = task.train_losses(
          params, model_state, frozen, part, state.step, rng)
      metrics["loss"] = values
      scale = state.loss_scale["scale"] if state.loss_scale else 1.0
      return scale * values.mean(), (
          model_state, jax.tree.map(lambda m: _sum(m, values.shape[0]), metrics))

    grad = jax.grad(loss, has_aux=True)
    if accumulate == 1:
      grads, (model_state, metrics) = grad(state.params, model_state, batch, rng)
    else:
      parts = jax.tree.map(
          lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

      def body(carry, inputs):
        model_state, total = carry
        part, index = inputs
        grads, (model_state, metrics) = grad(
            state.params, model_state, part, jax.random.fold_in(rng, index))
        return (model_state, jax.tree.map(jnp.add, total, grads)), metrics

      zeros = jax.tree.map(jnp.zeros_like, state.params)
      (model_state, grads), metrics = jax.lax.scan(
          body, (model_state, zeros), (parts, jnp.arange(accumulate)),
          unroll=accumulate if unroll else 1)
      grads = jax.tree.map(lambda g: g / accumulate, grads)
      metrics = jax.tree.map(lambda m: m.sum(0), metrics)

    if state.loss_scale:
      grads = jax.tree.map(lambda g: g / state.loss_scale["scale"], grads)
    norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema:
      new = {"params": params, "model_state": model_state}
      ema = jax.tree.map(lambda a, b: ema_decay * a + (1 - ema_decay) * b, ema, new)
    new = state.replace(step=state.step + 1, params=params, model_state=model_state,
                        opt_state=opt_state, ema=ema)
    count = jnp.asarray(batch["label"].shape[0], jnp.float32)
    before, loss_scale = state.nonfinite["in_a_row"], state.loss_scale
    # A variance can be infinite, and what is divided by it 0: nothing else shows it.
    forward = jnp.isfinite(metrics["loss"]) & jnp.isfinite(_total(model_state))
    finite = forward & jnp.isfinite(norm)
    overflow = jnp.zeros_like(finite)
    if loss_scale:
      overflow = forward & ~finite & (loss_scale["scale"] > 1) & (before != GIVEN_UP)
      norm = jnp.where(overflow, 0.0, norm)
      loss_scale = _next_scale(loss_scale, ~overflow)
    good = finite & (before != GIVEN_UP)
    new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state.replace(step=new.step))
    new = new.replace(
        loss_scale=jax.tree.map(lambda a, b: jnp.where(good | overflow, a, b), loss_scale, state.loss_scale),
        nonfinite=_next_nonfinite(state.nonfinite, good, overflow, give_up))
    if loss_scale or give_up > 1:
      metrics["skipped"] = jnp.where(good, 0.0, count)
    metrics["in_a_row"] = new.nonfinite["in_a_row"]
    metrics["grad_norm"] = norm * count
    metrics["count"] = count
    return new, metrics

  return train_step


def _next_scale(loss_scale: Tree, good: jax.Array) -> Tree:
  """Halved after a step that was not good, to 1 at least; doubled after GOOD_STEPS good ones in a row."""
  grown = loss_scale["good_steps"] + 1 >= GOOD_STEPS
  return {
      "scale": jnp.maximum(loss_scale["scale"] * jnp.where(good, jnp.where(grown, 2.0, 1.0), 0.5), 1.0),
      "good_steps": jnp.where(good & ~grown, loss_scale["good_steps"] + 1, 0)}


def _next_nonfinite(nonfinite: Tree, good: jax.Array, overflow: jax.Array, give_up: int) -> Tree:
  """After a step that was good, whose scaled gradients overflowed, or neither."""
  bad = ~(good | overflow)
  before = nonfinite["in_a_row"]
  more = jnp.where((before == GIVEN_UP) | (before + 1 >= give_up), GIVEN_UP, before + 1)
  return {"skipped": nonfinite["skipped"] + bad,
          "in_a_row": jnp.where(bad, more, jnp.where(good, 0, before))}


def keep_best(state: TrainState, error: jax.Array) -> TrainState:
  """The state with what it is evaluated with as its best, if `error` (scalar) is below all before."""
  params, model_state = state.evaluated
  now = {"params": params, "model_state": model_state, "error": jnp.asarray(error, jnp.float32)}
  better = now["error"] < state.best["error"]
  return state.replace(best=jax.tree.map(lambda a, b: jnp.where(better, a, b), now, state.best))


def make_eval_step(task: Task) -> Callable[[Tree, Tree, Batch], Metrics]:
  """(params, model_state, batch) -> metrics summed over the examples whose mask is 1.

  Beside them 'count', the number of these examples, and, if the task keeps any of them, 'examples' (`Task.examples`).
  """

  def eval_step(params: Tree, model_state: Tree, batch: Batch) -> Metrics:
    mask = batch["mask"]
    metrics = task.evaluate(params, model_state, batch)
    # where, not a product: a padded row may hold anything, NaN included.
    sums = {name: jnp.where(mask > 0, m, 0.0).sum() for name, m in metrics.items()}
    kept = task.examples(params, model_state, batch)
    return {**sums, "count": mask.sum(), **({"examples": kept} if kept else {})}

  return eval_step


def _total(tree: Tree) -> jax.Array:
  """The sum of all numbers, not finite if one of them is not."""
  return sum((leaf.sum() for leaf in jax.tree.leaves(tree)), jnp.float32(0))


def _sum(metric: jax.Array, count: int) -> jax.Array:
  return metric.sum() if metric.ndim else metric * jnp.float32(count)


def _replace(tree: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
  """`tree` with the leaves that `other` has. `other` has no path that `tree` lacks."""
  out = dict(tree)
  for key, value in other.items():
    out[key] = _replace(tree[key], value) if isinstance(value, dict) else jnp.asarray(value, tree[key].dtype)
  return out
