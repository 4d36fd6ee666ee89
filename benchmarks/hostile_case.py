"""What a hostile input is, and what counts as withstanding it."""

import contextlib
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bionets_jax.config_files import Late, time_limit

ROOT = pathlib.Path(__file__).resolve().parents[1]
CANARY = "canary"  # what a payload would make in the folder of its case
SECONDS = 30.0  # that an input may take
MEBIBYTES = 512.0  # that it may add to the memory of the process
_LONGEST = 4000  # characters of a message: more is not read


class Case(NamedTuple):
  """One hostile input.

  Attributes:
    name: 'weights: safetensors, offsets overlap'; what stands before the colon is its group.
    prepare: (an empty folder, random generator) -> the call that reads what it has put there.
    says: a regular expression that the message has to match.
    leaves: names of files that may be new or changed afterwards, anywhere in the folder.
  """

  name: str
  prepare: Callable[[pathlib.Path, np.random.Generator], Callable[[], Any]]
  says: str
  leaves: tuple[str, ...] = ()


class Verdict(NamedTuple):
  """What became of a case: `problem` is '' if all is as it should be."""

  name: str
  problem: str
  error: str
  message: str
  seconds: float
  mebibytes: float


class UsageError(Exception):
  """A command ended otherwise than with an error message and status 1 or 2."""


def judge(case: Case, folder: pathlib.Path, number: int) -> Verdict:
  """Prepares a case, makes its call and looks at what came of it.

  Args:
    case: see there.
    folder: empty.
    number: of the case; its random numbers follow from it.
  """
  call = case.prepare(folder, np.random.default_rng((7, number)))
  before, low = _snapshot(folder), _start_of_peak()
  started = time.perf_counter()
  error: BaseException | None = None
  try:
    with contextlib.chdir(folder), time_limit(SECONDS):  # where code that is executed would leave its canary
      call()
  except (Exception, SystemExit, Late) as raised:
    error = raised
  seconds, grown = time.perf_counter() - started, _peak() - low
  message = str(error) if error else ""
  problem = _problem(error, message, case.says)
  if (folder / CANARY).exists():
    problem = "code of the input was executed"
  elif changed := [
    path
    for path, content in _snapshot(folder).items()
    if before.get(path) != content and pathlib.Path(path).name not in case.leaves
  ]:
    problem = problem or f"left behind: {', '.join(changed[:4])}"
  elif missing := before.keys() - _snapshot(folder).keys():
    problem = problem or f"removed: {', '.join(sorted(missing)[:4])}"
  elif grown > MEBIBYTES:
    problem = problem or f"took {grown:.0f} MiB"
  return Verdict(case.name, problem, type(error).__name__ if error else "", message, seconds, grown)


def command(*arguments: str) -> None:
  """Runs a command of the package as its user does.

  Raises:
    ValueError: with what it printed, if it ended with status 1 or 2 and an error message.
    UsageError: if it ended otherwise.
  """
  done = subprocess.run(
    [sys.executable, *arguments],
    capture_output=True,
    text=True,
    timeout=SECONDS,
    stdin=subprocess.DEVNULL,
    errors="replace",
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )
  if done.returncode not in (1, 2) or "Traceback" in done.stderr or "rror: " not in done.stderr:
    raise UsageError(f"status {done.returncode}: {done.stdout[-500:]} {done.stderr[-1500:]}")
  raise ValueError(done.stderr.strip())


def _problem(error: BaseException | None, message: str, says: str) -> str:
  if error is None:
    return "accepted"
  if isinstance(error, Late):
    return f"not done after {SECONDS:.0f} s"
  kind = type(error)
  builtin = kind in (ValueError, RuntimeError) or (
    issubclass(kind, OSError) and kind.__module__ == "builtins"
  )
  if not builtin and not kind.__module__.startswith("bionets_jax"):
    return f"a {kind.__module__}.{kind.__name__} came out"
  if not re.search(says, message, re.DOTALL | re.IGNORECASE):
    return f"the message does not say {says!r}"
  if len(message) > _LONGEST:
    return f"a message of {len(message)} characters"
  return ""


def _snapshot(folder: pathlib.Path) -> dict[str, str]:
  """path -> what is there: a digest, where a link leads, 'folder' or 'special'."""
  found = {}
  for path in sorted(folder.rglob("*")):
    if path.is_symlink():
      content = f"-> {path.readlink()}"
    elif path.is_file():
      content = hashlib.sha1(path.read_bytes()).hexdigest()
    else:
      content = "folder" if path.is_dir() else "special"
    found[str(path.relative_to(folder))] = content
  return found


def _start_of_peak() -> float:
  """Mebibytes of this process now, from which `_peak` counts; NaN-free 0 where Linux does not say."""
  with contextlib.suppress(OSError):
    pathlib.Path("/proc/self/clear_refs").write_text("5")
  return _peak()


def _peak() -> float:
  with contextlib.suppress(OSError):
    if match := re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text()):
      return int(match[1]) / 1024
  return 0.0
