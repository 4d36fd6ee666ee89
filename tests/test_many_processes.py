"""Jobs of several processes on this machine: what they compute, and how they end together."""

import os
import pathlib
import re
import shutil
import signal
import socket
import string
import subprocess
import sys
import textwrap
import time
import types

import jax
import numpy as np
import pytest
import yaml
from PIL import Image
from test_training import losses
from tiny import tiny_config

from bionets_jax.training import distributed, local_processes
from bionets_jax.training.devices import check_same_number
from bionets_jax.training.loop import Interrupted, train

ROOT = pathlib.Path(__file__).parent.parent
SLOW = pytest.mark.skipif(not os.environ.get("BIONETS_TEST_SLOW"), reason="BIONETS_TEST_SLOW=1 runs it")


def start(count, command, **environment):
  """Processes of a job, each with its output to be read."""
  port = local_processes.free_port()
  return [subprocess.Popen(
      [sys.executable, *command, f"--distributed=127.0.0.1:{port},{rank},{count}"], cwd=ROOT, text=True,
      env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
      for rank in range(count)]


def ends(processes, seconds=60):
  """(status, output) of each, all within `seconds`, or the test fails."""
  end = time.monotonic() + seconds
  try:
    return [(p.wait(max(end - time.monotonic(), 0.1)), p.stdout.read()) for p in processes]
  finally:
    for process in processes:
      process.kill()


# What they compute ---------------------------------------------------------------------------

EXAMPLES, BATCH, STEPS = 24, 8, 480  # far more than are made while a signal is on its way
# Every image is of a class of its own, so that the labels of a batch say which images were read for it.
CONFIG = """
import os, sys, time
sys.path.insert(0, {tests!r})
import numpy as np
from bionets_jax.data.pipeline import Pipeline
from test_many_processes import folder_config

made = Pipeline.train_batches

class Noted:
  def __init__(self, batches, step):
    self.batches, self.step = batches, step
    self.close = batches.close
  def __getattr__(self, name):
    return getattr(self.batches, name)
  def __iter__(self):
    return self
  def __next__(self):
    time.sleep(0.02)  # so that there is a moment to be stopped in
    batch = next(self.batches)
    with open(os.path.join({notes!r}, str(os.getpid())), "a") as file:
      for shard in batch["label"].addressable_shards:
        print(self.step, shard.index[0].start or 0, *np.asarray(shard.data), file=file)
    self.step += 1
    return batch

Pipeline.train_batches = lambda self, step=0: Noted(made(self, step), step)

def get_config():
  return folder_config({data!r})
"""


def folder_config(data):
  # Round-off grows along the way: seen after 480 steps are 8e-6 of the loss at this learning rate, 3e-3 at ten times it.
  # A momentum forgotten once is 9 steps of about 1.5e-4.
  return tiny_config(
      data__name="folder", data__dir=data, data__eval_split="val", data__workers=0,
      data__train_transform="random_resized_crop(16)|flip", data__eval_transform="center_crop(16)",
      data__mean=(0.5,), data__std=(0.5,), batch_size=BATCH, eval_batch_size=24, duration=f"{STEPS} steps",
      schedule__kind="constant", schedule__lr=1e-4, eval_every="40 steps", checkpoint_every="1000 steps")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  rng = np.random.default_rng(0)
  for split in ("train", "val"):
    for i in range(EXAMPLES):
      (folder / split / f"class {i:02}").mkdir(parents=True)
      picture = rng.integers(0, 256, (20, 24, 3), np.uint8)
      Image.fromarray(picture).save(folder / split / f"class {i:02}" / "image.png")
  return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
  """The run by one process, without a stop."""
  workdir = str(tmp_path_factory.mktemp("whole"))
  train(folder_config(str(data)), workdir, say=lambda _: None, devices=jax.devices()[:1])
  return workdir


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=SLOW)])
def test_one_process_hands_over_to_many_and_they_to_one(data, whole, tmp_path, count):
  """The same losses, and every example once in every epoch, wherever the run is stopped and taken up."""
  notes, config_file, workdir = tmp_path / "notes", tmp_path / "noted.py", str(tmp_path / "run")
  notes.mkdir()
  config_file.write_text(CONFIG.format(tests=str(ROOT / "tests"), data=str(data), notes=str(notes)))
  config = folder_config(str(data))

  def stop_at_ten(text):
    if text.startswith("step     10 ") and "train" in text:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(Interrupted):
    train(config, workdir, say=stop_at_ten, devices=jax.devices()[:1])
  processes = start(count, ["launch.py", f"--config={config_file}", f"--workdir={workdir}"], JAX_NUM_CPU_DEVICES="2")
  said = ""
  for line in processes[0].stdout:
    said += line
    if line.startswith("step     40 ") and "train" in line:
      processes[1].send_signal(signal.SIGTERM)  # to one of them
      break
  results = ends(processes)
  assert [status for status, _ in results] == [75] * count, (said, results)
  stopped = int(re.search(r"stopped on request at step (\d+), saved", results[0][1])[1])
  assert f"{2 * count} x cpu (cpu) in {count} processes" in said and "resuming from step 1" in said
  assert os.path.isdir(os.path.join(workdir, "checkpoints", str(stopped)))
  assert not re.search(r"Traceback|^step |error:", results[1][1], re.MULTILINE)  # one of them speaks for all

  end = []
  train(config, workdir, say=end.append, devices=jax.devices()[:1])
  assert f"resuming from step {stopped} of {STEPS}" in end
  np.testing.assert_allclose(losses(workdir), losses(whole), rtol=2e-4)

  read = {}
  for file in notes.iterdir():
    for line in file.read_text().splitlines():
      step, row, *labels = map(int, line.split())
      read.setdefault(step, {})[row] = labels
  first, last = min(read), stopped
  assert first <= 12 and last >= 40
  per_epoch = EXAMPLES // BATCH
  for epoch in range(-(-first // per_epoch), last // per_epoch):
    seen = [label for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)
            for _, labels in sorted(read[step].items()) for label in labels]
    assert sorted(seen) == list(range(EXAMPLES)), epoch


# How they end --------------------------------------------------------------------------------

MEMBER = """
import os, sys, time, signal
from bionets_jax.training import distributed, job, stopping
job.GRACE_SECONDS, distributed.HEARTBEAT_SECONDS = 1, 10
spec = sys.argv[1].partition("=")[2]
stopping.leave_on_signals()
rank = int(spec.split(",")[1])
try:
  distributed.start(spec, 10)
except RuntimeError as error:
  print(f"error: {error}", flush=True)
  job.leave(1, str(error))
import jax
from jax.experimental import multihost_utils
multihost_utils.sync_global_devices("up")
print("up", flush=True)
"""
WAITS = {
    "in a collective": 'multihost_utils.sync_global_devices("never")',
    "by itself": "time.sleep(100)",
}


def member(tmp_path, code):
  path = tmp_path / "member.py"
  path.write_text(MEMBER + textwrap.dedent(code))
  return [str(path)]


@pytest.mark.parametrize("rank,how,waits,message", [
    (1, "raise ValueError('record 7 is bad')", "by itself", r"process 1 of 2 \(.*\) has failed.*record 7 is bad"),
    (1, "os.kill(os.getpid(), signal.SIGKILL)", "in a collective", "lost another process of the job"),
    pytest.param(0, "os.kill(os.getpid(), signal.SIGKILL)", "in a collective", "lost another process|another task died",
                 marks=SLOW),
    pytest.param(1, "os.kill(os.getpid(), signal.SIGSTOP)", "in a collective", "unhealthy|another task died", marks=SLOW),
    pytest.param(0, "os.kill(os.getpid(), signal.SIGSTOP)", "in a collective", "another task died", marks=SLOW),
    pytest.param(0, "raise ValueError('record 7 is bad')", "in a collective", "process 0 of 2 .*record 7", marks=SLOW),
])
def test_one_that_fails_ends_the_other_with_a_message(tmp_path, rank, how, waits, message):
  processes = start(2, member(tmp_path, f"""
      if rank == {rank}:
        time.sleep(1)
        {how}
      {WAITS[waits]}"""))
  other = processes[1 - rank]
  began = time.monotonic()
  status = other.wait(60)
  assert time.monotonic() - began < 60
  processes[rank].kill()
  output = other.stdout.read()
  assert status in (1, -signal.SIGABRT) and re.search(message, output), (status, output)


def test_a_stop_before_the_first_step_ends_all_at_once(tmp_path):
  processes = start(2, member(tmp_path, WAITS["by itself"]))
  for process in processes:
    assert any(line == "up\n" for line in process.stdout)
  processes[1].send_signal(signal.SIGTERM)
  results = ends(processes, 30)
  assert [status for status, _ in results] == [75, 75], results
  assert "nothing to save" in results[0][1]


@SLOW
def test_processes_of_jobs_of_different_sizes(tmp_path):
  port = local_processes.free_port()
  processes = [subprocess.Popen(
      [sys.executable, *member(tmp_path, "time.sleep(100)"), f"--distributed=127.0.0.1:{port},{rank},{count}"],
      env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
      for rank, count in ((0, 2), (1, 3))]
  results = ends(processes)
  assert [status for status, _ in results] == [1, 1], results
  for _, output in results:
    assert "process 1 was started for a job of 3 processes, and the first one for 2" in output


def test_the_first_process_is_not_there(tmp_path):
  path = tmp_path / "alone.py"
  path.write_text("from bionets_jax.training import distributed\n"
                  f"distributed.start('127.0.0.1:{local_processes.free_port()},1,2', 1)")
  done = subprocess.run([sys.executable, path], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
                        capture_output=True, timeout=60)
  assert done.returncode == 1 and "have not come together within 1 s" in done.stderr
  assert "does not answer" in done.stderr and "is the process of rank 0 running there" in done.stderr


def test_a_stop_while_a_process_waits_for_the_others(tmp_path):
  """In the middle of JAX's own code, which has its handler not yet."""
  for number in (signal.SIGTERM, signal.SIGINT):
    path = tmp_path / "alone.py"
    path.write_text("from bionets_jax.training import distributed, stopping\nstopping.leave_on_signals()\n"
                    f"print('up', flush=True)\ndistributed.start('127.0.0.1:{local_processes.free_port()},0,2', 50)")
    process = subprocess.Popen([sys.executable, path], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout.readline() == "up\n"
    time.sleep(0.5)
    process.send_signal(number)
    assert process.wait(20) == 75


@pytest.mark.parametrize("spec,message", [
    ("here", "host:port,rank,count"), ("10.0.0.1:99999,0,2", "99999 is not one of"),
    ("10.0.0.1:1234,2,2", "ranks 0 to 1"), ("10.0.0.1:1234,0,0", "the count must be 1"),
    ("10.0.0.1:1234,-1,2", "host:port,rank,count"), ("::1:1234,0,2", "brackets"), ("10.0.0.1,0,2", "host:port"),
])
def test_what_is_no_job(spec, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    distributed.parse(spec)


def test_a_port_that_is_taken():
  """JAX 0.10 crashes on it."""
  with socket.socket() as other:
    other.bind(("", 0))
    other.listen()
    with pytest.raises(RuntimeError, match="cannot be used .Address already in use"):
      distributed.start(f"127.0.0.1:{other.getsockname()[1]},0,2", 5)


def test_what_is_a_job():
  assert distributed.parse("[::1]:1234,1,2") == ("[::1]:1234", 1, 2)
  assert distributed.parse("host-0.sub:80,0,1") == ("host-0.sub:80", 0, 1)
  assert distributed.parse("auto") == (None, None, None)


def test_a_device_that_is_missing_in_one_process():
  devices = [types.SimpleNamespace(process_index=p) for p in (0, 0, 1, 2, 2)]
  with pytest.raises(RuntimeError, match="up to 2 devices, but process 1 has 1;"):
    check_same_number(devices)
  check_same_number(devices[:2])


# Local processes -----------------------------------------------------------------------------


@pytest.mark.parametrize("code,status", [
    ("pass", 0),
    ("sys.exit(75)", 75),
    ("sys.exit(3 if ',1,3' in sys.argv[1] else 75)", 3),
    ("os.kill(os.getpid(), 9) if ',2,3' in sys.argv[1] else None", 137),
])
def test_the_status_of_local_processes(code, status):
  assert local_processes.main(["3", "--", "-c", f"import os, sys; {code}"]) == status


def test_local_processes_that_are_stopped_before_they_have_handlers():
  code = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM) if ',0,2' in sys.argv[1] else None; time.sleep(99)"
  command = [sys.executable, "-m", "bionets_jax.training.local_processes", "2", "--", "-c", f"import sys; {code}"]
  assert subprocess.run(command, cwd=ROOT, timeout=60).returncode == 75


def test_local_processes_that_do_not_end_are_killed(monkeypatch):
  monkeypatch.setattr(local_processes, "KILL_SECONDS", 0.5)
  began = time.monotonic()
  assert local_processes.main(["2", "--", "-c", "import sys, time; sys.exit(1) if ',1,2' in sys.argv[1] else time.sleep(99)"]) == 1
  assert time.monotonic() - began < 30


def test_local_processes_share_the_gpus_that_are_named():
  assert local_processes.share({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 1, 2) == {"CUDA_VISIBLE_DEVICES": "2,3"}
  assert local_processes.share({}, 1, 2) == {}
  with pytest.raises(ValueError, match="names 3 devices, which 2 processes cannot"):
    local_processes.share({"CUDA_VISIBLE_DEVICES": "0,1,2"}, 1, 2)


@pytest.mark.parametrize("arguments", [[], ["2", "launch.py"], ["0", "--", "x.py"], ["2", "--", "x.py", "--distributed=auto"]])
def test_local_processes_used_wrongly(arguments, capsys):
  assert local_processes.main(arguments) == 2 and capsys.readouterr().err


# Scripts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tpu_pod.sh", "slurm.sbatch"])
def test_scripts_are_sound_shell(name):
  path = str(ROOT / "scripts" / name)
  subprocess.run(["bash", "-n", path], check=True)
  if shutil.which("shellcheck"):
    subprocess.run(["shellcheck", path], check=True)


def test_the_slurm_script_queues_again_what_was_stopped(tmp_path):
  """With stand-ins for srun and scontrol."""
  for name, code in (("srun", 'echo "srun $*"; exit ${STATUS}'), ("scontrol", 'echo "scontrol $*"')):
    (tmp_path / name).write_text(f"#!/bin/bash\n{code}\n")
    (tmp_path / name).chmod(0o755)
  environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(ROOT),
                              "SLURM_JOB_ID": "7"}
  for status, restarts, again in ((0, 0, False), (1, 0, False), (75, 0, True), (75, 9, True), (137, 2, True), (137, 3, False)):
    done = subprocess.run(
        ["bash", "scripts/slurm.sbatch", "--config=a b.py"], cwd=ROOT, capture_output=True, text=True,
        env=environment | {"STATUS": str(status), "SLURM_RESTART_COUNT": str(restarts)})
    assert done.returncode == status and "launch.py --distributed=auto --config=a b.py" in done.stdout
    assert ("scontrol requeue 7" in done.stdout) == again
    assert "--kill-on-bad-exit=0 --wait=120" in done.stdout  # its status is then that of the error


def test_the_tpu_script_quotes_what_it_is_given():
  done = subprocess.run(
      ["bash", "scripts/tpu_pod.sh", "run", "slice", "zone", "--config=a.py:x y", "--workdir=$(touch z)"], cwd=ROOT,
      env=os.environ | {"DRY_RUN": "1"}, capture_output=True, text=True, check=True)
  inner = subprocess.run(["bash", "-c", f"set -- {done.stdout}\nprintf %s \"${{@: -1}}\""], capture_output=True,
                         text=True, check=True).stdout
  command = inner.removeprefix("--command=").replace("cd bionets_jax && exec .venv/bin/python", "printf '%s\\n'")
  seen = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, cwd="/").stdout
  assert seen.splitlines() == ["launch.py", "--distributed=auto", "--config=a.py:x y", "--workdir=$(touch z)"]


def test_the_jobset_starts_all_again_on_status_75():
  text = (ROOT / "scripts" / "gke_jobset.yaml").read_text()
  values = dict(NAME="run", IMAGE="image:1", HOSTS="4", CHIPS="4", ACCELERATOR="tpu-v5-lite-podslice", TOPOLOGY="4x4",
                CLAIM="files", ARGUMENTS='"--config=a.py", "--workdir=/shared/run"')
  body = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
  job = yaml.safe_load(string.Template(body).substitute(values))
  assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  assert job["spec"]["failurePolicy"]["rules"][0] == {
      "action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
  one = job["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert one["parallelism"] == one["completions"] == 4 and one["backoffLimit"] == 0
  codes = one["podFailurePolicy"]["rules"][0]["onExitCodes"]
  pod = one["template"]["spec"]
  assert codes["values"] == [75] and codes["containerName"] == pod["containers"][0]["name"]
  assert pod["containers"][0]["command"] == [
      "python", "launch.py", "--distributed=auto", "--config=a.py", "--workdir=/shared/run"]


def test_interrupted_at_random_nothing_is_lost():
  """The short form of the benchmark, whose result is in benchmarks/results/faults.json."""
  done = subprocess.run(
      [sys.executable, "benchmarks/faults.py", "--interruptions=5", "--processes=1", "--out="], cwd=ROOT,
      env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.splitlines()[-1].split() == ["all", "5", "5", "5", "0"]
