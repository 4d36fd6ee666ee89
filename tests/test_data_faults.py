"""Bad records, dying readers, and that nothing is read twice or left out."""

import collections
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import jax
import numpy as np
import pytest
from data_tools import make_folder, one_device, streamed, take
from faulty_source import FaultySource, who
from tiny import tiny_config

from bionets_jax.data import BatchPlan, EvalPlan, cifar, open_source, plantdoc, prefetch, workers
from bionets_jax.data.bad_records import BadRecords
from bionets_jax.data.batches import ResidentBatches, stream_batches
from bionets_jax.data.digits import DigitsSource
from bionets_jax.data.faults import Fault, Limit, TooManyBadRecords
from bionets_jax.data.placement import Placement
from bionets_jax.data.resident import ResidentSet, load
from bionets_jax.data.stream import BatchReader, read_faults
from bionets_jax.evaluate.examples import Annotated, Examples
from bionets_jax.training.bad_records import BAD_RECORDS
from bionets_jax.training.loop import Interrupted, train

SHAPE = (2, 2, 3)
AS_IT_IS = Placement(False, (), (), SHAPE, SHAPE)


def reader(source, plan, *, shards=(0,), num_shards=1, limit=0):
  return BatchReader(source, plan, (), SHAPE, 0, shards, num_shards, Limit(limit))


# Nothing twice, nothing left out ---------------------------------------------------------------------------


