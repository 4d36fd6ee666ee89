"""The command line behind launch.py."""

import ast
import importlib.util
import inspect
import os
import signal
import sys

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from bionets_jax.training.config import flatten, nearest

USAGE = ("Usage: python launch.py --config=configs/quickstart.py [--workdir=DIR] [--mode=train|eval|largest_batch] "
         "[--distributed=off|auto|host:port,rank,count] [--config.KEY=VALUE ...]")
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: try again later

FLAGS = flags.FLAGS


def main(argv: list[str] | None = None) -> None:
  """Parses the command line and runs; leaves through `sys.exit`."""
  config_flags.DEFINE_config_file("config", None, "Config file, with its argument after a colon.")
  flags.DEFINE_string(
      "workdir", None, "Where the run lives; default: workdirs/ and the name of the config.")
  flags.DEFINE_enum(
      "mode", "train", ["train", "eval", "largest_batch"],
      "Train, evaluate the newest checkpoint, or find the largest batch that fits into the device.")
  flags.DEFINE_string(
      "distributed", "off", "'auto' (TPU pod, SLURM, Open MPI, Kubernetes), 'off' or host:port,rank,count.")
  flags.mark_flag_as_required("config")
  app.run(_run, argv=argv, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  """absl's parser, with ml_collections' bare complaints put into words."""
  config = _load_config(argv)
  argv, added = _new_options(argv, flatten(config) if config is not None else {})
  sys.argv = argv  # where ml_collections looks for the overrides
  try:
    rest = FLAGS(argv)
    for key, value in added.items():
      *parents, leaf = key.split(".")
      node = FLAGS.config
      for parent in parents:
        node = node[parent]
      with node.unlocked():
        node[leaf] = value
    return rest
  except (AttributeError, KeyError, ValueError, TypeError, flags.Error) as error:
    known = flatten(config) if config is not None else {}
    for argument in argv[1:]:
      key = argument.lstrip("-").split("=", 1)[0].partition("[")[0]
      if known and key.startswith("config.") and key[len("config."):] not in known:
        key = key[len("config."):]
        near = nearest(key, known)
        _fail(f"--config.{key}: the config has no such key"
              + (near or f"; it has {', '.join(sorted(known))}"))
    _fail(f"{error}\n{USAGE}")


def _new_options(argv: list[str], known: dict) -> tuple[list[str], dict]:
  """Takes `--config.model.options.KEY=VALUE` out of argv where the config does not have the KEY.

  The options are keyword arguments of create_model, which knows their names; ml_collections wants every
  key declared. A value is a Python literal, or text.
  """
  rest, added = [], {}
  for argument in argv:
    key, equals, value = argument.lstrip("-").partition("=")
    key = key.removeprefix("config.")
    if argument.startswith("-") and equals and key not in known and key.startswith("model.options."):
      try:
        added[key] = ast.literal_eval(value)
      except (ValueError, SyntaxError):
        added[key] = {"true": True, "false": False}.get(value, value)
    else:
      rest.append(argument)
  return rest, added


def _load_config(argv: list[str]) -> ml_collections.ConfigDict | None:
  """The config without its overrides; None if none is named. What is wrong with it comes out here."""
  path = None
  for i, argument in enumerate(argv):
    if argument.lstrip("-").startswith("config="):
      path = argument.split("=", 1)[1]
    elif argument in ("--config", "-config") and i + 1 < len(argv):
      path = argv[i + 1]
  if not path:
    return None
  file, _, argument = path.partition(":")
  if not os.path.isfile(file):
    folder = os.path.dirname(file) or "."
    there = sorted(n for n in os.listdir(folder) if n.endswith(".py")) if os.path.isdir(folder) else []
    hint = nearest(os.path.basename(file), there)
    _fail(f"--config={file}: no such file{hint}" + (f"; {folder} has {', '.join(there)}" if there else ""))
  if not file.endswith(".py"):
    _fail(f"--config={file}: give a Python file with a function get_config")
  spec = importlib.util.spec_from_file_location("config_file", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    _fail(f"--config={file}: the file has no function get_config")
  if argument and not inspect.signature(module.get_config).parameters:
    _fail(f"--config={path}: {file} takes no argument; leave ':{argument}' away")
  try:
    return module.get_config(argument) if argument else module.get_config()
  except ValueError as error:
    _fail(f"--config={path}: {error}")


def _default_workdir() -> str:
  """workdirs/ic_resnet50_wld-50_b for --config=configs/ic_resnet50_wld.py:50_b."""
  file, _, argument = config_flags.get_config_filename(FLAGS["config"]).partition(":")
  name = os.path.splitext(os.path.basename(file))[0]
  return os.path.join("workdirs", f"{name}-{argument.replace(',', '-')}" if argument else name)


def _run(argv: list[str]) -> None:
  if len(argv) > 1:
    _fail(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  # Imported late: a mistake on the command line should not have to wait for them.
  from bionets_jax import experiments
  from bionets_jax.training.devices import start_distributed
  from bionets_jax.training.loop import Interrupted

  def leave(number, frame):  # outside the training loop there is nothing to save
    raise SystemExit(EXIT_INTERRUPTED)

  try:
    start_distributed(FLAGS.distributed)
    if FLAGS.distributed == "off":
      for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    workdir = FLAGS.workdir or _default_workdir()
    experiments.run(FLAGS.config, workdir, mode=FLAGS.mode, say=_say)
  except Interrupted:
    sys.exit(EXIT_INTERRUPTED)
  except (ValueError, OSError, FloatingPointError) as error:
    _fail(str(error), status=1)
  except RuntimeError as error:
    if type(error) is not RuntimeError:  # XLA's own errors keep their traceback
      raise
    _fail(str(error), status=1)


def _say(text: str) -> None:
  print(text, flush=True)


def _fail(message: str, status: int = 2) -> None:
  print(f"error: {message}", file=sys.stderr, flush=True)
  if "bionets_jax.training.devices" in sys.modules:
    sys.modules["bionets_jax.training.devices"].leave(status)
  sys.exit(status)
