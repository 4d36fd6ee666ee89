"""A long run that does little but everything: memory, open files and threads of all its processes over hours.

    python benchmarks/soak.py [--hours=2] [--sample=10] [--rest=5] [--workdir=DIR] [--json=FILE]
    python benchmarks/soak.py --judge=FILE     # the samples of a run that was made before

A small network is trained on JPEGs that two worker processes decode, with an evaluation (workers of its own) every 25
steps and a checkpoint every 10. Every few seconds the sizes of the process and of its descendants are read from /proc;
in the end it is stopped by SIGTERM and has to leave with status 75.

Slopes are least squares over the time after the first quarter, with twice their standard error: of all samples, and of
the least sample of each of 18 parts of that time (five minutes of two hours). The second is judged: buffers of a save,
stacks of short threads and workers of an evaluation come and go in steps of many MiB, upwards only, and how often a
sample meets them depends on what else the machine does; what is never given back is in the least sample too. Growth is a
slope above its error by which the whole run would gain more than 2 %. Exit status 1 if anything grows or the run ends
by itself.

The threads of tensorstore's pool and their stacks are counted apart from the other threads and memory. It starts one
more when the writes of a save have to wait, and one ends after 20 seconds without work, which in this run it never has:
a machine that is busy for a moment adds a thread for the rest of the run. So every five minutes all processes are
stopped for 25 seconds (SIGSTOP), as if the machine had been suspended, and what is left of the pool when they go on is
judged. Where that was not looked at the pool itself is.

Memory that is in use is shown and not judged: some kernels take back pages that a process leaves alone for minutes, and
what is used again then looks like growth. What is judged is what the processes have asked for, which a leak raises
whoever took its pages.

What it does not show: GPUs' memory, file systems over a network, and leaks smaller than the error. What other
processes leave in /dev/shm meanwhile counts as if it were the run's.
"""

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import timing

from bionets_jax.data.generated import GeneratedSource
from bionets_jax.training.config import classification_config

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FIRST_QUARTER = 0.25  # caches fill
PARTS = 18
GROWTH = 0.02  # of the mean, over the whole run
POOL = "ts_pool_worker"
REST_SECONDS = 25  # longer than a thread of the pool waits for work
AT_REST = "tensorstore's threads after a rest"
SERIES = {
    "memory, all processes": "MiB", "memory, main process": "MiB", "asked for, all processes": "MiB",
    "asked for, main process": "MiB", "open files": "files", "threads": "threads", "tensorstore's threads": "threads",
    AT_REST: "threads",
    "shared memory of the machine": "MiB", "workdir": "MiB", "step": "steps"}
NOT_JUDGED = ("memory, all processes", "memory, main process")
SELDOM = ("step", AT_REST)  # not in the lines that show the progress