def test_every_epoch_has_each_example_once_whatever_reads_it():
  """Over numbers of examples, batches, processes and steps at which the run is cut and goes on elsewhere."""
  random = np.random.RandomState(0)
  for _ in range(25):
    devices = int(random.choice([1, 2, 4]))
    batch = devices * random.randint(1, 5)
    length = devices * random.randint(batch // devices, 30)
    drop = bool(random.randint(2))
    plan = BatchPlan(length, batch, int(random.randint(2**31)), drop)
    source = FaultySource(length)
    read = collections.defaultdict(list)
    step, end = 0, 3 * plan.steps_per_epoch
    while step < end:
      processes = int(random.choice([n for n in (1, 2, 4) if n <= devices]))
      own = [tuple(range(p, devices, processes)) for p in range(processes)]
      stop = min(end, step + random.randint(1, plan.steps_per_epoch + 2))
      for shards in own:
        part = reader(source, plan, shards=shards, num_shards=devices)
        for s in range(step, stop):
          read[s // plan.steps_per_epoch].extend(who(part[s]["image"]))
      step = stop
    for epoch in range(3):
      if drop:
        assert len(read[epoch]) == len(set(read[epoch])) == length // batch * batch
      else:
        assert sorted(read[epoch]) == list(range(length))


def test_evaluation_has_each_example_once_with_bad_ones_among_them():
  source = FaultySource(23, bad=(0, 7, 22))
  plan = EvalPlan(23, 8)
  for devices in (1, 2, 4):
    seen = []
    for shard in range(devices):
      part = reader(source, plan, shards=(shard,), num_shards=devices, limit=3)
      for step in range(plan.num_steps):
        batch = part[step]
        seen.extend(who(batch["image"])[batch["mask"] > 0])
        assert not batch["image"][batch["mask"] == 0].any() and not batch["label"][batch["mask"] == 0].any()
        assert all(not fault.stand_in for fault in read_faults(batch))
    assert sorted(seen) == [i for i in range(23) if i not in (0, 7, 22)]


# Bad records -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", [True, False])
def test_the_next_good_example_of_the_epoch_stands_in(drop):
  bad = {2, 3, 9, 17}
  source, plan = FaultySource(20, bad), BatchPlan(20, 6, 5, drop)
  for devices in (1, 2):
    parts = [reader(source, plan, shards=(shard,), num_shards=devices, limit=4) for shard in range(devices)]
    for step in range(2 * plan.steps_per_epoch):
      epoch, place = divmod(step, plan.steps_per_epoch)
      order = np.random.RandomState([5, epoch]).permutation(20)  # written out: not the plan's own word
      batches = [part[step] for part in parts]
      found = np.concatenate([who(batch["image"]) for batch in batches])
      faults = {fault.index: fault for batch in batches for fault in read_faults(batch)}
      for row, index in enumerate(found):
        at = 6 * place + row
        expected = next(i for i in np.roll(order, -at) if i not in bad)
        assert index == expected
        if order[at] in bad:
          assert faults.pop(order[at]) == Fault(
              order[at], f"faulty train[{order[at]}]", "cannot be read: Input/output error",
              f"faulty train[{expected}]")
      assert not faults


def test_a_set_on_the_device_has_the_same_examples(mesh):
  source, plan = FaultySource(20, {2, 3, 9, 17}), BatchPlan(20, 6, 5, True)
  images, labels, faults = load(source, (), SHAPE, Limit(4))
  assert [fault.index for fault in faults] == [2, 3, 9, 17]
  resident = ResidentSet(images, labels, mesh, (), faults)
  batches = take(ResidentBatches(resident, plan, 2, 0), 5)
  part = reader(source, plan, limit=4)
  for step, batch in enumerate(batches, 2):
    np.testing.assert_array_equal(who(batch["image"]), who(part[step]["image"]))
    np.testing.assert_array_equal(batch["label"], part[step]["label"])
  evaluation = ResidentBatches(resident, EvalPlan(20, 8), 0, 0)
  mask = np.concatenate([batch["mask"] for batch in evaluation])
  np.testing.assert_array_equal(np.flatnonzero(mask), [i for i in range(20) if i not in (2, 3, 9, 17)])
  assert evaluation.skipped() == 4


def test_the_limit():
  source, plan = FaultySource(20, range(0, 20, 2)), BatchPlan(20, 20, 0, True)
  with pytest.raises(TooManyBadRecords, match=r"Example faulty train\[\d+\]: cannot be read: Input/output error. "
                     r"Repair .* config.data.max_bad_records, which is 0"):
    reader(source, plan)[0]
  with pytest.raises(ValueError, match=r"(?s)8 records are bad, more than config.data.max_bad_records=7 lets.*"
                     r"(\n  Example faulty train.*){5}$"):
    reader(source, plan, limit=7)[0]
  with pytest.raises(ValueError, match=r"8 records are bad"):
    load(source, (), SHAPE, Limit(7))
  assert len(read_faults(reader(source, plan, limit=10)[0])) == 10
  with pytest.raises(ValueError, match="No other example of faulty train can be used"):
    reader(FaultySource(3, range(3)), BatchPlan(3, 1, 0, True), limit=3)[0]
  for count in (-1, True, 0.5):
    with pytest.raises(ValueError, match="config.data.max_bad_records=.*whole number"):
      Limit(count)


def test_each_bad_record_counts_once_and_the_count_goes_on():
  source = FaultySource(9)
  said, written = [], []
  bad = BadRecords(Limit(3), {"train": source, "eval": source})
  bad.say, bad.write = said.append, written.append
  for step in (4, 9):  # in two epochs
    bad.note("train", [Fault(2, "b", "broken", "c"), Fault(5, "e", "broken", "f")], step)
  bad.note("eval", [Fault(2, "b", "broken")])
  assert bad.counts == {"train": 2, "eval": 1} and len(said) == 3
  assert [line["step"] for line in written] == [4, 4, 9] and written[0]["stand_in"] == "c"
  again = BadRecords(Limit(3), {"train": source, "eval": source})
  again.say = said.append
  again.restore(json.loads(json.dumps(bad.state())), 9)
  again.note("train", [Fault(5, "e", "broken", "f")])
  with pytest.raises(TooManyBadRecords, match="(?s)4 records are bad.*Example g: gone"):
    again.note("train", [Fault(7, "g", "gone", "h")])


def test_a_missing_file_and_one_that_is_no_image(mesh, tmp_path):
  folder = make_folder(tmp_path)
  os.remove(folder / "train" / "a" / "3.png")
  pipeline = streamed(mesh, folder)
  os.rename(folder / "train" / "a" / "6.png", folder / "gone.png")
  (folder / "train" / "b" / "4.png").write_bytes(b"")
  with pytest.raises(ValueError, match="b/4.png: not a readable image|a/6.png: cannot be read: No such file"):
    take(pipeline.train_batches(), 3)
  pipeline = streamed(mesh, folder, max_bad_records=1)
  said = []
  pipeline.bad_records.say = said.append
  assert len(take(pipeline.train_batches(), 6)) == 6
  assert pipeline.bad_records.counts == {"train": 1} and len(said) == 1
  keys = [key for step in range(pipeline.steps_per_epoch) for key in pipeline.train_keys(step)]
  assert len(keys) == 9 and [key for key in keys if not os.path.isfile(key)] == [
      f"{folder}/train/b/4.png (bad; another stands in for it)"]
  assert "b/4.png: not a readable image (0 bytes" in said[0] and "stands in for it" in said[0]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir])
