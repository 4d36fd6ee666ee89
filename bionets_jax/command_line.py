"""The command line behind launch.py."""

import ast
import os
import re
import signal
import sys

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from bionets_jax.config_files import load_config
from bionets_jax.terminal import printable
from bionets_jax.training import exit_status
from bionets_jax.training.config import OPTION_KEYS, check_config, flatten, nearest, within
from bionets_jax.training.host_memory import keep_arenas_few
from bionets_jax.training.ranges import unread

USAGE = ("Usage: python launch.py --config=configs/quickstart.py [--workdir=DIR] [--mode=train|eval|largest_batch] "
         "[--distributed=off|auto|host:port,rank,count] [--config.KEY=VALUE ...]")
FLAGS = flags.FLAGS


def main(argv: list[str] | None = None) -> None:
  """Parses the command line and runs; leaves through `sys.exit`, with a status of `training.exit_status`."""
  keep_arenas_few()
  for number in (signal.SIGTERM, signal.SIGINT):  # from the first moment on; `_run` takes over
    signal.signal(number, lambda *_: os._exit(exit_status.INTERRUPTED))
  config_flags.DEFINE_config_file("config", None, "Config file, with its argument after a colon.")
  flags.DEFINE_string(
      "workdir", None, "Where the run lives; default: workdirs/ and the name of the config.")
  flags.DEFINE_enum(
      "mode", "train", ["train", "eval", "largest_batch"],
      "Train, evaluate the newest checkpoint, or find the largest batch that fits into the device.")
  flags.DEFINE_string(
      "distributed", "off", "'auto' (TPU pod, SLURM, Open MPI, Kubernetes), 'off' or host:port,rank,count.")
  flags.DEFINE_integer(
      "join_timeout", 300, "Seconds to wait for the other processes of the job at the start.", lower_bound=1)
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
    if config is not None:
      _check_read(argv, FLAGS.config)
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
  """Takes `--config.model.options.KEY=VALUE` out of argv where the config does not have the KEY; a detector's as well.

  The options are keyword arguments of create_model and of create_detector, which know their names; ml_collections
  wants every key declared. A value is a Python literal, or text.
  """
  # Without options there is the empty dict itself; a study has neither.
  there = [part for part in OPTION_KEYS if any(within(key, [part]) for key in known)]
  rest, added = [], {}
  for argument in argv:
    key, equals, value = argument.lstrip("-").partition("=")
    key = key.removeprefix("config.")
    if argument.startswith("-") and equals and key not in known and within(key, there):
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
  try:
    return load_config(path)
  except (ValueError, OSError) as error:
    _fail(f"--config={path}: {error}")


def _check_read(argv: list[str], config: ml_collections.ConfigDict) -> None:
  """Refuses an override that the rest of the config keeps from being read: it is a slip.

  What a config file sets may well be left over when an override chooses something else.
  """
  given = {a.lstrip("-").partition("=")[0].removeprefix("config.") for a in argv[1:] if a.startswith("-")}
  study = "runs" in config
  for name, run in config.runs.items() if study else [("", config)]:
    try:
      check_config(run)
    except ValueError:
      continue  # said with everything else about it, before anything is built
    for key, needs in unread(run).items():
      if (full := f"runs.{name}.{key}" if study else key) in given:
        _fail(f"--config.{full}: nothing reads this key of this run; it takes {needs}")


def _default_workdir() -> str:
  """workdirs/ic_resnet50_wld-50_b for --config=configs/ic_resnet50_wld.py:50_b."""
  file, _, argument = config_flags.get_config_filename(FLAGS["config"]).partition(":")
  name = os.path.splitext(os.path.basename(file))[0]
  argument = re.sub(r"[^\w.+=-]", "-", argument)  # one folder, whatever it is: '../x' would leave workdirs/
  return os.path.join("workdirs", f"{name}-{argument}" if argument else name)


def _run(argv: list[str]) -> None:
  if len(argv) > 1:
    _fail(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  # Imported late: a mistake on the command line should not have to wait for them.
  from bionets_jax import experiments
  from bionets_jax.training import distributed, hangs, job, stopping
  from bionets_jax.training.loop import Interrupted

  try:
    distributed.parse(FLAGS.distributed)
  except ValueError as error:
    _fail(str(error))
  stopping.leave_on_signals()
  hangs.watch()
  try:
    distributed.start(FLAGS.distributed, FLAGS.join_timeout)
    workdir = os.path.expanduser(FLAGS.workdir or _default_workdir())  # shells leave --workdir=~/x as it is
    experiments.run(FLAGS.config, workdir, mode=FLAGS.mode, say=_say)
  except Interrupted:
    job.leave(exit_status.INTERRUPTED)
  except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
    own = type(error) is RuntimeError or not isinstance(error, RuntimeError)  # XLA's keep their traceback
    if not own or job.lost_a_process(error):  # what that means is said in `job`
      raise
    _fail(str(error), status=1)
  job.leave(0)


def _say(text: str) -> None:
  print(printable(text), flush=True)


def _fail(message: str, status: int = 2) -> None:
  print(printable(f"error: {message}"), file=sys.stderr, flush=True)
  if "bionets_jax.training.job" in sys.modules:
    sys.modules["bionets_jax.training.job"].leave(status, message)
  sys.exit(status)
