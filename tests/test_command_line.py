"""launch.py as its user meets it: in processes of its own."""

import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from test_training import losses, weight_bytes

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from tiny import tiny_config

def get_config(argument=""):
  return tiny_config(duration=argument or "24 steps")
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("config") / "tiny_run.py"
  path.write_text(CONFIG.format(tests=str(ROOT / "tests")))
  return str(path)


def environment(devices):
  # A user's, without what makes the other tests quick.
  own = {k: v for k, v in os.environ.items() if k != "JAX_DEFAULT_PRNG_IMPL"}
  return own | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


def start(*arguments, devices=1, **options):
  return subprocess.Popen(
      [sys.executable, "launch.py", *arguments], cwd=ROOT, env=environment(devices), text=True,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def run(*arguments, devices=1):
  process = start(*arguments, devices=devices)
  output = process.communicate(timeout=240)[0]
  return process.returncode, output


@pytest.fixture(scope="module")
def whole(config_file, tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp("cli") / "whole")
  code, output = run(f"--config={config_file}:300 steps", f"--workdir={workdir}")
  assert code == 0, output
  return workdir


def test_killed_and_terminated_the_run_ends_bit_identical(config_file, whole, tmp_path):
  """SIGTERM saves and asks for a restart by its exit status; kill -9 loses what was not saved."""
  workdir = str(tmp_path / "cut")
  command = (f"--config={config_file}:300 steps", f"--workdir={workdir}")
  codes = []
  for number, lines in ((signal.SIGTERM, 5), (signal.SIGKILL, 40), (signal.SIGKILL, 11)):
    process = start(*command)
    for line in process.stdout:
      lines -= line.startswith("step")
      if lines == 0:
        process.send_signal(number)
        break
    rest = process.stdout.read()
    codes.append(process.wait(timeout=60))
    if number == signal.SIGTERM:
      assert "run the same command again" in rest
  assert codes == [75, -signal.SIGKILL, -signal.SIGKILL]
  code, output = run(*command)
  assert code == 0 and "resuming from step" in output
  assert weight_bytes(workdir) == weight_bytes(whole)
  assert losses(workdir) == losses(whole)


def test_ctrl_c_reaches_the_whole_group_and_the_run_still_saves(tmp_path):
  """A terminal signals the decoding processes too; and none of them outlives a killed run."""
  pictures = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
  for split in ("train", "val"):
    for i, picture in enumerate(pictures):
      folder = tmp_path / "set" / split / f"class {i % 2}"
      folder.mkdir(parents=True, exist_ok=True)
      Image.fromarray(picture).save(folder / f"{i}.png")
  config = tmp_path / "folder_run.py"
  config.write_text(CONFIG.format(tests=str(ROOT / "tests")).replace("tiny_config(duration=", f"""tiny_config(
      data__name="folder", data__dir={str(tmp_path / 'set')!r}, data__eval_split="val",
      data__train_transform="random_resized_crop(16)|flip", data__eval_transform="center_crop(16)",
      data__mean=(0.5,), data__std=(0.5,), data__workers=1, batch_size=4, eval_batch_size=4,
      duration="""))
  command = (f"--config={config}:100000 steps", f"--workdir={tmp_path / 'run'}")
  for number, code in ((signal.SIGINT, 75), (signal.SIGKILL, -signal.SIGKILL)):
    process = start(*command, start_new_session=True)
    for line in process.stdout:
      if line.startswith("step     30") or "resuming" in line:
        break
    if number == signal.SIGINT:
      os.killpg(process.pid, number)
    else:
      time.sleep(8)  # the worker is up
      process.send_signal(number)
    output = process.stdout.read()  # ends when the last process that holds it has ended
    assert process.wait(timeout=60) == code, output
  assert "Traceback" not in output


def test_eval_mode(config_file, whole):
  code, output = run(f"--config={config_file}:300 steps", f"--workdir={whole}", "--mode=eval")
  assert code == 0 and "step 300, 355 examples: loss" in output and "top-1 error" in output


@pytest.mark.parametrize("arguments,code,expected", [
    ((), 2, "--config"),
    (("--config=configs/none.py",), 2, "configs/none.py"),
    (("--config={tiny}", "--config.bacth_size=3"), 2, "did you mean 'batch_size'"),
    (("--config={tiny}", "--config.batch_size=many"), 2, "batch_size"),
    (("--config={tiny}", "--workdri=x"), 2, "workdri"),
    (("--config={tiny}", "--config.model.name=resnet_20"), 1, "did you mean"),
    (("--config=configs/ic_resnet50_wld.py:51",), 2, "18 | 34 | 50 | 50_b | 50_c"),
    (("--config=configs/ic_resnet50_wld.py", "--config.teacher.weights=no.pth"), 1, "'no.pth': no such file"),
    (("--config=configs/fp_resnet_cifar10.py:resnet20", "--config.data.dir=/nowhere"), 1,
     "python -m bionets_jax.data.prepare cifar10"),
    (("--config={tiny}", "--distributed=here"), 2, "host:port,rank,count"),
    (("--config={tiny}", "--workdir={file}"), 1, "is a file"),
    (("--config={tiny}", "--workdir=/dev/null/x"), 1, "/dev/null/x"),
    (("--config=configs/quickstart.py:foo",), 2, "takes no argument"),
    (("--config=README.md",), 2, "get_config"),
])
def test_mistakes_end_within_seconds_and_say_what_to_do(config_file, arguments, code, expected, tmp_path):
  before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
  got, output = run(*(a.format(tiny=config_file, file=config_file) for a in arguments))
  # Of computing: how long it takes depends on what else runs. Compiling or training would be more.
  assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 30
  assert got == code, output
  assert expected in output and "Traceback" not in output
