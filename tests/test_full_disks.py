"""Saves, metrics and runs where the disk is full."""

import contextlib
import glob
import os
import resource
import shutil
import signal

import jax
import pytest
from saved_states import assert_step, clock_of, fill, make_state
from tiny import tiny_config

from bionets_jax.data.tfrecord import read_records
from bionets_jax.training.checkpoints import abstract_like
from bionets_jax.training.keeping import Keep
from bionets_jax.training.loop import train
from bionets_jax.training.writer import MetricWriter, read_metrics


@contextlib.contextmanager
def small_files(limit):
  """No file can grow beyond so many bytes: EFBIG, as a full disk gives ENOSPC and a quota EDQUOT."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


# Behind the first error Orbax closes what tensorstore still reports the others to.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_fails_is_reported_and_the_next_one_tried(tmp_path):
  said = []
  checkpoints = fill(tmp_path, (1,), Keep(last=1), said)
  with small_files(3000):
    checkpoints.save(2, make_state(2), clock_of(2))
    checkpoints.save(3, make_state(3), clock_of(3))  # the run went on
    with pytest.raises(RuntimeError, match="step 3 is not saved: File too large.*newest checkpoint is of step 1"):
      checkpoints.wait()
  assert len(said) == 2 and "step 2 is not saved: File too large" in said[0] and "Training goes on" in said[0]
  assert os.listdir(tmp_path / "checkpoints") == ["1"]  # nothing half-written is left
  assert_step(checkpoints.restore(1, abstract_like(make_state(0)))[0], 1)
  checkpoints.save(4, make_state(4), clock_of(4))
  checkpoints.wait()
  assert checkpoints.steps() == [4] and len(said) == 2


def test_a_run_whose_last_save_fails_does_not_end_well(tmp_path):
  said = []
  def say(text):
    said.append(text)
    if text.startswith("step      7"):
      shutil.rmtree(tmp_path / "checkpoints")
      (tmp_path / "checkpoints").write_text("no folder")
  config = tiny_config(duration="10 steps", eval_every="100 steps", checkpoint_every="100 steps")
  with pytest.raises(RuntimeError, match="step 10 is not saved: Not a directory"):
    train(config, str(tmp_path), say=say, devices=jax.devices()[:1])
  assert not {"weights.safetensors", "summary.json"} & set(os.listdir(tmp_path))


def test_metrics_wait_for_room_on_the_disk(tmp_path):
  said = []
  writer = MetricWriter(str(tmp_path), 0, said.append)
  values = {f"train/metric_{i}": float(i) for i in range(20)}
  with small_files(2000):
    for step in range(1, 9):
      writer.write(step, 0.5, values)
    assert 0 < len(read_metrics(tmp_path / "metrics.jsonl")) < 8
  assert sorted(text.split(" cannot be written")[0].split("/")[-1][:6] for text in said) == ["events", "metric"]
  writer.write(9, 0.5, values)
  writer.close()
  assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 10))
  assert len(said) == 4 and all("can be written again" in text for text in said[2:])
  [events] = glob.glob(f"{tmp_path}/events.*")
  assert len(list(read_records(events))) == 2 + 9 * 20  # the reader compares checksums
