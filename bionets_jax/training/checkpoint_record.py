"""What a checkpoint says of itself: its step, what the loop knows, and digests.

Orbax notices a file that is missing or cut off, but not a flipped bit among the numbers. There are two kinds of
digests: of every file, which are compared before anything looks into one; and of every array as it was in memory
before anything was written, which cover the whole way to the disk and back.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

Tree = Any

FILES = "files.json"  # of a checkpoint: relative path -> [size, crc32] of every other file in it
_CLOCK = {"train": int | float, "total": int | float, "last": dict, "best": dict, "inputs": dict}
_SHOWN = 10
_CHUNK = 1 << 22


class Damaged(Exception):
  """A checkpoint cannot be used because of what is, or is not, in its files; the message says what."""


def make_record(step: int, state: Tree, clock: Mapping[str, Any]) -> dict[str, Any]:
  """The record of a checkpoint, JSON-serialisable.

  Args:
    step: of the state.
    state: on the host, NumPy arrays.
    clock: JSON-serialisable: what the loop wants back.
  """
  leaves = {name: [str(leaf.dtype), list(leaf.shape), _digest(leaf)] for name, leaf in named(state).items()}
  return {"step": step, "clock": clock, "leaves": leaves}


def read_record(step: int, record: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
  """(clock, leaves) of what was read; leaves are None where the checkpoint is older than the digests.

  Raises:
    Damaged: it is not what was written, or of another step.
  """
  if not isinstance(record, dict):
    raise Damaged(f"its record is a {type(record).__name__}, no object")
  clock, leaves = record, None
  if record.keys() == {"step", "clock", "leaves"}:
    clock, leaves = record["clock"], record["leaves"]
    if record["step"] != step:
      raise Damaged(f"it holds step {record['step']}")
    if not isinstance(leaves, dict) or not all(map(_is_leaf, leaves.values())):
      raise Damaged("its record of the arrays is none")
  if not isinstance(clock, dict):
    raise Damaged(f"its clock is a {type(clock).__name__}, no object")
  for key, kind in _CLOCK.items():
    if not isinstance(clock.get(key), kind):
      raise Damaged(f"its clock has no {key!r} of the right type")
  return clock, leaves


def check_leaves(leaves: Mapping[str, Any], abstract: Tree, where: str) -> None:
  """Compares the arrays that were saved with those that are wanted.

  Raises:
    ValueError: naming the leaves that differ: the checkpoint is of another model or optimiser.
  """
  have = {name: f"{dtype}{tuple(shape)}" for name, (dtype, shape, *_) in leaves.items()}
  want = {name: f"{leaf.dtype}{tuple(leaf.shape)}" for name, leaf in named(abstract).items()}
  other = [f"{name}: {have.get(name, 'absent')} in the checkpoint, {want.get(name, 'absent')} in the run"
           for name in sorted(have.keys() | want.keys()) if have.get(name) != want.get(name)]
  if other:
    raise ValueError(
        f"{where} is of another model or optimiser than the run: {len(other)} leaves differ\n  "
        + "\n  ".join(other[:_SHOWN] + ["..."] * (len(other) > _SHOWN))
        + "\ngive the config that it was made with, or another --workdir")


def check_digests(leaves: Mapping[str, Any], state: Tree) -> None:
  """Compares arrays with what they were when they were saved.

  Args:
    leaves: of the record.
    state: as read, NumPy arrays.

  Raises:
    Damaged: naming the leaves that differ.
  """
  if other := [name for name, leaf in named(state).items() if _digest(leaf) != leaves[name][2]]:
    more = f" and {len(other) - 3} more" if len(other) > 3 else ""
    raise Damaged(f"the numbers of {', '.join(other[:3])}{more} are not what was written: the digests differ")


def named(tree: Tree) -> dict[str, Any]:
  """'params/stem_conv/kernel' -> leaf."""
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def write_files(folder: str) -> None:
  """Writes FILES into the folder of a checkpoint, with the digests of what it holds."""
  digests = {name: _file_digest(os.path.join(folder, name)) for name in _files(folder)}
  with open(os.path.join(folder, FILES), "w", encoding="utf-8") as file:
    json.dump(digests, file)


def check_files(folder: str) -> bool:
  """Compares the files of a checkpoint with FILES.

  Returns:
    Whether it has FILES; one that is older has not.

  Raises:
    Damaged: naming a file.
    OSError: a file cannot be read.
  """
  if not os.path.isdir(folder):
    raise Damaged("it is no folder" if os.path.lexists(folder) else "it is gone")
  there = set(_files(folder))
  for name in there:
    if not os.path.isfile(os.path.join(folder, name)):
      raise Damaged(f"{name} is no file")
  if FILES not in there:
    return False
  written = read_json(os.path.join(folder, FILES))
  if not isinstance(written, dict):
    raise Damaged(f"{FILES} is a {type(written).__name__}, no object")
  for name, digest in written.items():
    if name not in there:
      raise Damaged(f"{name} is missing")
    if (found := _file_digest(os.path.join(folder, name))) != digest:
      raise Damaged(f"{name} is not what was written ({found[0]:,} bytes, a digest of {found[1]})")
  return True


def read_json(path: str) -> Any:
  """What is in a file of JSON; raises Damaged if it is none."""
  try:
    with open(path, encoding="utf-8") as file:
      return json.load(file)
  except (FileNotFoundError, NotADirectoryError) as error:
    raise Damaged(f"{os.path.basename(os.path.dirname(path))}/{os.path.basename(path)} is missing") from error
  except (ValueError, RecursionError) as error:
    raise Damaged(f"{os.path.basename(path)} is no JSON: {type(error).__name__}") from error


def _files(folder: str) -> Iterator[str]:
  """Relative paths of everything in a folder that is none itself."""
  def refuse(error):
    raise error
  for where, folders, names in os.walk(folder, onerror=refuse):
    for name in names + [f for f in folders if os.path.islink(os.path.join(where, f))]:
      yield os.path.relpath(os.path.join(where, name), folder)


def _is_leaf(entry: Any) -> bool:
  """Whether it is [dtype, shape, digest]."""
  return isinstance(entry, list) and [type(part) for part in entry] == [str, list, int] and all(
      type(side) is int for side in entry[1])


def _digest(leaf: np.ndarray) -> int:
  return zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))


def _file_digest(path: str) -> list[int]:
  size = crc = 0
  with open(path, "rb") as file:
    while chunk := file.read(_CHUNK):
      size, crc = size + len(chunk), zlib.crc32(chunk, crc)
  return [size, crc]
