"""Where a training step first computes something that is not finite, found by computing it again."""

import copy
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bionets_jax.training.devices import replicated
from bionets_jax.training.tasks import Batch, Task, Tree

_LOSS = "the loss"  # behind the last layer


@dataclasses.dataclass(frozen=True)
class Fault:
  """What is not finite, and where it begins.

  Attributes:
    text: for a reader.
    layer: path of the module, 'stage1_block0/conv1'; '' for the network itself or where it is none.
    rows: of the batch in which the layer's output is not finite, ascending; all of them for a layer that mixes
      examples, and [] where the fault is not in the forward pass.
    part: of the batch, where it is computed in several (config.accumulate).
  """

  text: str
  layer: str = ""
  rows: tuple[int, ...] = ()
  part: int = 0


def find_first_fault(
    task: Task, state: Any, frozen: Tree, batch: Batch, *, step: int, seed: int, accumulate: int,
    mesh: jax.sharding.Mesh,
) -> Fault:
  """Computes the step once more, layer by layer and outside of the training program.

  What is looked at is, in this order: the parameters and the running statistics before the step; the outputs
  of the modules in the order in which they return, first the student's, then a teacher's; the losses; the
  running statistics after it; the gradients. In a job of several processes all of them have to call it.

  Args:
    task: what is learned.
    state: a `TrainState` as the step found it.
    frozen: `task.frozen`.
    batch: of the step, {'image': uint8 (N, H, W, C), 'label': int32 (N,)}.
    step: the number of steps before it.
    seed, accumulate: of the config.
    mesh: that the arrays lie on.
  """
  everywhere = replicated(mesh)
  weights = {"params": state.params, **state.model_state}
  found = _stats(weights, everywhere)
  if broken := [path for path, (finite, _) in found.items() if not finite]:
    more = f", the first of {len(broken)} such variables" if len(broken) > 1 else ""
    return Fault(f"{broken[0]} was not finite before the step{more}", broken[0].split("/", 1)[1].rpartition("/")[0])
  path, (_, size) = max(found.items(), key=lambda item: item[1][1])
  context = f"all variables were finite before the step, the largest {size:.3g} in {path}"

  task = copy.copy(task)
  task.model = _without_remat(task.model)
  forward = _Forward(task, accumulate)
  scale = state.loss_scale["scale"] if state.loss_scale else jnp.float32(1)
  run = jax.jit(forward, out_shardings=everywhere)
  differentiate = jax.jit(jax.grad(forward.loss, has_aux=True), out_shardings=everywhere)
  model_state = task.at_step(state.model_state, jnp.int32(step))
  for part in range(accumulate):
    arguments = (state.params, model_state, frozen, batch, np.int32(step), np.uint32(seed), np.int32(part))
    inputs, outputs, model_state = run(*arguments)
    before = "the images"
    for (layer, kind), known, rows in zip(forward.met, jax.device_get(inputs), jax.device_get(outputs), strict=True):
      if rows.any():
        where = f"{layer or 'the network'} ({kind})"
        came = "finite" if known else f"not finite either: it arose behind {before}"
        return Fault(
            f"the first output that is not finite is that of {where}, in {int(rows.sum())} of {len(rows)} examples"
            + (f" of part {part + 1} of {accumulate}" if accumulate > 1 else "")
            + f"; its input was {came}; {context}",
            "" if layer == _LOSS else layer, tuple((np.flatnonzero(rows) * accumulate + part).tolist()), part)
      before = layer
    found = _stats(model_state, everywhere)
    if broken := [path for path, (finite, _) in found.items() if not finite]:
      return Fault(f"all outputs are finite, and {broken[0]} is not after the step: values so large that their "
                   f"squares overflow; {context}", broken[0].split("/", 1)[1].rpartition("/")[0], part=part)
    found = _stats(differentiate(*arguments, scale)[0], everywhere)
    order = {layer: i for i, (layer, _) in enumerate(forward.met)}
    broken = [path for path, (finite, _) in found.items() if not finite]
    if broken:
      nearest = max(broken, key=lambda path: order.get(path.rpartition("/")[0], -1))
      return Fault(
          f"all outputs are finite and {len(broken)} of {len(found)} gradients are not; nearest to the loss that "
          f"of {nearest}; {context}", nearest.rpartition("/")[0], part=part)
  path, (_, size) = max(found.items(), key=lambda item: item[1][1])
  return Fault(f"computed again by itself the step is finite, with gradients up to {size:.3g} ({path}): it differs "
               f"from the training program by round-off, or the device has failed; {context}")


