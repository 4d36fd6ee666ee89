"""Checkpoints of a run: train state and what the loop knows, together in one step, in Orbax's format.

Every device holds the whole state. So the first process writes alone, and no process ever waits for another
one within a save: what goes wrong there (a full disk, a kill) is the first one's, and stays a message.
"""

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bionets_jax.training.checkpoint_record import (
  FILES,
  Damaged,
  check_digests,
  check_files,
  check_leaves,
  make_record,
  read_record,
  write_files,
)
from bionets_jax.training.disk import check_room, names_in, reason, remove, sync, to_disk
from bionets_jax.training.keeping import Keep, kept
from bionets_jax.training.nonfinite import error_of
from bionets_jax.training.orbax_files import (
  await_threads,
  read_state,
  read_written_record,
  stored_leaves,
  write_items,
)
from bionets_jax.training.state import from_older_fields, older_fields

Tree = Any

_STEP = re.compile(r"[1-9]\d{0,17}")
# What a save or a removal leaves behind if it is cut short; Orbax's own name too, which older runs left.
_UNFINISHED = re.compile(r"\d+\.(saving|removing|orbax-checkpoint-tmp).*")
DAMAGED = "checkpoints-damaged"  # in the workdir: where what cannot be read is moved to


class Checkpoints:
  """`workdir/checkpoints`: saves in the background, restores onto any mesh.

  A checkpoint is whole or absent: it is written under another name, brought to the disk, and renamed; it is
  renamed before it is removed.
  """

  def __init__(self, workdir: str, keep: Keep, *, say: Callable[[str], None] = print, read_only: bool = False):
    """
    Args:
      workdir: of the run.
      keep: which checkpoints are kept.
      say: told what goes wrong; also from the thread that saves.
      read_only: touches nothing: a training run may be saving into the same folder.
    """
    self.workdir = workdir
    self.read_only = read_only
    self._folder = os.path.join(os.path.abspath(workdir), "checkpoints")
    self._keep, self._say = keep, say
    self._writes = jax.process_index() == 0 and not read_only
    self._thread: threading.Thread | None = None
    self._failure = ""  # of the newest save
    self._errors: dict[int, float | None] = {}  # of the checkpoints that this process has looked into
    if self._writes:
      os.makedirs(self._folder, exist_ok=True)
      self._finish_renames()
      for path in self._remove_unfinished():
        say(f"{path} was left by a process that was killed; removed")

  def path(self, step: int) -> str:
    """Where the checkpoint of a step is, or would be."""
    return os.path.join(self._folder, str(step))

  def latest_step(self) -> int | None:
    """The newest step that is saved, None if there is none."""
    return max(self.steps(), default=None)

  def steps(self) -> list[int]:
    """The steps that are saved, ascending."""
    return sorted(int(name) for name in names_in(self._folder) if _STEP.fullmatch(name))

  def forget_after(self, step: int) -> None:
    """Removes what was saved of later steps; they are made again."""
    for later in self.steps() if self._writes else ():
      if later > step:
        self._remove(later)

  def set_aside(self, step: int) -> str:
    """Moves a checkpoint out of the way, and says where to. Only the first process moves it."""
    folder = os.path.join(os.path.abspath(self.workdir), DAMAGED)
    target = base = os.path.join(folder, f"{step}-{time.strftime('%Y%m%dT%H%M%S')}")
    count = 1
    while os.path.lexists(target):
      count += 1
      target = f"{base}-{count}"
    if self._writes:
      os.makedirs(folder, exist_ok=True)
      os.rename(self.path(step), target)
      self._errors.pop(step, None)
    return target

  # Save ----------------------------------------------------------------------------------------

  def save(self, step: int, state: Tree, clock: dict[str, Any]) -> None:
    """Starts saving, after an earlier save is done. One that fails is reported, and the run goes on.

    A checkpoint of the same step is replaced.

    Args:
      step: of the state.
      state: of jax.Arrays, the whole of each on every device; it may be donated afterwards.
      clock: JSON: elapsed times, the last and best evaluations.
    """
    if not self._writes:
      return
    self._join()
    self._failure = ""
    self._thread = threading.Thread(
        target=self._save, args=(step, _on_host(state), json.loads(json.dumps(clock))), name="checkpoint")
    self._thread.start()

  def wait(self) -> None:
    """Returns when the newest save is on disk. To be called by all processes together.

    Raises:
      RuntimeError: if it is not, saying what went wrong and what is there instead; in every process.
    """
    self._join()
    failures = _of_all(bool(self._failure), wait_seconds=3600)
    if self._failure:
      raise RuntimeError(self._failure)
    if any(failures):
      raise RuntimeError(f"{self.workdir}: the first process could not save the state; it says why")

  def close(self) -> None:
    """Waits for a save that is under way."""
    self._join()
    if self._failure:
      with contextlib.suppress(OSError):
        self._remove_unfinished()

  def _join(self) -> None:
    if self._thread is not None:
      self._thread.join()
      self._thread = None

  def _save(self, step: int, state: Tree, clock: dict[str, Any]) -> None:
    """In a thread: no exception may leave it."""
    saving = f"{self.path(step)}.saving"
    try:
      self._remove_unfinished()
      check_room(self._folder, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
      write_items(saving, state, make_record(step, state, clock))
      write_files(saving)
      to_disk(saving)
      self._rename(saving, step)
    except Exception as error:
      self._failure = f"{self.workdir}: step {step} is not saved: {reason(error)}"
      await_threads()
      with contextlib.suppress(OSError):
        for _ in range(50):  # tensorstore's own threads write on as well, and nothing waits for them
          if not self._remove_unfinished():
            break
          time.sleep(0.2)
        there = self.latest_step()
        self._failure += "; " + (
            "there is no checkpoint" if there is None else f"the newest checkpoint is of step {there}")
      self._say(f"warning: {self._failure}. Training goes on, and the next checkpoint is tried when it is due")
      return
    try:
      self._remove_unfinished()
      self._errors[step] = _error(clock)
      errors = {saved: self._error_of(saved) for saved in self.steps()}
      for old in errors.keys() - kept(errors, self._keep):
        self._remove(old)
    except OSError as error:
      self._say(f"warning: {self._folder}: old checkpoints cannot be removed: {reason(error)}")

  def _rename(self, saving: str, step: int) -> None:
    old = f"{self.path(step)}.removing"
    if step in self.steps():
      os.rename(self.path(step), old)
    try:
      os.rename(saving, self.path(step))
    except OSError:
      if os.path.lexists(old):
        os.rename(old, self.path(step))
      raise
    sync(self._folder)

  def _error_of(self, step: int) -> float | None:
    if step not in self._errors:
      try:
        self._errors[step] = _error(read_record(step, read_written_record(self.path(step)))[0])
      except (Damaged, OSError):  # only a restore judges a checkpoint
        self._errors[step] = None
    return self._errors[step]

  def _finish_renames(self) -> None:
    """Gives a checkpoint its name that was whole when its process was killed, and not named yet."""
    for name in names_in(self._folder):
      step = name.removesuffix(".saving")
      if step != name and _STEP.fullmatch(step) and not os.path.lexists(self.path(int(step))):
        with contextlib.suppress(Damaged):
          if check_files(os.path.join(self._folder, name)):
            os.rename(os.path.join(self._folder, name), self.path(int(step)))

  def _remove_unfinished(self) -> list[str]:
    """Removes what is no checkpoint yet, or no more, and returns what it was."""
    paths = [os.path.join(self._folder, name) for name in names_in(self._folder) if _UNFINISHED.fullmatch(name)]
    for path in paths:
      remove(path)
    return paths

  def _remove(self, step: int) -> None:
    # Renamed first: if it is cut short, what is left does not look like a checkpoint.
    removing = f"{self.path(step)}.removing"
    os.rename(self.path(step), removing)
    remove(removing)
    self._errors.pop(step, None)

  # Restore -------------------------------------------------------------------------------------

  def restore(self, step: int, abstract: Tree) -> tuple[Tree, dict[str, Any]]:
    """(state, clock) of a step, every number as it was saved.

    Each process reads for itself and waits for none.

    Args:
      step: one that was saved.
      abstract: the state as `jax.ShapeDtypeStruct`s with the shardings to restore onto.

    Raises:
      Damaged: files are missing or not what was written.
      ValueError: the checkpoint is sound, but its leaves are not those of `abstract`; naming them.
      OSError: the files cannot be read for a reason that lies elsewhere, such as permissions.
    """
    path = self.path(step)
    complete = check_files(path)
    clock, leaves = read_record(step, read_written_record(path))
    older = leaves is None
    if not (older or complete):
      raise Damaged(f"{FILES} is missing")
    expected = older_fields(abstract) if older else abstract
    check_leaves(stored_leaves(path) if older else leaves, expected, path)
    # Their memory is never touched; Orbax wants arrays where it is to return some.
    state = read_state(path, jax.tree.map(lambda x: np.empty(x.shape, x.dtype), expected))
    if older:
      state = from_older_fields(state, abstract)
    else:
      check_digests(leaves, state)
    return jax.tree.map(_placed, state, abstract), clock


def abstract_like(state: Tree) -> Tree:
  """Shapes, dtypes and shardings of a state on devices."""
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _of_all(flag: bool, *, wait_seconds: int) -> list[bool]:
  """The flags of all processes, in their order; those that come early wait so long at most."""
  if jax.process_count() == 1:
    return [flag]
  from jax.experimental import multihost_utils

  # Not at once by a collective: those of some backends give up long before a slow disk does.
  ocp.multihost.get_barrier_sync_fn()(key="bionets_jax_checkpoints", timeout_ms=1000 * wait_seconds)
  return np.ravel(multihost_utils.process_allgather(np.bool_(flag))).tolist()


def _on_host(state: Tree) -> Tree:
  """NumPy copies, which a donation does not touch."""
  def whole(x):
    if not x.is_fully_replicated:
      raise ValueError(f"a leaf of shape {x.shape} is split over the devices; a state to save is whole on each")
    part = x.addressable_data(0)
    part.copy_to_host_async()
    return part
  return jax.tree.map(np.array, jax.tree.map(whole, state))


def _placed(leaf: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
  leaf = np.asarray(leaf, like.dtype)
  if like.sharding is None:
    return jax.numpy.array(leaf)
  return jax.make_array_from_callback(like.shape, like.sharding, lambda index: leaf[index])


def _error(clock: dict[str, Any]) -> float | None:
  """Of the last evaluation at or before a checkpoint; None for none."""
  try:
    return error_of(clock["last"])
  except (KeyError, TypeError):
    return None
