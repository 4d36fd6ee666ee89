"""SIGTERM wherever it comes: in an evaluation, in code that is not Python's, and a loop that stands still."""

import os
import pathlib
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from test_training import losses, weight_bytes
from tiny import tiny_config

from bionets_jax.training import heartbeat
from bionets_jax.training.evaluation import evaluate
from bionets_jax.training.loop import Interrupted, train
from bionets_jax.training.stopping import StopRequest
from bionets_jax.training.writer import read_metrics

ROOT = pathlib.Path(__file__).parent.parent


def script(code):
  return subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_an_evaluation_that_is_broken_off_is_made_when_the_run_goes_on(tmp_path):
  """The signal comes after the step has asked: the evaluation of step 8, and that of the last one."""
  config = tiny_config(duration="16 steps", eval_every="8 steps", checkpoint_every="100 steps", select="best")
  silences = []
  def listen(text):
    if text.startswith("step "):
      silences.append(heartbeat.silence())
  train(config, str(tmp_path / "whole"), say=listen, devices=jax.devices()[:1])
  assert silences and min(silences) > 0  # the loop is watched
  assert heartbeat.silence() == 0
  cut = str(tmp_path / "cut")
  class Killed(BaseException):
    """As after kill -9: what came after the last save is made again, and in the log only once."""
  def kill(text):
    if text.startswith("step     10 "):
      raise Killed
  for step in (8, 16):
    def stop(text, prefix=f"step {step:>6} "):
      if text.startswith(prefix) and "train" in text:
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 16"):
      train(config, cut, say=stop, devices=jax.devices()[:1])
    evaluated = [line["step"] for line in read_metrics(f"{cut}/metrics.jsonl") if "eval/loss" in line]
    assert evaluated == [8][:step // 8 - 1]
    if step == 8:
      with pytest.raises(Killed):
        train(config, cut, say=kill, devices=jax.devices()[:1])
  summary = train(config, cut, say=lambda _: None, devices=jax.devices()[:1]).summary
  assert summary["last"]["step"] == 16
  assert weight_bytes(cut) == weight_bytes(tmp_path / "whole") and losses(cut) == losses(tmp_path / "whole")
  evaluations = [[line for line in read_metrics(f"{folder}/metrics.jsonl") if "eval/loss" in line]
                 for folder in (cut, tmp_path / "whole")]
  assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 2


def test_batches_are_closed_when_an_evaluation_is_broken_off():
  class Batches(list):
    def close(self):
      self.closed = True
  batches = Batches([{}])
  assert evaluate(None, (), [batches], 1, print, asked=lambda: True) == [] and batches.closed


def test_the_handlers_before_are_there_afterwards():
  before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  with StopRequest() as stop:
    assert not stop.asked()
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.asked() and stop.pending
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_while_the_main_thread_is_in_other_code_ends_the_process():
  """As while XLA compiles: no Python runs there, and an exception on the way back would crash."""
  process = script("""if True:
    import hashlib
    from bionets_jax.training import stopping
    stopping.leave_on_signals()
    print("up", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)""")
  assert process.stdout.readline() == "up\n"
  process.send_signal(signal.SIGTERM)
  assert process.wait(30) == 75 and "nothing to save" in process.stdout.read()


def test_a_loop_that_stands_still_ends_and_says_where():
  process = script("""if True:
    import time
    from bionets_jax.training import hangs, heartbeat
    def stands_still():
      time.sleep(60)
    hangs.watch(limit=1)
    time.sleep(2)  # outside a loop there is no limit
    with heartbeat.expected():
      for _ in range(4):
        time.sleep(0.5)
        heartbeat.beat()
      with heartbeat.expected():  # an evaluation within the loop
        pass
      stands_still()""")
  assert process.wait(30) == 1
  output = process.stdout.read()
  assert "in stands_still" in output and "error: no step was made for" in output


def test_an_evaluation_is_heard_of_at_each_batch(monkeypatch):
  now, silences = 0, []
  monkeypatch.setattr(heartbeat, "time", types.SimpleNamespace(monotonic=lambda: now))

  class Batches:
    """Of which each takes longer than the one before."""

    def __iter__(self):
      nonlocal now
      for wait in (1, 20, 300):
        now += wait
        silences.append(heartbeat.silence())
        yield {}

    def close(self):
      pass

    def skipped(self):
      return 0

  means = evaluate(lambda batch: {"count": np.ones(1), "loss": np.ones(1)}, (), [Batches()], 3, print)
  assert means == [{"loss": 1.0}] and silences == [1, 20, 300]
  assert heartbeat.silence() == 0  # afterwards nothing is expected
