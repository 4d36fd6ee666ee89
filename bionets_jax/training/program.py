"""A run's programs as they are compiled: for one run or several, donated, over the mesh."""

import concurrent.futures
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bionets_jax.ops import compiler_options
from bionets_jax.training.checkpoints import abstract_like
from bionets_jax.training.devices import replicated
from bionets_jax.training.nonfinite import GIVE_UP
from bionets_jax.training.setup import Setup
from bionets_jax.training.side_by_side import over_runs
from bionets_jax.training.state import make_train_step


def jit_init(setup: Setup) -> Callable[..., Any]:
  """(rng, inherited) -> the state before the first step, on every device."""
  # It runs once: on a CPU optimising its machine code takes three quarters of its time, and gains none back.
  options = {"xla_backend_optimization_level": 0} if _on_cpu(setup) else None
  return jax.jit(setup.init, out_shardings=replicated(setup.mesh), compiler_options=options)


def jit_train_step(
    config: ml_collections.ConfigDict, setup: Setup, *, one_teacher: bool = True
) -> Callable[..., Any]:
  """(state, frozen, batches of the runs, seeds of the runs) -> (state, metrics), jitted over the mesh.

  The state is donated: the new one takes its place in memory.

  Args:
    config, setup: of the first run.
    one_teacher: whether all runs share `frozen`; else it is stacked.
  """
  def train_step(state, frozen, batch, seed):
    return make_train_step(
        setup.task, setup.optimizer, seed=seed, accumulate=config.accumulate,
        ema_decay=config.ema_decay, unroll=_on_cpu(setup), give_up=GIVE_UP[config.nonfinite],
    )(state, frozen, batch)

  everywhere = replicated(setup.mesh)
  options = compiler_options(setup.mesh.devices.flat[0].platform, deterministic=config.deterministic)
  if config.remat and _on_cpu(setup):
    # XLA:CPU of jax 0.10 takes the barriers around what is computed again away before it looks for common
    # subexpressions: it finds them, and keeps everything after all.
    options["xla_disable_hlo_passes"] = "cse_barrier_expander"
  return jax.jit(
      over_runs(train_step, (0, None if one_teacher else 0, 0, 0)), donate_argnums=0,
      out_shardings=(everywhere, everywhere), compiler_options=options)


def compile_ahead(
    config: ml_collections.ConfigDict, setup: Setup, state: Any, frozen: Any, seeds: list[Any], *,
    one_teacher: bool,
) -> Mapping[tuple[int, ...], concurrent.futures.Future]:
  """Has the training step compiled in threads.

  Args:
    config, setup: of the first run.
    state: of one run, as shapes.
    frozen: what all runs share, or stacked; arrays or shapes.
    seeds: of each run, likewise.
    one_teacher: see `jit_train_step`.

  Returns:
    For each shape of a batch's images the compiled step, to come; that of the most batches first.
  """
  count = len(seeds)
  state, frozen, seeds = (abstract_like(tree) for tree in (stack_abstract(state, count), frozen, seeds))
  step = jit_train_step(config, setup, one_teacher=one_teacher)
  batches = abstract_batches(setup)
  pool = concurrent.futures.ThreadPoolExecutor(len(batches))
  found = {batch["image"].shape: pool.submit(step.lower(state, frozen, [batch] * count, seeds).compile)
           for batch in batches}
  pool.shutdown(wait=False)
  return found


def compile_from_shapes(config: ml_collections.ConfigDict, setup: Setup, size: int) -> Any:
  """The compiled training step of one run for batches of `size` images, the largest there are, made without any array."""
  frozen, seed = _everywhere(setup, lambda *trees: trees, setup.task.frozen, np.uint32(config.seed))
  step = jit_train_step(config, setup)
  largest = max(abstract_batches(setup), key=lambda batch: batch["image"].size)
  batch = {name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype, sharding=x.sharding) for name, x in largest.items()}
  lowered = step.lower(abstract_state(setup), frozen, [batch], [seed])
  # In a thread: SIGTERM or Ctrl-C, whose handlers raise, crash a main thread that is within XLA's compiler.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(lowered.compile).result()


def stack_abstract(state: Any, count: int) -> Any:
  """What `side_by_side.stack` makes of `count` states, as shapes."""
  if count == 1:
    return state
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=x.sharding), state)


def abstract_batches(setup: Setup) -> list[dict[str, jax.ShapeDtypeStruct]]:
  """Each kind of training batch that occurs as shapes, split over the mesh; the most frequent first."""
  split = NamedSharding(setup.mesh, PartitionSpec("data"))
  return [{name: jax.ShapeDtypeStruct(shape, dtype, sharding=split) for name, (shape, dtype) in batch.items()}
          for batch in setup.pipeline.abstract_batches()]


def abstract_state(setup: Setup) -> Any:
  """The state before the first step as shapes, on every device."""
  return _everywhere(setup, setup.init, jax.random.key(0), setup.inherited)


def _everywhere(setup: Setup, function: Callable[..., Any], *arguments: Any) -> Any:
  """What a function returns, as shapes on every device."""
  sharding = replicated(setup.mesh)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
                      jax.eval_shape(function, *arguments))


def out_of_memory(error: Exception) -> bool:
  """Whether XLA refused a program because the device is too small for it."""
  return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _on_cpu(setup: Setup) -> bool:
  return setup.mesh.devices.flat[0].platform == "cpu"
