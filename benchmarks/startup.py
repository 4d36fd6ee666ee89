"""From the start of the process to the end of the first training step, beside a PyTorch script's.

    pip install torch
    python benchmarks/startup.py [--model=resnet20_cifar] [--batch=64] [--rounds=3] [--json=FILE]

Ours is `launch.py` with the recipe for CIFAR-10 on made-up images, as a user starts it: without a cache of
compiled programs, with an empty one, and with what that one has left (config.compile_cache). PyTorch's is
benchmarks/startup_pytorch.py with the module that `python -m bionets_jax.weights` writes for the same
network: eager, under torch.compile with an empty cache, and again with what that has left. Every start is a
process of its own, which is killed after its first step; a round starts each case once, in random order but
for the two that need another's cache. The time is taken from outside. Ratios are medians of the ratios
within a round. A FILE that is there already keeps its rounds, and these come to them.

Ours does more before its first step than the script does: it opens the data set, initialises and prints the
network, and makes its folder. What a restart from a checkpoint saves and costs is not in it.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import timing

from bionets_jax.weights import Preprocessing
from bionets_jax.weights.pytorch import pytorch_source

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIDE, CLASSES = 32, 10
CASES = ("ours, no cache", "ours, empty cache", "ours, full cache", "torch eager",
         "torch compiled, empty cache", "torch compiled, full cache")
BASE = "torch eager"


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", default="resnet20_cifar")
  parser.add_argument("--batch", type=timing.positive, default=64, help="images, 64 at most")
  parser.add_argument("--rounds", type=timing.positive, default=3)
  parser.add_argument("--json", metavar="FILE")
  options = parser.parse_args()
  if importlib.util.find_spec("torch") is None:
    sys.exit("error: PyTorch is missing, and this comparison needs it: pip install torch==2.13.0")
  what = {"machine": timing.machine(), "model": options.model, "batch": options.batch}
  print(", ".join(f"{key} {value}" for key, value in what["machine"].items()), flush=True)
  rounds = earlier_rounds(options)
  for number in range(len(rounds), len(rounds) + options.rounds):
    rounds.append(one_round(options, random.Random(number)))
  cases = summarise(rounds)
  show(cases)
  if options.json:
    timing.write(options.json, what | {"cases": cases, "rounds": rounds})
  return 0


def earlier_rounds(options: argparse.Namespace) -> list[dict[str, dict[str, float]]]:
  """The rounds that the file has; ends the script if they are of something else."""
  if not options.json or not os.path.exists(options.json):
    return []
  with open(options.json, encoding="utf-8") as file:
    found = json.load(file)
  if (found["model"], found["batch"]) != (options.model, options.batch):
    sys.exit(f"error: {options.json} is of {found['model']} with a batch of {found['batch']}; "
             "give another file")
  return found["rounds"]


def summarise(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict]:
  """Case -> median seconds, ratio to PyTorch's eager start, median of each phase."""
  seconds = {case: [one[case]["total"] for one in rounds] for case in CASES}
  return {case: {
      "seconds": statistics.median(seconds[case]), f"vs {BASE}": timing.ratio(seconds, case, BASE),
      "phases": {name: statistics.median(one[case][name] for one in rounds)
                 for name in rounds[0][case] if name != "total"}} for case in CASES}


def show(cases: dict[str, dict]) -> None:
  rows = [["start to first step", "seconds", f"vs {BASE}", "quartiles", "of it"]]
  for case, one in cases.items():
    spread = one[f"vs {BASE}"]
    phases = ", ".join(f"{name} {value:.1f}" for name, value in one["phases"].items())
    rows.append([case, f"{one['seconds']:.1f}", f"{spread['median']:.2f}",
                 f"{spread['low']:.2f}-{spread['high']:.2f}", phases])
  print(timing.table(rows))


def one_round(options: argparse.Namespace, order: random.Random) -> dict[str, dict[str, float]]:
  """Case -> seconds of one start of each, as `start` gives them."""
  with tempfile.TemporaryDirectory() as folder:
    source = os.path.join(folder, "model.py")
    with open(source, "w", encoding="utf-8") as file:
      file.write(pytorch_source(options.model, {}, CLASSES, (SIDE, SIDE, 3), Preprocessing(
          (0.5,) * 3, (0.25,) * 3, image_size=SIDE, resize=SIDE)))
    cases = order.sample(CASES, len(CASES))
    for full in [case for case in CASES if case.endswith("full cache")]:
      cases.remove(full)
      cases.insert(cases.index(full.replace("full", "empty")) + 1, full)
    return {case: start(case, folder, options) for case in cases}


def start(case: str, folder: str, options: argparse.Namespace) -> dict[str, float]:
  """Seconds until the first step of a case is done, as 'total'; of ours also what its log says of them."""
  environment = os.environ | {"PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
  environment.pop("JAX_COMPILATION_CACHE_DIR", None)
  if case.startswith("ours"):
    cache = "off" if case.endswith("no cache") else f"{folder}/programs"
    command = ["launch.py", "--config=configs/fp_resnet_cifar10.py:resnet20",
               f"--workdir={folder}/{case.replace(', ', '_').replace(' ', '_')}",
               f"--config.model.name={options.model}", "--config.data.name=generated/cifar10",
               f"--config.batch_size={options.batch}", f"--config.compile_cache={cache}"]
  else:
    sizes = map(str, (options.batch, SIDE, CLASSES))
    command = ["benchmarks/startup_pytorch.py", f"{folder}/model.py", *sizes]
    command += ["--compile"] if "compiled" in case else []
  lines = []
  began = time.perf_counter()
  with subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, text=True,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
    for line in process.stdout:
      lines.append(line)
      if line.startswith("first step"):
        found = {"total": time.perf_counter() - began}
        process.kill()
        print(f"{case}: {found['total']:.1f} s", flush=True)
        if case.startswith("ours"):
          phases = re.findall(r"[:,] ([a-z ]+) ([\d.]+)(?=,|$)", line.strip())
          found |= {name: float(seconds) for name, seconds in phases}
        return found
  sys.exit(f"error: {case}: no first step came\n{''.join(lines)}")


if __name__ == "__main__":
  raise SystemExit(main())
