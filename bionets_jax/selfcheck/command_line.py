"""The command line of the checks. Exit status: 0 all is exact, 1 something is not, 2 wrong usage, 75 stopped."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence

_DESCRIPTION = """\
Proves that runs are exact on this machine: the same run twice, interrupted and whole, on one device and on
several, restored from one to several and back, float32 and float64, batches from threads and from worker
processes, every example of an epoch once. A minute or two; nothing is downloaded, nothing is left behind.

  python -m bionets_jax.selfcheck
  python -m bionets_jax.selfcheck --json=selfcheck.json
  JAX_PLATFORMS=cpu python -m bionets_jax.selfcheck     # on a machine with a GPU: its CPU as four devices
"""
# Kept here: --help should not have to import JAX.
_CHECKS = ("runs", "reference", "workers", "order")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  """The options; leaves with status 2 and a message if they are wrong."""
  parser = argparse.ArgumentParser(
      prog="python -m bionets_jax.selfcheck", description=_DESCRIPTION, allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--json", default="", metavar="FILE", help="where the findings go as JSON")
  parser.add_argument("--only", nargs="+", choices=_CHECKS, default=_CHECKS, metavar="CHECK",
                      help=f"of {', '.join(_CHECKS)}; default all")
  options = parser.parse_args(arguments)
  folder = os.path.dirname(os.path.abspath(options.json))
  if options.json and not os.path.isdir(folder):
    parser.error(f"--json={options.json}: {folder} is no folder")
  return options


def main(arguments: Sequence[str] | None = None) -> int:
  """Makes the checks and prints their table."""
  options = parse(arguments)
  import jax

  jax.config.update("jax_num_cpu_devices", 4)  # virtual ones, of which only a machine without others makes use
  with tempfile.TemporaryDirectory(prefix="selfcheck-") as folder:
    return run(options, folder)


def run(options: argparse.Namespace, folder: str) -> int:
  """The checks of `options` in `folder`; the exit status."""
  import jax

  import bionets_jax
  from bionets_jax.selfcheck.batches import check_order, check_workers
  from bionets_jax.selfcheck.check import Context, table
  from bionets_jax.selfcheck.reference import check_reference
  from bionets_jax.selfcheck.runs import check_runs
  from bionets_jax.training.exit_status import INTERRUPTED
  from bionets_jax.training.loop import Interrupted

  checkers = dict(zip(_CHECKS, (check_runs, check_reference, check_workers, check_order), strict=True))
  started = time.perf_counter()

  def say(text):
    print(f"{time.perf_counter() - started:6.1f} s  {text}", file=sys.stderr, flush=True)

  devices = jax.devices()
  several = 1
  while 2 * several <= min(len(devices), 4):
    several *= 2
  context = Context(
      folder, say, devices[:several], deterministic=devices[0].platform == "gpu",
      compile_cache=os.path.join(folder, "compiled"))
  where = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), jax {jax.__version__}"
  say(where)
  checks = []
  for name in options.only:
    try:
      checks += checkers[name](context)
    except Interrupted:
      print("stopped on request; nothing is proved", file=sys.stderr)
      return INTERRUPTED
  seconds = time.perf_counter() - started
  ok = all(check.ok for check in checks)
  print(f"\n{table(checks)}\n\n{'all is exact' if ok else 'NOT EXACT'} on {where}, in {seconds:.0f} s")
  if options.json:
    with open(options.json, "w", encoding="utf-8") as file:
      json.dump({"ok": ok, "devices": where, "bionets_jax": bionets_jax.__version__, "seconds": round(seconds, 1),
                 "checks": [check.to_json() for check in checks]}, file, indent=2)
      file.write("\n")
  return 0 if ok else 1