def test_what_is_no_file_is_a_bad_record(mesh, tmp_path, make):
  """A pipe that nobody writes to would hold up its reader for ever, a device fill the memory."""
  folder = make_folder(tmp_path)
  odd = folder / "train" / "a" / "3.png"
  os.remove(odd)
  make(odd)
  pipeline, said = streamed(mesh, folder, max_bad_records=1), []
  pipeline.bad_records.say = said.append
  assert len(take(pipeline.train_batches(), 6)) == 6
  why = "cannot be read: Is a directory" if odd.is_dir() else "a device or a pipe, no file"
  assert len(said) == 1 and f"a/3.png: {why}; " in said[0]


def broken_digits(monkeypatch, bad):
  """Makes digits unreadable: `bad` has (split, index)."""
  read = DigitsSource.read

  def faulty(self, index):
    image, label, key = read(self, index)
    return b"no image" if (self.split, index) in bad else image, label, key

  monkeypatch.setattr(DigitsSource, "read", faulty)


def test_a_run_with_bad_records(monkeypatch, tmp_path):
  broken_digits(monkeypatch, {("train", 5), ("train", 700), ("test", 3)})
  devices = jax.devices()[:1]
  config = tiny_config(duration="6 steps", eval_every="3 steps", checkpoint_every="2 steps")
  with pytest.raises(ValueError, match=r"Example digits\[\d+\]: not a readable image"):
    train(config, str(tmp_path / "none"), say=print, devices=devices)
  assert [json.loads(line)["index"] for line in open(tmp_path / "none" / BAD_RECORDS)] == [5]

  config.data.max_bad_records = 3
  whole = train(config, str(tmp_path / "whole"), say=print, devices=devices)
  assert whole.summary["bad_records"] == {"train": 2, "eval": 1}
  assert whole.summary["last"]["bad_records"] == 1

  def stop(text):
    if text.startswith("step      3") and "train" in text:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(Interrupted):
    train(config, str(tmp_path / "cut"), say=stop, devices=devices)
  with monkeypatch.context() as changed:
    changed.setattr(DigitsSource, "fingerprint", lambda self: 1)
    with pytest.raises(ValueError, match="was begun with .*'train_crc32'"):
      train(config, str(tmp_path / "cut"), say=print, devices=devices)
  said = []
  cut = train(config, str(tmp_path / "cut"), say=said.append, devices=devices)
  assert cut.summary["bad_records"] == whole.summary["bad_records"]
  assert not any(text.startswith("bad record") for text in said)  # they were known
  jax.tree.map(np.testing.assert_array_equal, cut.state.params, whole.state.params)
  lines = [[json.loads(line) for line in open(tmp_path / name / BAD_RECORDS)] for name in ("whole", "cut")]
  assert lines[0] == lines[1]
  assert [(line["split"], line["index"]) for line in lines[0]] == [("train", 5), ("train", 700), ("eval", 3)]


def test_the_evaluator_leaves_bad_images_out(monkeypatch, mesh):
  broken_digits(monkeypatch, {("test", 3), ("test", 11)})
  arguments = dict(limit=20, batch_size=8, workers=0, mesh=mesh)
  with pytest.raises(ValueError, match="set --max-bad-records, which is 0"):
    Examples("digits", "test", "", "", **arguments).batches()
  for transform in ("", "ten_crop(6)"):  # on the device, and streamed
    batches = Annotated(
        Examples("digits", "test", "", transform, max_bad_records=2, **arguments).batches(), lambda step: {})
    mask = np.concatenate([batch["mask"] for batch in batches])
    np.testing.assert_array_equal(np.flatnonzero(mask == 0), [3, 11, 20, 21, 22, 23])
    assert batches.skipped() == 2
    batches.close()


