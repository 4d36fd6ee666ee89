import hashlib
import io
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

from bionets_jax.data import BatchPlan, EvalPlan, make_pipeline, open_source, parse_transforms
from bionets_jax.data.resident import DEVICE_TRANSFORMS, ResidentSet, is_resident, load
from bionets_jax.data.stream import BatchReader, read_ahead
from bionets_jax.data.transforms import HOST_TRANSFORMS, apply_all, example_rng

NUM_TRAIN, NUM_VAL = 11, 5


@pytest.fixture(scope="module")
def mesh():
  return Mesh(np.array(jax.devices()[:1]), ("data",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder of noise in sizes that all differ."""
  root = tmp_path_factory.mktemp("folder")
  random = np.random.RandomState(0)
  for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
    for i in range(count):
      path = root / split / "abc"[i % 3] / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = random.randint(0, 256, (20 + i, 30 - i, 3)).astype(np.uint8)
      Image.fromarray(pixels).save(path)
  return root


def digits(mesh, **overrides):
  arguments = dict(
      name="digits", train_split="train", eval_split="test", batch_size=128, eval_batch_size=100,
      seed=0, mesh=mesh,
  )
  return make_pipeline(**arguments | overrides)


def streamed(mesh, folder, **overrides):
  arguments = dict(
      name="folder", dir=str(folder), train_split="train", eval_split="val",
      train_transform="random_resized_crop(8)|flip", eval_transform="resize(12)|center_crop(8)",
      workers=0, batch_size=4, eval_batch_size=4, seed=0, mesh=mesh,
  )
  return make_pipeline(**arguments | overrides)


def take(batches, count):
  try:
    return [jax.tree.map(np.asarray, batch) for batch in itertools.islice(batches, count)]
  finally:
    batches.close()


def digest(batches):
  state = hashlib.sha256()
  for batch in batches:
    for field in sorted(batch):
      array = np.asarray(batch[field])
      state.update(f"{field}{array.shape}{array.dtype}".encode() + array.tobytes())
  return state.hexdigest()


# Sets on the device.


def test_resident_batches_hold_the_planned_examples(mesh):
  pipeline = digits(mesh)
  assert pipeline.resident
  assert (pipeline.num_train, pipeline.num_eval, pipeline.num_classes) == (1442, 355, 10)
  assert pipeline.image_shape == pipeline.eval_image_shape == (8, 8, 1)
  assert (pipeline.steps_per_epoch, pipeline.batch_sizes()) == (12, (128, 34))
  source = open_source("digits", "train")
  plan = BatchPlan(1442, 128, 0, False)
  batches = take(pipeline.train_batches(11), 2)
  assert [len(batch["label"]) for batch in batches] == [34, 128]
  for step, batch in zip((11, 12), batches, strict=True):
    assert set(batch) == {"image", "label"}
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
    for row, index in enumerate(plan.indices(step)[1]):
      image, label, _ = source.read(int(index))
      np.testing.assert_array_equal(batch["image"][row], image)
      assert batch["label"][row] == label


def test_resident_evaluation_is_exact(mesh):
  source = open_source("digits", "test")
  batches = take(digits(mesh).eval_batches(), 99)
  assert [batch["image"].shape for batch in batches] == [(100, 8, 8, 1)] * 4
  mask = np.concatenate([batch["mask"] for batch in batches])
  assert mask.dtype == np.float32
  np.testing.assert_array_equal(mask, [1] * 355 + [0] * 45)
  images = np.concatenate([batch["image"] for batch in batches])
  labels = np.concatenate([batch["label"] for batch in batches])
  for i in range(355):
    np.testing.assert_array_equal(images[i], source.read(i)[0])
    assert labels[i] == source.read(i)[1]
  assert not images[355:].any() and not labels[355:].any()


def test_pad_crop_and_flip_give_windows_of_the_padded_image(mesh):
  images = np.random.RandomState(0).randint(1, 256, (40, 6, 5, 3)).astype(np.uint8)
  transforms = parse_transforms("pad_crop(2)|flip", DEVICE_TRANSFORMS)
  resident = ResidentSet(images, np.arange(40, dtype=np.int32), mesh, transforms, seed=3)
  out = np.asarray(resident.batch(0, np.arange(40))["image"])
  padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
  seen = set()
  for i in range(40):
    matches = [
        (top, left, flip)
        for top in range(5) for left in range(5) for flip in (1, -1)
        if np.array_equal(out[i], padded[i, top:top + 6, left:left + 5][:, ::flip])
    ]
    assert len(matches) == 1
    seen.update(matches)
  # All of the five offsets each way, and both directions.
  tops, lefts, flips = map(set, zip(*seen, strict=True))
  assert (tops, lefts, flips) == (set(range(5)), set(range(5)), {1, -1})


def test_device_augmentation_follows_from_seed_epoch_and_index_alone(mesh):
  images = np.random.RandomState(0).randint(1, 256, (20, 9, 9, 1)).astype(np.uint8)
  labels = np.zeros(20, np.int32)
  transforms = parse_transforms("pad_crop(4)|flip", DEVICE_TRANSFORMS)
  resident = ResidentSet(images, labels, mesh, transforms, seed=3)
  all_at_once = np.asarray(resident.batch(5, np.arange(20))["image"])
  others = np.array([7, 3, 7, 19])
  np.testing.assert_array_equal(resident.batch(5, others)["image"], all_at_once[others])
  assert (np.asarray(resident.batch(6, np.arange(20))["image"]) != all_at_once).any()
  reseeded = ResidentSet(images, labels, mesh, transforms, seed=4)
  assert (np.asarray(reseeded.batch(5, np.arange(20))["image"]) != all_at_once).any()


SCRIPT = """
  import json, sys
  import jax, numpy as np
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
  from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
  sys.path.insert(0, sys.argv[2])
  import test_data_pipeline as t

  mesh = Mesh(np.array(jax.devices()), ("data",))
  result = {}
  for name, make in {
      "digits": lambda **k: t.digits(mesh, train_transform="pad_crop(1)|flip", **k),
      "folder": lambda **k: t.streamed(mesh, sys.argv[3], **k),
  }.items():
    pipeline = make(drop_remainder=True)
    batch = next(pipeline.train_batches(3))
    assert batch["image"].sharding == NamedSharding(mesh, P("data")), batch["image"].sharding
    assert len(batch["image"].addressable_shards) == len(jax.devices())
    result[name] = [
        t.digest(t.take(pipeline.train_batches(3), 4)), t.digest(t.take(pipeline.eval_batches(), 9))
    ]
  try:
    make()
  except ValueError as error:
    result["error"] = str(error)
  print(json.dumps(result))
"""


def test_batches_do_not_depend_on_the_number_of_devices(mesh, folder):
  here = os.path.dirname(os.path.abspath(__file__))
  env = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(here), *sys.path])}
  env.pop("XLA_FLAGS", None)  # other tests may set another number of devices
  done = subprocess.run(
      [sys.executable, "-c", textwrap.dedent(SCRIPT), "4", here, str(folder)],
      env=env, capture_output=True, text=True, timeout=120,
  )
  assert done.returncode == 0, done.stderr
  result = json.loads(done.stdout.splitlines()[-1])
  for name, pipeline in {
      "digits": digits(mesh, train_transform="pad_crop(1)|flip", drop_remainder=True),
      "folder": streamed(mesh, folder, drop_remainder=True),
  }.items():
    one_device = [
        digest(take(pipeline.train_batches(3), 4)), digest(take(pipeline.eval_batches(), 9))
    ]
    assert result[name] == one_device
  # 11 examples in batches of 4 leave 3, which 4 devices cannot share.
  assert "last batch of 3" in result["error"] and "drop_remainder=True" in result["error"]


def test_what_is_resident():
  train = open_source("digits", "train")
  assert is_resident(train)

  class Large(type(train)):
    image_shape = (1000, 1000, 1)

  class Varying(type(train)):
    image_shape = (None, None, 3)

  assert not is_resident(Large("train"))  # 1442 MB
  assert is_resident(Large("test"))  # 355 MB
  assert not is_resident(Varying("train"))
  assert not is_resident(train, Large("test"))


def test_loading_names_the_example_that_is_broken():
  class Broken(type(open_source("digits", "train"))):

    def read(self, index):
      image, label, key = super().read(index)
      return (b"no image" if index == 600 else image), label, f"number {index}"

  with pytest.raises(ValueError, match="Example number 600: not a readable image"):
    load(Broken("train"))


# Sets that are streamed.


def test_streamed_batches_hold_the_planned_examples(mesh, folder):
  pipeline = streamed(mesh, folder, seed=9)
  assert not pipeline.resident
  assert pipeline.image_shape == pipeline.eval_image_shape == (8, 8, 3)
  assert (pipeline.steps_per_epoch, pipeline.batch_sizes()) == (3, (4, 3))
  source = open_source("folder", "train", str(folder))
  plan = BatchPlan(NUM_TRAIN, 4, 9, False)
  transforms = parse_transforms("random_resized_crop(8)|flip", HOST_TRANSFORMS)
  for step, batch in zip((2, 3), take(pipeline.train_batches(2), 2), strict=True):
    epoch, indices = plan.indices(step)
    assert set(batch) == {"image", "label"}
    for row, index in enumerate(indices):
      _, label, key = source.read(int(index))
      pixels = np.asarray(Image.open(key))
      expected = apply_all(transforms, pixels, example_rng(9, epoch, int(index)))
      np.testing.assert_array_equal(batch["image"][row], expected)
      assert batch["label"][row] == label


def test_streamed_evaluation_is_exact(mesh, folder):
  source = open_source("folder", "val", str(folder))
  batches = take(streamed(mesh, folder).eval_batches(), 99)
  assert [batch["image"].shape for batch in batches] == [(4, 8, 8, 3)] * 2
  mask = np.concatenate([batch["mask"] for batch in batches])
  np.testing.assert_array_equal(mask, [1] * NUM_VAL + [0] * 3)
  labels = np.concatenate([batch["label"] for batch in batches])
  np.testing.assert_array_equal(labels[:NUM_VAL], [source.read(i)[1] for i in range(NUM_VAL)])
  assert not batches[1]["image"][1:].any()


@pytest.mark.parametrize("plan", [BatchPlan(NUM_TRAIN, 6, 1, True), EvalPlan(NUM_TRAIN, 6)])
def test_processes_read_their_parts_of_the_same_batches(folder, plan):
  source = open_source("folder", "train", str(folder))
  transforms = parse_transforms("random_resized_crop(8)|flip", HOST_TRANSFORMS)

  def reader(shards, num_shards):
    return BatchReader(source, plan, transforms, (8, 8, 3), 1, shards, num_shards)

  whole = reader([0], 1)
  for processes in (2, 3):
    parts = [reader([p], processes) for p in range(processes)]
    for step in range(3):
      joined = {
          field: np.concatenate([part[step][field] for part in parts])
          for field in ("image", "label", "mask")
      }
      assert digest([joined]) == digest([whole[step]])
  # Devices of a process need not be neighbours on the mesh.
  parts = [reader([0, 2], 3)[1]["image"], reader([1], 3)[1]["image"]]
  np.testing.assert_array_equal(
      np.concatenate([parts[0][:2], parts[1], parts[0][2:]]), whole[1]["image"]
  )


def test_workers_change_nothing_and_stop(mesh, folder):
  expected = digest(take(streamed(mesh, folder).train_batches(5), 7))
  for workers in (1, 2):
    pipeline = streamed(mesh, folder, workers=workers)
    # Kept to the end: nothing may write into a batch that has been handed out.
    batches = pipeline.train_batches(5)
    kept = list(itertools.islice(batches, 7))
    assert len(multiprocessing.active_children()) == workers
    batches.close()
    assert not multiprocessing.active_children()
    assert digest(kept) == expected
  assert digest(take(pipeline.eval_batches(), 9)) == digest(
      take(streamed(mesh, folder).eval_batches(), 9)
  )


def test_closing_early_and_dropping_stop_the_threads(mesh, folder):
  def ours():
    return [t for t in threading.enumerate() if "_run" in t.name]

  before = len(ours())
  batches = streamed(mesh, folder).train_batches()
  next(batches)
  assert len(ours()) == before + 1
  batches.close()
  batches.close()
  assert next(batches, None) is None
  assert len(ours()) == before
  batches = streamed(mesh, folder).train_batches()
  next(batches)
  del batches
  assert len(ours()) == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_named(mesh, folder, tmp_path, workers):
  for split in ("train", "val"):
    path = tmp_path / split / "a" / "fine.png"
    path.parent.mkdir(parents=True)
    path.write_bytes((folder / "val" / "a" / "0.png").read_bytes())
  (tmp_path / "train" / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xff and then nothing")
  batches = streamed(mesh, tmp_path, batch_size=2, workers=workers).train_batches()
  with pytest.raises(ValueError, match=r"train/a/broken\.jpg: not a readable image"):
    next(batches)
  batches.close()


def test_labels_out_of_range_are_an_error():
  class Unlabelled(type(open_source("digits", "train"))):

    def read(self, index):
      return super().read(index)[0], -1, f"number {index}"

  reader = BatchReader(Unlabelled("train"), EvalPlan(9, 3), (), (8, 8, 1), 0, [0], 1)
  with pytest.raises(ValueError, match=r"Example number 3: label -1 is not in \[0, 10\)"):
    reader[1]


def test_read_ahead_starts_at_any_step(folder):
  source = open_source("folder", "train", str(folder))
  transforms = parse_transforms("random_resized_crop(8)", HOST_TRANSFORMS)
  reader = BatchReader(source, BatchPlan(NUM_TRAIN, 4, 1, False), transforms, (8, 8, 3), 1, [0], 1)
  batches = read_ahead(reader, 10, workers=0, threads=2)
  assert digest(itertools.islice(batches, 5)) == digest(reader[s] for s in range(10, 15))
  batches.close()


def test_too_little_shared_memory_is_said_before_a_worker_dies(mesh, folder, monkeypatch):
  usage = types.SimpleNamespace(free=2 * 4 * 8 * 8 * 3 - 1)  # two batches of four, less a byte
  monkeypatch.setattr("bionets_jax.data.stream.shutil.disk_usage", lambda path: usage)
  monkeypatch.setattr("bionets_jax.data.stream.os.path.isdir", lambda path: True)
  pipeline = streamed(mesh, folder, workers=1)
  with pytest.raises(ValueError, match="--shm-size"):
    pipeline.train_batches()
  streamed(mesh, folder, workers=0).train_batches().close()


# What make_pipeline refuses.


@pytest.mark.parametrize("overrides, message", [
    (dict(train_transform="random_resized_crop(8)"),
     "works on a set that is streamed from the host, and digits lives on the device. There it can"
     " be: flip, pad_crop"),
    (dict(train_transform="pad_corp(4)"), "train_transform: Unknown transform 'pad_corp'. Did you"),
    (dict(train_transform="pad_crop(0)"), "train_transform: 'pad_crop.0.' does not fit"),
    (dict(eval_transform="flip"), "flip is random"),
    (dict(batch_size=2000, drop_remainder=True), "batch_size=2000 is larger than the 1442"),
    (dict(workers=-2), "workers must be -1"),
    (dict(eval_batch_size=0), "eval_batch_size=0"),
    (dict(eval_split="val"), "Unknown split of digits"),
])
def test_refused_on_the_device(mesh, overrides, message):
  with pytest.raises(ValueError, match=message):
    digits(mesh, **overrides)


@pytest.mark.parametrize("overrides, message", [
    (dict(train_transform="pad_crop(4)"),
     "works on a set that lives on the device, and folder is streamed from the host"),
    (dict(train_transform="flip"), "train_transform does not end in one fixed size; add center_"),
    (dict(eval_transform="resize(8)"), "eval_transform does not end in one fixed size"),
    (dict(eval_transform="random_resized_crop(8)"), "is random"),
])
def test_refused_when_streaming(mesh, folder, overrides, message):
  with pytest.raises(ValueError, match=message):
    streamed(mesh, folder, **overrides)


@pytest.mark.parametrize("overrides, message", [
    (dict(batch_size=100), "batch_size=100 does not divide over 8 devices; use 96 or 104"),
    (dict(batch_size=4), "batch_size=4 does not divide over 8 devices; use 8"),
    (dict(eval_batch_size=100), "eval_batch_size=100 does not divide over 8 devices; use 96 or"),
    # 1442 = 11 * 128 + 34
    (dict(batch_size=128), "last batch of 34 .*drop_remainder=True, or use 1 or 2 devices"),
    (dict(batch_size=128, mesh_axes=("model",)), "the one axis 'data'"),
])
def test_batches_must_divide_over_the_devices(overrides, message):
  overrides = dict(overrides)
  axes = overrides.pop("mesh_axes", ("data",))
  eight = types.SimpleNamespace(axis_names=axes, size=8)  # refused before a device is touched
  drop_remainder = "eval_batch_size" in overrides
  arguments = dict(batch_size=128, eval_batch_size=128, drop_remainder=drop_remainder)
  with pytest.raises(ValueError, match=message):
    digits(eight, **arguments | overrides)


def test_splits_with_other_classes_are_refused(mesh, folder, tmp_path):
  for split, name in (("train", "ant"), ("train", "bee"), ("val", "ant")):
    path = tmp_path / split / name / "0.png"
    path.parent.mkdir(parents=True)
    path.write_bytes((folder / "val" / "a" / "0.png").read_bytes())
  with pytest.raises(ValueError, match="'train' has 2 classes and 'val' 1.*only in 'train': bee"):
    streamed(mesh, tmp_path)


def test_describe(mesh, folder):
  text = digits(mesh).describe()
  assert "digits" in text and "1,442" in text and "the last one 34" in text and "resident" in text
  text = streamed(mesh, folder, workers=3, drop_remainder=True).describe()
  assert str(folder) in text and "3 worker processes" in text and "the last one dropped" in text


# Real data, where there are any.


@pytest.fixture
def real_data():
  path = os.environ.get("BIONETS_TEST_DATA")
  if not path:
    pytest.skip("BIONETS_TEST_DATA is not set")
  return path


def test_cifar10_lives_on_the_device(mesh, real_data):
  pipeline = make_pipeline(
      name="cifar10", dir=real_data, train_split="train[90%:]", eval_split="test[:500]",
      batch_size=128, eval_batch_size=200, seed=2, mesh=mesh,
  )
  assert pipeline.resident and pipeline.num_train == 5000
  source = open_source("cifar10", "train[90%:]", real_data)
  batch, = take(pipeline.train_batches(40), 1)
  indices = BatchPlan(5000, 128, 2, False).indices(40)[1]
  for row in range(0, 128, 16):
    image, label, _ = source.read(int(indices[row]))
    np.testing.assert_array_equal(batch["image"][row], np.asarray(Image.open(io.BytesIO(image))))
    assert batch["label"][row] == label
  assert sum(b["mask"].sum() for b in take(pipeline.eval_batches(), 9)) == 500


def test_imagenet_is_streamed(mesh, real_data):
  pipeline = make_pipeline(
      name="imagenet2012", dir=real_data, train_split="train", eval_split="validation",
      train_transform="random_resized_crop(64)|flip",
      eval_transform="resize(72, bicubic)|center_crop(64)",
      workers=0, batch_size=8, eval_batch_size=16, seed=0, mesh=mesh,
  )
  assert not pipeline.resident and pipeline.num_classes == 1000
  batch, = take(pipeline.train_batches(), 1)
  assert batch["image"].shape == (8, 64, 64, 3)
  # Photographs, not noise or black: neighbours are alike.
  assert np.abs(np.diff(batch["image"].astype(float), axis=2)).mean() < 30
  assert batch["image"].std() > 20