def get_config(folder: str):
  """The run's config: `launch.py --config=benchmarks/soak.py:FOLDER`."""
  config = classification_config()
  config.model.name = "ic_resnet20_cifar"
  config.model.options.stage_sizes = (1, 1, 1)
  config.data.name, config.data.dir, config.data.eval_split = "folder", folder, "validation"
  config.data.train_transform, config.data.eval_transform = "random_resized_crop(32)|flip", "resize(40)|center_crop(32)"
  config.data.workers = 2
  config.batch_size = 16
  config.duration = "100000000 steps"
  config.schedule.kind, config.schedule.lr = "constant", 0.001
  config.log_every, config.eval_every, config.checkpoint_every = "10 steps", "25 steps", "10 steps"
  return config


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--hours", type=float, default=2.0)
  parser.add_argument("--sample", type=float, default=10.0, metavar="SECONDS", help="between two samples")
  parser.add_argument("--rest", type=float, default=5.0, metavar="MINUTES", help="between two rests")
  parser.add_argument("--workdir", help="default: a temporary one")
  parser.add_argument("--json", metavar="FILE", help="also FILE with .png in place of .json: the plot")
  parser.add_argument("--judge", metavar="FILE", help="judge and plot the samples that --json has written; nothing is run")
  options = parser.parse_args()
  if options.judge:
    with open(options.judge, encoding="utf-8") as file:
      stored = json.load(file)
    return judge(stored["samples"], stored["machine"], options.judge)
  with tempfile.TemporaryDirectory() as scratch:
    workdir = options.workdir or os.path.join(scratch, "run")
    data = os.path.join(scratch, "images")
    write_images(data)
    with open(os.path.join(scratch, "output.txt"), "w+", encoding="utf-8") as output:
      process = subprocess.Popen(
          [sys.executable, "launch.py", f"--config={os.path.relpath(__file__, ROOT)}:{data}", f"--workdir={workdir}"],
          cwd=ROOT, env=os.environ | {"PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}, stdout=output,
          stderr=subprocess.STDOUT)
      try:
        samples = watch(process, workdir, options)
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
      finally:
        process.kill()
      output.seek(0)
      said = output.read()
  if status != 75 or not samples:
    print(said[-4000:])
    print(f"the run left with status {status}, expected 75", file=sys.stderr)
    return 1
  return judge(samples, timing.machine(), options.json)


def judge(samples: list[dict[str, float]], machine: dict, path: str | None) -> int:
  """Prints the slopes, and writes them with a plot; returns the exit status."""
  found = {name: slope(samples, name) for name in SERIES if name != "step" and any(name in s for s in samples)}
  unjudged = (*NOT_JUDGED, *(["tensorstore's threads"] if AT_REST in found else []))
  show(found, samples, unjudged)
  if path:
    timing.write(path, {"machine": machine, "hours": samples[-1]["hours"], "steps": samples[-1]["step"],
                        "slopes": found, "samples": samples})
    plot(samples, os.path.splitext(path)[0] + ".png")
  return int(any(one["grows"] for name, one in found.items() if name not in unjudged))


def write_images(folder: str) -> None:
  """Made-up JPEGs in the layout FOLDER/SPLIT/CLASS/*.jpg."""
  from PIL import Image

  for split in ("train", "validation"):
    source = GeneratedSource("generated/imagenet2012", split)
    for index in range(len(source)):
      image, label, _ = source.read(index)
      path = os.path.join(folder, split, str(label % 8), f"{index}.jpg")
      os.makedirs(os.path.dirname(path), exist_ok=True)
      Image.fromarray(image).save(path)


def watch(process: subprocess.Popen, workdir: str, options: argparse.Namespace) -> list[dict[str, float]]:
  """Samples of a run until its time is over, or it ends."""
  samples: list[dict[str, float]] = []
  start = rested = time.monotonic()
  while (gone := time.monotonic() - start) < 3600 * options.hours:
    time.sleep(options.sample)
    if process.poll() is not None:
      break
    now = sample(process.pid, workdir)
    if not now["step"]:
      start = rested = time.monotonic()  # it is still coming up
      continue
    samples.append({"hours": gone / 3600} | now)
    if time.monotonic() - rested > 60 * options.rest:
      samples[-1][AT_REST] = rest(process.pid)
      rested = time.monotonic()
    if len(samples) % max(1, round(60 / options.sample)) == 0:
      left = options.hours - gone / 3600
      print(f"{gone / 60:6.1f} min  step {now['step']:>7.0f}  " + "  ".join(
          f"{name} {now[name]:.0f}" for name in SERIES if name not in SELDOM) + f"  left {60 * left:.0f} min", flush=True)
  return samples


def sample(pid: int, workdir: str) -> dict[str, float]:
  """What the processes hold now; the number of the newest log line."""
  main = _held(pid)
  total = [sum(values) for values in zip(*(_held(one) for one in (pid, *descendants(pid))), strict=True)]
  return {
      "memory, all processes": total[0] / 2**20, "memory, main process": main[0] / 2**20,
      "asked for, all processes": total[1] / 2**20, "asked for, main process": main[1] / 2**20,
      "open files": total[2], "threads": total[3], "tensorstore's threads": total[4],
      "shared memory of the machine": _bytes_under("/dev/shm") / 2**20,
      "workdir": _bytes_under(os.path.join(workdir, "checkpoints")) / 2**20, "step": _newest_step(workdir)}


def rest(pid: int) -> int:
  """Stops a process and its descendants for a while; the least that its pool has when they go on."""
  stopped = [pid, *descendants(pid)]
  try:
    for one in stopped:
      _signal(one, signal.SIGSTOP)
    time.sleep(REST_SECONDS)
  finally:
    for one in reversed(stopped):
      _signal(one, signal.SIGCONT)
  left = []
  for _ in range(50):  # in the second until the next save the threads see how late it is
    time.sleep(0.02)
    left.append(_pool(pid))
  return min(left)


def _signal(pid: int, number: int) -> None:
  with contextlib.suppress(ProcessLookupError):  # it has ended
    os.kill(pid, number)


def descendants(pid: int) -> list[int]:
  """All processes under one."""
  children: dict[int, list[int]] = {}
  for name in filter(str.isdigit, os.listdir("/proc")):
    try:
      with open(f"/proc/{name}/stat", encoding="utf-8") as file:
        parent = int(file.read().rpartition(")")[2].split()[1])
    except OSError:
      continue  # it has ended
    children.setdefault(parent, []).append(int(name))
  found, new = [], [pid]
  while new:
    new = [child for parent in new for child in children.get(parent, [])]
    found += new
  return found


def _held(pid: int) -> tuple[int, int, int, int, int]:
  """(bytes in memory that no file stands behind, of what n processes share an n-th; bytes asked for, whether or not they
  were ever touched; open files; threads; those of tensorstore's pool, which the others are without); zeros of a process
  that has ended.

  Pages of libraries come and go with what else the machine does. Some kernels also take back pages that a process
  leaves alone: a leak that nobody touches again may be missing from the first number, never from the second.
  """
  try:
    with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
      memory = next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss_Anon:"))
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
      asked = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))
    pool = _pool(pid)
    asked -= pool * max(0, resource.getrlimit(resource.RLIMIT_STACK)[0])  # which the run has from here; -1: no limit
    return memory, asked, len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")) - pool, pool
  except (OSError, StopIteration):
    return 0, 0, 0, 0, 0


