"""Where a run goes on: at the newest checkpoint that is sound, for several runs and processes together."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bionets_jax.training.checkpoint_record import Damaged
from bionets_jax.training.checkpoints import Checkpoints

Tree = Any


class Newest(NamedTuple):
  """Attributes:

  step: 0 if there is no checkpoint that all runs have.
  furthest: the latest step that any of them has saved.
  found: (state, clock) of each run; () at step 0.
  """

  step: int
  furthest: int
  found: Sequence[tuple[Tree, dict[str, Any]]]


def restore_newest(runs: Sequence[Checkpoints], abstract: Tree, say: Callable[[str], None]) -> Newest:
  """Restores runs at the newest step of which each has a sound checkpoint.

  A damaged checkpoint is named and moved out of the way, to `checkpoints-damaged`, and the one before it
  is taken; where the checkpoints are only read it stays where it is. In a job of several processes the
  first one lists, judges and moves.

  Args:
    runs: of the runs that go on together.
    abstract: see `Checkpoints.restore`.
    say: told of each damaged checkpoint.

  Raises:
    ValueError, OSError: see `Checkpoints.restore`.
    RuntimeError: another process cannot read what the first one can.
  """
  passed: set[int] = set()  # steps that are damaged and stay
  lost = False
  while True:
    saved = [{step for step in run.steps() if step not in passed} for run in runs]
    step, furthest = _as_the_first((
        max(set.intersection(*({0} | steps for steps in saved))), max(set.union({0}, *saved))))
    if not step:
      if lost:
        say("warning: no checkpoint is left that can be used"
            + (" by all runs together" if furthest else "") + ": back to step 0")
      return Newest(0, furthest, ())
    found, sound = [], True
    for run in runs:
      why = ""
      try:
        found.append(run.restore(step, abstract))
      except Damaged as error:
        why = str(error)
      verdicts = _of_each(bool(why))
      if any(verdicts) and not verdicts[0]:
        raise RuntimeError(
            f"{run.path(step)} can be read by the first process, and not by process {verdicts.index(True)}"
            f"{f' ({why})' if why else ''}; the workdir has to be one folder that all processes share")
      if verdicts[0]:
        sound, lost = False, True
        if run.read_only:
          passed.add(step)
          say(f"warning: {run.path(step)} is damaged: {why}; trying the one before it")
        else:
          say(f"warning: {run.path(step)} is damaged: {why}; moved to {run.set_aside(step)}")
    if sound:
      return Newest(step, furthest, found)


def _as_the_first(numbers: tuple[int, ...]) -> tuple[int, ...]:
  if jax.process_count() == 1:
    return numbers
  from jax.experimental import multihost_utils

  return tuple(np.ravel(multihost_utils.broadcast_one_to_all(np.asarray(numbers, np.int32))).tolist())


def _of_each(flag: bool) -> list[bool]:
  if jax.process_count() == 1:
    return [flag]
  from jax.experimental import multihost_utils

  return np.ravel(multihost_utils.process_allgather(np.bool_(flag))).tolist()
