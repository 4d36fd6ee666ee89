"""The command line behind launch.py."""

import importlib.util
import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: try again later

FLAGS = flags.FLAGS


def main(argv: list[str] | None = None) -> None:
  """Parses the command line and runs; leaves through `sys.exit`."""
  config_flags.DEFINE_config_file("config", None, "Config file, with its argument after a colon.")
  flags.DEFINE_string(
      "workdir", None, "Where the run lives; default: workdirs/ and the name of the config.")
  flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate the newest checkpoint.")
  flags.DEFINE_string(
      "distributed", "off", "'auto' (TPU pod, SLURM, Open MPI, Kubernetes), 'off' or host:port,rank,count.")
  flags.mark_flag_as_required("config")
  app.run(_run, argv=argv, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  """absl's parser, with ml_collections' bare complaint about an unknown key put into words."""
  try:
    return FLAGS(argv)
  except flags.Error as error:
    _fail(f"{error}\nUsage: python launch.py --config=configs/quickstart.py [--workdir=DIR] "
          "[--mode=train|eval] [--config.KEY=VALUE]")
  except (AttributeError, KeyError, ValueError, TypeError) as error:
    _fail(_explain(argv, error))


def _explain(argv: list[str], error: Exception) -> str:
  """Which --config.KEY=VALUE was wrong, and the keys that come near."""
  from bionets_jax.training.config import flatten, nearest

  path = next((a.split("=", 1)[1] for a in argv if a.startswith(("--config=", "-config="))), None)
  overrides = [a.lstrip("-").split("=", 1)[0] for a in argv if a.lstrip("-").startswith("config.")]
  try:
    known = flatten(_load_config(path))
  except Exception as load_error:  # the config file itself is at fault
    return f"{path}: {type(load_error).__name__}: {load_error}"
  for key in overrides:
    key = key[len("config."):].partition("[")[0]
    if key not in known:
      return (f"--config.{key}: {path} has no such key{nearest(key, known)}; "
              f"it has {', '.join(sorted(known))}")
  return f"{type(error).__name__}: {error}"


def _load_config(path: str):
  file, _, argument = path.partition(":")
  spec = importlib.util.spec_from_file_location("config", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(argument) if argument else module.get_config()


def _default_workdir() -> str:
  """workdirs/ic_resnet50_wld-50_b for --config=configs/ic_resnet50_wld.py:50_b."""
  file, _, argument = config_flags.get_config_filename(FLAGS["config"]).partition(":")
  name = os.path.splitext(os.path.basename(file))[0]
  return os.path.join("workdirs", f"{name}-{argument.replace(',', '-')}" if argument else name)


def _run(argv: list[str]) -> None:
  if len(argv) > 1:
    _fail(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  from bionets_jax.training.devices import start_distributed

  try:
    start_distributed(FLAGS.distributed)
    # Only now may something look at the devices.
    from bionets_jax import experiments
    from bionets_jax.training.loop import Interrupted

    workdir = FLAGS.workdir or _default_workdir()
    experiments.run(FLAGS.config, workdir, mode=FLAGS.mode, say=_say)
  except Interrupted:
    sys.exit(EXIT_INTERRUPTED)
  except (ValueError, FileNotFoundError, FloatingPointError) as error:
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
