"""Config files: Python that says what to run, executed with the rights of whoever starts the run."""

import contextlib
import importlib.util
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator

import ml_collections

from bionets_jax.training.config import nearest

SECONDS = 120  # that a file may take; it may import JAX from a slow disk


def load_config(path: str) -> ml_collections.ConfigDict:
  """Runs a config file.

  Args:
    path: of the file, with the argument of its get_config behind a colon.

  Returns:
    What get_config returns: the config of a run or of a study, unchecked.

  Raises:
    FileNotFoundError: there is no such file, with those that come near.
    ValueError: it is no config file, raises an error, or has not returned within `SECONDS`.
  """
  file, _, argument = path.partition(":")
  if not os.path.isfile(file):
    folder = os.path.dirname(file) or "."
    there = sorted(n for n in os.listdir(folder) if n.endswith(".py")) if os.path.isdir(folder) else []
    hint = nearest(os.path.basename(file), there)
    raise FileNotFoundError(f"no such file{hint}" + (f"; {folder} has {', '.join(there)}" if there else ""))
  if not file.endswith(".py"):
    raise ValueError("give a Python file with a function get_config")
  try:
    with time_limit(SECONDS):
      config = _run(file, argument)
  except Late:
    raise ValueError(f"it has not returned within {SECONDS} s; get_config should only set values") from None
  except ValueError as error:
    raise ValueError(f"{error}{_line_in(file, error)}") from error
  except (Exception, SystemExit) as error:  # it is anybody's code
    raise ValueError(f"{type(error).__name__}: {error}{_line_in(file, error)}") from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise ValueError(f"get_config returns {type(config).__name__}, not an ml_collections.ConfigDict; start from "
                     "bionets_jax.training.config.classification_config()")
  return config


class Late(BaseException):
  """No Exception: what a file catches is its own affair."""


def _run(file: str, argument: str) -> ml_collections.ConfigDict:
  spec = importlib.util.spec_from_file_location("config_file", file)
  module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look there for theirs
  spec.loader.exec_module(module)
  if not callable(getattr(module, "get_config", None)):
    raise ValueError("the file has no function get_config")
  if argument and not inspect.signature(module.get_config).parameters:
    raise ValueError(f"{file} takes no argument; leave ':{argument}' away")
  return module.get_config(argument) if argument else module.get_config()


def _line_in(file: str, error: BaseException) -> str:
  """' (line 7)': where in the file an error came up; '' if that is elsewhere."""
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
  if isinstance(error, SyntaxError) and error.filename == file:
    return ""  # Python's message has it
  return f" (line {lines[-1]})" if lines else ""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
  """Raises `Late` in its block after `seconds`; outside the main thread there is no limit."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def late(number, frame):
    raise Late

  previous = signal.signal(signal.SIGALRM, late)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)
