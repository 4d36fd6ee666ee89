"""Interrupts small runs at random moments until they are done, and compares them with runs that were left alone.

  python benchmarks/faults.py                                      60 interruptions, of one and of two processes
  python benchmarks/faults.py --interruptions=5 --processes=1      the short form

Each trial is one training run: the same command again and again, interrupted by SIGTERM or kill -9 while it starts, while
it trains or while it saves; of two processes one or both. At the end the weights must be those of an undisturbed run
byte for byte, metrics.jsonl must have every step once with the same losses, and the summary the same errors. The
same command goes on behind the trials that --out has already. The moments follow from --seed; what a process is
doing then, from the machine.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from bionets_jax.training.local_processes import free_port

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT = os.path.join(ROOT, "benchmarks", "results", "faults.json")
PER_TRIAL = 5
# With every interruption a run comes about so far, and more where a signal takes its time; what is left is room for that.
STEPS_BETWEEN = 12
STEPS = 4 * PER_TRIAL * STEPS_BETWEEN
END_SECONDS = 60
CONFIG = '''
import ml_collections
from bionets_jax.training.config import classification_config

def get_config(steps):
  config = classification_config()
  config.model.name = "resnet20_cifar"
  config.model.options = ml_collections.ConfigDict(dict(stage_sizes=(1, 1, 1), width=4))
  config.data.name = "digits"
  config.data.train_transform = "pad_crop(1)"
  config.data.mean, config.data.std = (0.3,), (0.4,)
  config.batch_size, config.eval_batch_size = 16, 120
  config.duration = f"{steps} steps"
  config.select = "best"
  config.schedule.boundaries = (0.5,)
  config.log_every, config.eval_every, config.checkpoint_every = "1 steps", "8 steps", "3 steps"
  return config
'''


class Job:
  """The processes of one start of a run, and how far they have come."""

  def __init__(self, folder, workdir, steps, processes):
    self.workdir, self.step, self.resumed, self.lines = workdir, 0, 0, []
    command = [sys.executable, os.path.join(ROOT, "launch.py"), f"--config={folder}/faults_run.py:{steps}",
               f"--workdir={workdir}", f"--config.compile_cache={folder}/cache"]
    port = free_port()
    own = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": ROOT, "JAX_NUM_CPU_DEVICES": "1"}
    self.processes = [subprocess.Popen(
        command + ([f"--distributed=127.0.0.1:{port},{rank},{processes}"] if processes > 1 else []),
        env=os.environ | own, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(processes)]
    self.readers = [threading.Thread(target=self._read, args=(p, rank), daemon=True)
                    for rank, p in enumerate(self.processes)]
    for reader in self.readers:
      reader.start()

  def _read(self, process, rank):
    for line in process.stdout:
      self.lines.append(f"[{rank}] {line}")
      if match := re.match(r"resuming from step (\d+)", line):
        self.resumed = self.step = int(match[1])
      elif match := re.match(r"step +(\d+) .* train ", line):
        self.step = int(match[1])

  @property
  def running(self):
    return all(p.poll() is None for p in self.processes)

  @property
  def saving(self):
    folder = os.path.join(self.workdir, "checkpoints")
    return os.path.isdir(folder) and any(not name.isdigit() for name in os.listdir(folder))

  def wait(self, seconds):
    """Exit statuses; None of a process that was still there after `seconds`, and is killed."""
    end = time.monotonic() + seconds
    statuses = []
    for process in self.processes:
      try:
        statuses.append(process.wait(max(end - time.monotonic(), 0.01)))
      except subprocess.TimeoutExpired:
        statuses.append(None)
    for process, reader in zip(self.processes, self.readers, strict=True):
      if process.poll() is None:
        process.kill()
        process.wait()
      reader.join()
    return statuses


def interrupt(job, rng, start_seconds):
  """Waits for a random moment and sends a signal; None if the run was done before."""
  moment = rng.choice(["start", "train", "save"])
  number = rng.choice([signal.SIGTERM, signal.SIGKILL])
  targets = rng.choice([[0], [1], [0, 1]]) if len(job.processes) > 1 else [0]
  delay, steps = rng.random(), rng.randrange(1, STEPS_BETWEEN)
  began = time.monotonic()
  if moment == "start":
    while job.running and time.monotonic() - began < delay * start_seconds:
      time.sleep(0.01)
  else:
    while job.running and not (job.step >= job.resumed + steps and job.step):
      time.sleep(0.01)
    while moment == "save" and job.running and not job.saving:
      time.sleep(0.002)
    time.sleep(delay * (0.02 if moment == "save" else 0.05))
  if not job.running:
    return None
  for rank in targets:
    job.processes[rank].send_signal(number)
  sent = time.monotonic()
  statuses = job.wait(END_SECONDS)
  return {"moment": moment, "signal": signal.Signals(number).name, "to": targets, "statuses": statuses,
          "seconds": round(time.monotonic() - sent, 1), "resumed": job.resumed, "step": job.step}


def whole(folder, workdir, steps, processes):
  """Runs to the end: whether it got there, the seconds to the first step, and what was printed."""
  began = time.monotonic()
  job = Job(folder, workdir, steps, processes)
  while job.running and job.step <= job.resumed:
    time.sleep(0.01)
  start_seconds = time.monotonic() - began
  return job.wait(600) == [0] * processes, start_seconds, job.lines


def differences(workdir, reference):
  """What a run's files have otherwise than those of the undisturbed run."""
  found = []
  def read(folder, name):
    with open(os.path.join(folder, name), "rb") as file:
      return file.read()
  def metrics(folder):
    lines = [json.loads(line) for line in read(folder, "metrics.jsonl").splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "start/"))} for line in lines]
  def errors(folder):
    summary = json.loads(read(folder, "summary.json"))
    return {key: summary[key] for key in ("last", "best", "steps", "inputs")}
  if read(workdir, "weights.safetensors") != read(reference, "weights.safetensors"):
    found.append("weights")
  if metrics(workdir) != metrics(reference):
    found.append("metrics")
  if errors(workdir) != errors(reference):
    found.append("summary")
  return found


