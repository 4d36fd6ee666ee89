"""Hostile inputs: configs, weights files, images, checkpoints and workdirs that somebody made to do harm.

    python benchmarks/hostile.py [--only=GROUP ...] [--every=N] [--json=FILE]

Made here, with a fixed seed, and given to the function that reads such a thing, or to the command. Withstood
is an input that ends, within 30 seconds and 512 MiB, in a ValueError, RuntimeError, OSError or an error of
this package whose message names what is wrong; that has executed no code, and left no file behind or
changed. Everything runs in a process of its own, which is watched: a crash or a hang ends the input, not the
table. Exit status 1 if one is not withstood. All of them take two minutes on two CPU cores.
"""

import argparse
import collections
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import hostile_checkpoints  # noqa: E402
import hostile_configs  # noqa: E402
import hostile_files  # noqa: E402
import hostile_images  # noqa: E402
import hostile_torch  # noqa: E402
import hostile_weights  # noqa: E402
import hostile_workdirs  # noqa: E402
from hostile_case import SECONDS, Case, Verdict, judge  # noqa: E402

_MODULES = (
  hostile_configs,
  hostile_weights,
  hostile_torch,
  hostile_files,
  hostile_images,
  hostile_checkpoints,
  hostile_workdirs,
)


def all_cases() -> list[Case]:
  """Every input, each under a name of its own."""
  found = [case for module in _MODULES for case in module.cases()]
  twice = [name for name, count in collections.Counter(case.name for case in found).items() if count > 1]
  assert not twice, twice
  return found


def run(numbers: Sequence[int]) -> Iterator[Verdict]:
  """Judges these of `all_cases`, in this process."""
  cases = all_cases()
  for number in numbers:
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
      yield judge(cases[number], pathlib.Path(folder), number)


def run_watched(numbers: Sequence[int]) -> Iterator[Verdict]:
  """`run` in a process of its own, and in a new one after a crash or a hang."""
  left, names = list(numbers), [case.name for case in all_cases()]
  while left:
    worker = subprocess.Popen(
      [sys.executable, __file__, "--worker", ",".join(map(str, left))],
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    problem = ""
    while left and not problem:
      ready, _, _ = select.select([worker.stdout], [], [], 3 * SECONDS)  # it imports JAX first
      line = worker.stdout.readline() if ready else ""
      if not line:
        problem = f"crashed with status {worker.wait()}" if ready else "hangs in a library"
        worker.kill()
        yield Verdict(names[left.pop(0)], problem, "", "", 0.0, 0.0)
      elif line.startswith("{"):
        left.pop(0)
        yield Verdict(**json.loads(line))
    worker.wait()


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
    "--only", action="append", default=[], metavar="GROUP", help="configs, weights, images, ..."
  )
  parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th input alone")
  parser.add_argument("--json", metavar="FILE")
  parser.add_argument("--worker", metavar="N,N,...", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.worker:
    for verdict in run([int(number) for number in options.worker.split(",")]):
      print(json.dumps(verdict._asdict()), flush=True)
    return 0
  numbers = [
    number
    for number, case in enumerate(all_cases())
    if not options.only or case.name.partition(":")[0] in options.only
  ][:: options.every]
  verdicts = []
  for verdict in run_watched(numbers):
    verdicts.append(verdict)
    shown = verdict.problem.upper() or verdict.error
    print(
      f"{len(verdicts):4} {verdict.name:64.64} {verdict.seconds:5.2f} s  {shown}: {verdict.message[:150]!r}",
      flush=True,
    )
  print(table(verdicts))
  if options.json:
    with open(options.json, "w", encoding="utf-8") as file:
      json.dump(summary(verdicts), file, indent=1)
      file.write("\n")
  return int(any(verdict.problem for verdict in verdicts))


def summary(verdicts: Sequence[Verdict]) -> dict:
  """As JSON: counts, and each input with its error; times and paths of this machine are left out."""
  groups = collections.Counter(verdict.name.partition(":")[0] for verdict in verdicts)
  return {
    "inputs": len(verdicts),
    "withstood": sum(not verdict.problem for verdict in verdicts),
    "groups": dict(groups),
    "slowest_seconds": round(max(verdict.seconds for verdict in verdicts), 1),
    "most_mebibytes": round(max(verdict.mebibytes for verdict in verdicts)),
    "cases": [
      {"name": v.name, "error": v.error} | ({"problem": v.problem} if v.problem else {}) for v in verdicts
    ],
  }


def table(verdicts: Sequence[Verdict]) -> str:
  """One line for each group of inputs, one for each that was not withstood."""
  lines = [f"{'':14}{'inputs':>8}{'withstood':>11}{'slowest s':>11}{'MiB':>7}"]
  groups: dict[str, list[Verdict]] = {}
  for verdict in verdicts:
    groups.setdefault(verdict.name.partition(":")[0], []).append(verdict)
  for name, some in [*groups.items(), ("all", list(verdicts))]:
    lines.append(
      f"{name:14}{len(some):8}{sum(not v.problem for v in some):11}"
      f"{max(v.seconds for v in some):11.1f}{max(v.mebibytes for v in some):7.0f}"
    )
  return "\n".join(lines + [f"NOT WITHSTOOD  {v.name}: {v.problem}" for v in verdicts if v.problem])


if __name__ == "__main__":
  sys.exit(main())
