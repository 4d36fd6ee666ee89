"""The arrays and the record of a checkpoint as files, by Orbax, in this process alone."""

import contextlib
import copy
import errno
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore

from bionets_jax.training.checkpoint_record import Damaged, named, read_json
from bionets_jax.training.disk import reason, system_error

Tree = Any

# Orbax numbers the saves of a process, and mixes up two that run at once.
_one_at_a_time = threading.Lock()


def write_items(folder: str, state: Tree, record: Mapping[str, Any]) -> None:
  """Writes a new folder with a state of NumPy arrays and a JSON-serialisable record.

  Raises:
    Exception: of any kind, with parts of it left under `folder` and names that begin like it.
  """
  with _one_at_a_time, _without_orbax_errors(), _described_once(), _few_threads():
    _checkpointer().save(folder, args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), clock=ocp.args.JsonSave(record)))


def read_written_record(folder: str) -> Any:
  """The record; raises Damaged if it is no JSON."""
  return read_json(os.path.join(folder, "clock", "metadata"))  # Orbax's name for the file of an item


def read_state(folder: str, template: Tree) -> Tree:
  """The state, NumPy arrays in the tree that `template` is.

  Raises:
    Damaged: it cannot be read because of what is in the files, or because some are missing.
    OSError: it cannot be read for another reason.
  """
  with _named_errors(folder):
    return _checkpointer().restore(
        folder, args=ocp.args.Composite(state=ocp.args.StandardRestore(template)))["state"]


def stored_leaves(folder: str) -> dict[str, list]:
  """Name of a leaf -> its dtype and shape, as Orbax describes the state; raises as `read_state`."""
  with _named_errors(folder):
    return {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in named(
        _checkpointer().metadata(folder).item_metadata["state"].tree).items()}


def await_threads() -> None:
  """Waits for Orbax's threads: behind the first error they go on, and would write into what is removed."""
  for thread in threading.enumerate():
    if type(thread).__module__.startswith("orbax."):
      thread.join(timeout=60)


@contextlib.contextmanager
def _named_errors(folder: str) -> Iterator[None]:
  try:
    yield
  except (OSError, MemoryError) as error:
    if isinstance(error, FileNotFoundError):
      raise Damaged(reason(error)) from error
    raise
  except Exception as error:  # a damaged file makes Orbax, tensorstore and zarr raise whatever they like
    number = system_error(error)
    if number not in (None, errno.ENOENT):
      raise OSError(number, os.strerror(number), folder) from error
    raise Damaged(reason(error)) from error


def _checkpointer() -> ocp.Checkpointer:
  # Of this process alone, which then waits for no other one.
  mine = jax.process_index()
  alone = {"multiprocessing_options": ocp.options.MultiprocessingOptions(
      primary_host=mine, active_processes={mine}, barrier_sync_key_prefix=f"process_{mine}")}
  handler = ocp.CompositeCheckpointHandler(
      state=ocp.StandardCheckpointHandler(**alone), clock=ocp.JsonCheckpointHandler(**alone),
      composite_options=ocp.CompositeOptions(**alone))
  return ocp.Checkpointer(handler, **alone)


@contextlib.contextmanager
def _described_once() -> Iterator[None]:
  """Has tensorstore describe each place to write to once, while a state is saved.

  What its `KvStore.Spec.to_json` returns is never freed (0.1.86, and all before that were tried), and Orbax asks
  for the same description for every array: in a run of days that adds up.
  """
  kind, known = tensorstore.KvStore.Spec, {}
  own = vars(kind)["to_json"]

  def to_json(spec, *args, **options):
    key = (repr(spec), args, tuple(options.items()))
    if key not in known:
      known[key] = own.__get__(spec, kind)(*args, **options)
    return copy.deepcopy(known[key])

  kind.to_json = to_json
  try:
    yield
  finally:
    kind.to_json = own


class _FewThreads(tensorstore.Context):
  """A context that takes tensorstore's own number of threads for files, max(4, processors), where Orbax wants 128.

  What others ask for meanwhile, in other threads, they get.
  """

  def __init__(self, spec: Any = None, *args: Any, **options: Any):
    if isinstance(spec, Mapping) and spec.get("file_io_concurrency") == {"limit": 128}:
      spec = dict(spec) | {"file_io_concurrency": {"limit": "shared"}}
    super().__init__(*(() if spec is None else (spec,)), *args, **options)


@contextlib.contextmanager
def _few_threads() -> Iterator[None]:
  """Has Orbax write with tensorstore's default number of threads while a state is saved, not with up to 128.

  One more is started whenever a write waits, and none ends that works at least every 20 seconds: with frequent saves
  on a busy machine they become more and more, for hours, and make nothing faster.
  """
  own = tensorstore.Context
  tensorstore.Context = _FewThreads
  try:
    yield
  finally:
    tensorstore.Context = own


@contextlib.contextmanager
def _without_orbax_errors() -> Iterator[None]:
  """Keeps Orbax from logging what it raises as well: each of its threads would, with pages of traceback."""
  def passes(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname or record.levelno != logging.ERROR
  logger = logging.getLogger("absl")
  logger.addFilter(passes)
  try:
    yield
  finally:
    logger.removeFilter(passes)