# Readers that die ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("death", [signal.SIGSEGV, None])
def test_a_worker_that_dies_is_an_error_that_names_what_it_read(monkeypatch, mesh, death):
  if death is None:
    monkeypatch.setattr(workers, "_GRACE", 0.0)
  monkeypatch.setattr(prefetch, "_JOIN", 0.1)
  plan = BatchPlan(40, 4, 0, False)
  victim = int(np.random.RandomState([0, 0]).permutation(40)[13])  # the second of the fourth batch
  source = FaultySource(40, bad=[int(plan.indices(0)[1][0])], kills={victim: death})
  noted = []
  batches = stream_batches(source, plan, AS_IT_IS, 0, 0, 1, mesh, Limit(2), lambda *found: noted.append(found))
  how = "has ended as if it were done" if death is None else "was ended by SIGSEGV"
  started = time.monotonic()
  with pytest.raises(RuntimeError, match=rf"{how}: process \d+ was at faulty train\[{victim}\], for step 4"):
    collections.deque(batches, maxlen=0)
  assert time.monotonic() - started < 60
  batches.close()
  assert noted[0][0] == 0 and [fault.index for fault in noted[0][1]] == [plan.indices(0)[1][0]]


def test_a_thread_that_dies_is_an_error(monkeypatch, mesh, folder):
  monkeypatch.setattr(prefetch, "_run", lambda *arguments: None)
  batches = streamed(mesh, folder).train_batches()
  with pytest.raises(RuntimeError, match="the thread that reads batches ahead has ended"):
    next(batches)
  assert next(batches, None) is None


# Data that changed; names that lead elsewhere --------------------------------------------------------------


def test_fingerprints_tell_data_sets_apart(tmp_path):
  folder = make_folder(tmp_path / "a")
  before = open_source("folder", "train", str(folder)).fingerprint()
  shutil.copytree(folder, tmp_path / "b")
  assert open_source("folder", "train", str(tmp_path / "b")).fingerprint() == before
  os.rename(tmp_path / "b" / "train" / "a" / "0.png", tmp_path / "b" / "train" / "b" / "0.png")
  moved = open_source("folder", "train", str(tmp_path / "b")).fingerprint()
  os.rename(tmp_path / "b" / "train" / "b" / "0.png", tmp_path / "b" / "train" / "a" / "00.png")
  renamed = open_source("folder", "train", str(tmp_path / "b")).fingerprint()
  assert len({before, moved, renamed}) == 3
  digits = [open_source("digits", split).fingerprint() for split in ("train", "test")]
  assert digits[0] != digits[1]


def test_names_that_lead_out_of_the_data(tmp_path):
  folder = make_folder(tmp_path / "folder")
  for split in ("../folder/train", "/etc", "..", "train/a"):
    with pytest.raises(ValueError, match="must be the name of a directory in it"):
      open_source("folder", split, str(folder))
  for name in ("../../etc", "/etc", "a/../b", "a\0b", "a\nb"):
    with pytest.raises(ValueError, match="is no name of a data set"):
      open_source(name, "train", str(tmp_path))
  (tmp_path / "train_labels.csv").write_text(
      "filename,width,height,class,xmin,ymin,xmax,ymax\n../a.jpg,1,1,x,0,0,1,1\n")
  with pytest.raises(ValueError, match=r"names the photo '../a.jpg'"):
    plantdoc.find_crops(str(tmp_path), "train")


def test_archives_are_read_by_name_and_unpack_nothing(tmp_path):
  path = tmp_path / "cifar.tar"
  with tarfile.open(path, "w") as tar:
    for name, kind, link in (("c/link", tarfile.SYMTYPE, "/etc/passwd"), ("c/hard", tarfile.LNKTYPE, "c/link"),
                             ("c/device", tarfile.CHRTYPE, ""), ("../../evil", tarfile.REGTYPE, "")):
      member = tarfile.TarInfo(name)
      member.type, member.linkname = kind, link
      tar.addfile(member)
  for name in ("link", "hard", "device"):
    with pytest.raises(ValueError, match=f"c/{name} is no file"):
      cifar._read(path, "c/", [name])
  with pytest.raises(ValueError, match="has no member c/evil"):
    cifar._read(path, "c/", ["evil"])
  assert os.listdir(tmp_path) == ["cifar.tar"]


def test_workers_do_without_jax():
  code = ("import sys; import bionets_jax.data.stream, bionets_jax.data.workers, bionets_jax.data.faults;"
          "print('jax' in sys.modules)")
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert found.stdout.strip() == "False"


@pytest.fixture(scope="module")
def mesh():
  return one_device()