def _pool(pid: int) -> int:
  """How many threads of tensorstore's pool a process has; 0 if it has ended."""
  try:
    return sum(_name(pid, thread) == POOL for thread in os.listdir(f"/proc/{pid}/task"))
  except OSError:
    return 0


def _name(pid: int, thread: str) -> str:
  try:
    with open(f"/proc/{pid}/task/{thread}/comm", encoding="utf-8", errors="replace") as file:
      return file.read().strip()
  except OSError:
    return ""  # it has ended


def _bytes_under(folder: str) -> int:
  total = 0
  for parent, _, names in os.walk(folder):
    for name in names:
      try:
        total += os.lstat(os.path.join(parent, name)).st_size
      except OSError:
        pass  # a checkpoint that was just removed
  return total


def _newest_step(workdir: str) -> int:
  try:
    with open(os.path.join(workdir, "metrics.jsonl"), "rb") as file:
      file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
      lines = file.read().splitlines()
    return int(lines[-1].partition(b'"step": ')[2].partition(b",")[0])
  except (OSError, IndexError, ValueError):
    return 0


def slope(samples: list[dict[str, float]], name: str) -> dict[str, float | bool]:
  """How a series goes after its first quarter.

  Returns:
    per_hour, error: of all samples, and two standard errors.
    least_per_hour, least_error: of the least sample of each part.
    mean, least, most: of all samples.
    grows: whether the least samples do.
  """
  late = [s for s in samples if s["hours"] >= FIRST_QUARTER * samples[-1]["hours"] and name in s]
  x, y = np.array([s["hours"] for s in late]), np.array([s[name] for s in late])
  per_hour, error = _line(x, y)
  parts = [part for part in np.array_split(np.arange(len(x)), PARTS) if len(part)]
  lowest = [part[y[part].argmin()] for part in parts]
  least_per_hour, least_error = _line(x[lowest], y[lowest])
  return {"per_hour": per_hour, "error": error, "least_per_hour": least_per_hour, "least_error": least_error,
          "mean": float(y.mean()), "least": float(y.min()), "most": float(y.max()),
          "grows": bool(least_per_hour > least_error and least_per_hour * samples[-1]["hours"] > GROWTH * y.mean())}


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
  """(slope of the least-squares line, two standard errors of it)."""
  x = x - x.mean()
  per_hour = float((x * y).sum() / (x * x).sum())
  residual = y - y.mean() - per_hour * x
  return per_hour, float(2 * np.sqrt((residual**2).sum() / max(1, len(x) - 2) / (x * x).sum()))


def show(found: dict[str, dict], samples: list[dict[str, float]], unjudged: Sequence[str]) -> None:
  rows = [["of the run", "mean", "least", "most", "an hour", "+-", "least, an hour", "+-", "grows"]]
  for name, one in found.items():
    rows.append([f"{name} ({SERIES[name]})", *(f"{one[key]:.1f}" for key in ("mean", "least", "most")),
                 f"{one['per_hour']:+.2f}", f"{one['error']:.2f}", f"{one['least_per_hour']:+.2f}",
                 f"{one['least_error']:.2f}", "-" if name in unjudged else "YES" if one["grows"] else "no"])
  print(f"\n{samples[-1]['hours']:.2f} hours, {samples[-1]['step']:.0f} steps, {len(samples)} samples\n")
  print(timing.table(rows), flush=True)


def plot(samples: list[dict[str, float]], path: str) -> None:
  """One panel for each series."""
  from matplotlib.figure import Figure

  names = [name for name in SERIES if name != "step" and any(name in s for s in samples)]
  figure = Figure(figsize=(14, 5), layout="constrained")
  panels = list(figure.subplots(2, 5).flat)
  for axes in panels[len(names):]:
    axes.set_axis_off()
  for axes, name in zip(panels, names, strict=False):
    seen = [s for s in samples if name in s]
    axes.plot([s["hours"] for s in seen], [s[name] for s in seen], "." if name == AT_REST else "-", linewidth=0.8)
    axes.set_title(name, fontsize=10)
    axes.set(xlabel="hours", ylabel=SERIES[name])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
  figure.savefig(path, dpi=110)


if __name__ == "__main__":
  sys.exit(main())