def trial(folder, number, count, processes, seed, reference, start_seconds):
  """One run with `count` interruptions."""
  rng = random.Random(f"{seed}/{number}/{processes}")
  workdir = os.path.join(folder, f"trial_{number}")
  shutil.rmtree(workdir, ignore_errors=True)  # of a call that was itself interrupted
  made, problems, late = [], [], 0
  while len(made) < count and late < 3:
    job = Job(folder, workdir, STEPS, processes)
    if (what := interrupt(job, rng, start_seconds)) is None:
      late += 1  # the run was done first, or failed by itself
      if any(job.wait(END_SECONDS)):
        problems.append("".join(job.lines[-30:]))
      continue
    made.append(what)
    print(f"  {what}", flush=True)
    gentle = what["signal"] == "SIGTERM"
    if None in what["statuses"]:
      problems.append(f"{what}: a process hung")
    elif gentle and set(what["statuses"]) != {75}:
      # A signal before Python can take it ends the process as any other.
      if what["moment"] != "start" or any(status not in (75, -15, 143) for status in what["statuses"]):
        problems.append(f"{what}:\n" + "".join(job.lines[-30:]))
  survived, _, lines = whole(folder, workdir, STEPS, processes)
  if not survived:
    problems.append("".join(lines[-30:]))
  different = differences(workdir, reference) if survived else ["everything"]
  return {"processes": processes, "interruptions": made, "survived": survived, "different": different,
          "problems": problems}


def table(trials):
  """One line for each kind of interruption."""
  rows = {}
  for one in trials:
    for what in one["interruptions"]:
      key = (one["processes"], what["signal"], what["moment"])
      row = rows.setdefault(key, [0, 0, 0, 0, 0.0])
      row[0] += 1
      row[1] += one["survived"]
      row[2] += not one["different"]
      row[3] += bool(one["different"] or not one["survived"])
      row[4] = max(row[4], what["seconds"])
  lines = ["processes  signal   while   interruptions  survived  bit-identical  lost  longest end, s"]
  lines += [f"{p:>9}  {s:<7}  {m:<6}  {n:>13}  {a:>8}  {b:>13}  {c:>4}  {t:>14.1f}"
            for (p, s, m), (n, a, b, c, t) in sorted(rows.items())]
  total = [sum(row[i] for row in rows.values()) for i in range(4)]
  lines.append(f"{'all':>9}  {'':<7}  {'':<6}  {total[0]:>13}  {total[1]:>8}  {total[2]:>13}  {total[3]:>4}")
  return "\n".join(lines)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--interruptions", type=int, default=60)
  parser.add_argument("--processes", default="1,2", help="of the trials in turn")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", default=OUT, help="'' writes nothing")
  parser.add_argument("--at-most", type=int, default=10**6, help="trials in this call; the next one goes on")
  parser.add_argument("--folder", default="", help="kept, with the undisturbed runs and the compiled programs")
  arguments = parser.parse_args()
  kinds = [int(n) for n in arguments.processes.split(",")]
  sizes = [PER_TRIAL] * (arguments.interruptions // PER_TRIAL)
  if rest := arguments.interruptions % PER_TRIAL:
    sizes.append(rest)
  asked = {"interruptions": arguments.interruptions, "processes": kinds, "seed": arguments.seed}
  trials = []
  if arguments.out and os.path.exists(arguments.out):
    with open(arguments.out, encoding="utf-8") as file:
      stored = json.load(file)
    trials = stored["trials"] if stored["asked"] == asked else []
    if trials:
      print(f"{len(trials)} of {len(sizes)} trials are in {arguments.out} already; remove it to begin anew", flush=True)
  with tempfile.TemporaryDirectory() as temporary:
    folder = os.path.abspath(arguments.folder or temporary)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "faults_run.py"), "w", encoding="utf-8") as file:
      file.write(CONFIG)
    starts = {}
    for number in range(len(trials), min(len(sizes), len(trials) + arguments.at_most)):
      processes = kinds[number % len(kinds)]
      reference = os.path.join(folder, f"undisturbed_{processes}")
      if processes not in starts:
        ok, seconds, lines = whole(folder, reference, STEPS, processes)
        if not ok:
          sys.exit("".join(lines))
        starts[processes] = min(seconds, 5.0 * processes)  # the next ones find their programs compiled
      trials.append(trial(folder, number, sizes[number], processes, arguments.seed, reference, starts[processes]))
      print(f"trial {number + 1} of {len(sizes)}, {processes} process{'es' * (processes > 1)}: "
            f"survived {trials[-1]['survived']}, different: {', '.join(trials[-1]['different']) or 'nothing'}", flush=True)
      for problem in trials[-1]["problems"]:
        print(problem, flush=True)
      if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
          json.dump({"asked": asked, "trials": trials}, file)
          file.write("\n")
  print(table(trials))
  bad = [one for one in trials if not one["survived"] or one["different"] or one["problems"]]
  sys.exit(1 if bad else 0)


if __name__ == "__main__":
  main()
