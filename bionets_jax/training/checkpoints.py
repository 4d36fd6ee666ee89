"""Checkpoints of a run: train state and what the loop knows, together in one step, by Orbax."""

import os
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

Tree = Any


class Checkpoints:
  """`workdir/checkpoints`: saves in the background, restores onto any mesh.

  A save is whole or absent: Orbax writes it under a temporary name and renames it when done.
  """

  def __init__(self, workdir: str, keep: int, *, read_only: bool = False):
    """
    Args:
      workdir: of the run.
      keep: how many of the newest to keep.
      read_only: touches nothing: a training run may be saving into the same folder.
    """
    if keep < 1:
      raise ValueError(f"config.keep_checkpoints={keep}: give 1 or more")
    self._manager = ocp.CheckpointManager(
        os.path.join(os.path.abspath(workdir), "checkpoints"),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(keep),
            cleanup_tmp_directories=not read_only, read_only=read_only))

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    """The steps that are saved, ascending."""
    return sorted(self._manager.all_steps())

  def forget_after(self, step: int) -> None:
    """Removes what was saved of later steps; they are made again."""
    for later in self.steps():
      if later > step:
        self._manager.delete(later)

  def save(self, step: int, state: Tree, clock: dict[str, Any]) -> None:
    """Starts saving. `clock` is JSON: elapsed times, the last and best evaluations.

    Raises what an earlier save failed with.
    """
    if step != self.latest_step():
      self._manager.save(step, args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), clock=ocp.args.JsonSave(clock)), force=True)

  def restore(self, step: int, abstract: Tree) -> tuple[Tree, dict[str, Any]]:
    """(state, clock).

    Args:
      step: one that was saved.
      abstract: the state as `jax.ShapeDtypeStruct`s with the shardings to restore onto.

    Raises:
      ValueError: if the checkpoint's leaves are not those of `abstract`, naming them; if it is
        damaged, naming it.
    """
    try:
      out = self._manager.restore(step, args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract), clock=ocp.args.JsonRestore()))
    except (KeyError, OSError) as error:
      earlier = [s for s in self._manager.all_steps() if s < step]
      raise ValueError(
          f"the checkpoint {self._manager.directory / str(step)} is damaged or incomplete ({error}); "
          f"remove it to go on from step {max(earlier, default=0)}") from error
    return out["state"], out["clock"]

  def wait(self) -> None:
    """Returns when every save is on disk."""
    self._manager.wait_until_finished()
    self._manager.check_for_errors()

  def close(self) -> None:
    self._manager.close()


def abstract_like(state: Tree) -> Tree:
  """Shapes, dtypes and shardings of a state on devices."""
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