class _Forward:
  """The forward pass of one part of a batch, with what each module takes and gives.

  Attributes:
    met: after a trace, (path, class) of the modules in the order in which they return.
  """

  def __init__(self, task: Task, accumulate: int):
    self.met: list[tuple[str, str]] = []
    self._task, self._accumulate = task, accumulate

  def __call__(self, params, model_state, frozen, batch, step, seed, part):
    """([whether the inputs of each module are finite], [(n,) which of its output's rows are not], model state)."""
    inputs, outputs, returned = [], [], []
    size = batch["label"].shape[0] // self._accumulate
    self.met = []

    def note(call, args, kwargs, context):
      result = call(*args, **kwargs)
      if context.method_name == "__call__":
        path, kind = "/".join(context.module.path), type(context.module).__name__
        teacher = "teacher/" if returned else ""  # the student has returned as a whole before it begins
        self.met.append((f"{teacher}{path}".rstrip("/"), kind))
        inputs.append(~_rows((args, kwargs), size).any())
        outputs.append(_rows(result, size))
        if not path:
          returned.append(True)
      return result

    with nn.intercept_methods(note):
      values, model_state, _ = self._losses(params, model_state, frozen, batch, step, seed, part)
    self.met.append((_LOSS, type(self._task).__name__))
    inputs.append(~outputs[-1].any())
    outputs.append(_rows(values, size))
    return inputs, outputs, model_state

  def loss(self, params, model_state, frozen, batch, step, seed, part, scale):
    values, model_state, _ = self._losses(params, model_state, frozen, batch, step, seed, part)
    return scale * values.mean(), model_state

  def _losses(self, params, model_state, frozen, batch, step, seed, part):
    rng = jax.random.fold_in(jax.random.key(seed), step)
    n = self._accumulate
    if n > 1:  # as `make_train_step` cuts it
      rng = jax.random.fold_in(rng, part)
      batch = jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:])[:, part], batch)
    return self._task.train_losses(params, model_state, frozen, batch, step, rng)


def _without_remat(model: nn.Module) -> nn.Module:
  """Rematerialisation computes a block in a trace of its own, from which nothing can be brought out."""
  if getattr(model, "remat", ""):
    model = model.clone(remat="")
  if isinstance(backbone := getattr(model, "backbone", None), nn.Module):  # a detector's
    model = model.clone(backbone=_without_remat(backbone))
  return model


def _rows(tree: Tree, size: int) -> jax.Array:
  """(size,) bool: in which rows any floating-point array is not finite. One without rows counts for all."""
  bad = jnp.zeros(size, bool)
  for leaf in jax.tree.leaves(tree):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating):
      wrong = ~jnp.isfinite(leaf)
      rows = leaf.ndim and leaf.shape[0] == size
      bad |= wrong.reshape(size, -1).any(-1) if rows else wrong.any()
  return bad


def _stats(tree: Tree, sharding: Any) -> dict[str, tuple[bool, float]]:
  """'params/stem/kernel' -> (whether all of it is finite, its largest absolute value)."""
  def both(x):
    return jnp.isfinite(x).all(), jnp.abs(x).max().astype(jnp.float32)

  leaves = jax.tree_util.tree_leaves_with_path(tree)
  values = jax.jit(lambda arrays: [both(x) for x in arrays], out_shardings=sharding)([x for _, x in leaves])
  return {"/".join(str(key.key) for key in path): (bool(finite), float(size))
          for (path, _), (finite, size) in zip(leaves, jax.device_get(values), strict=True)}
