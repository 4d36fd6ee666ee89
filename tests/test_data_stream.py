import io
import itertools
import multiprocessing
import threading
import types

import numpy as np
import pytest
from data_tools import (
  NUM_TRAIN,
  NUM_VAL,
  digest,
  real_data,
  streamed,
  take,
)
from PIL import Image

from bionets_jax.data import BatchPlan, EvalPlan, make_pipeline, open_source, parse_transforms
from bionets_jax.data.stream import BatchReader, prepare
from bionets_jax.data.transforms import HOST_TRANSFORMS, apply_all, example_rng
from bionets_jax.data.workers import read_ahead


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


def test_a_crop_of_a_jpeg_is_that_of_the_whole_image():
  pixels = np.random.RandomState(0).randint(0, 256, (60, 90, 3)).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG", quality=80)
  whole = np.asarray(Image.open(file))
  transforms = parse_transforms("random_resized_crop(16)|flip", HOST_TRANSFORMS)
  for i in range(20):
    found = prepare(file.getvalue(), transforms, (16, 16, 3), example_rng(0, 0, i), "a")
    np.testing.assert_array_equal(found, apply_all(transforms, whole, example_rng(0, 0, i)))


def test_read_ahead_starts_at_any_step(folder):
  source = open_source("folder", "train", str(folder))
  transforms = parse_transforms("random_resized_crop(8)", HOST_TRANSFORMS)
  reader = BatchReader(source, BatchPlan(NUM_TRAIN, 4, 1, False), transforms, (8, 8, 3), 1, [0], 1)
  batches = read_ahead(reader, 10, workers=0, threads=2)
  assert digest(itertools.islice(batches, 5)) == digest(reader[s] for s in range(10, 15))
  batches.close()


def test_too_little_shared_memory_is_said_before_a_worker_dies(mesh, folder, monkeypatch):
  usage = types.SimpleNamespace(free=2 * 4 * 8 * 8 * 3 - 1)  # two batches of four, less a byte
  monkeypatch.setattr("bionets_jax.data.workers.shutil.disk_usage", lambda path: usage)
  monkeypatch.setattr("bionets_jax.data.workers.os.path.isdir", lambda path: True)
  pipeline = streamed(mesh, folder, workers=1)
  with pytest.raises(ValueError, match="--shm-size"):
    pipeline.train_batches()
  streamed(mesh, folder, workers=0).train_batches().close()


# Ten crops, written out with PIL.


def ten_crops(image, side, crop):
  """The ten crops of a PIL image whose shorter side becomes `side`: uint8 (10, crop, crop, 3)."""
  width, height = image.size
  if width <= height:
    image = image.resize((side, int(side * height / width)), Image.Resampling.BILINEAR)
  else:
    image = image.resize((int(side * width / height), side), Image.Resampling.BILINEAR)
  right, below = image.width - crop, image.height - crop
  corners = [(0, 0), (right, 0), (0, below), (right, below), (round(right / 2), round(below / 2))]
  views = [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
  return np.stack([
      np.asarray(view.crop((x, y, x + crop, y + crop))) for view in views for x, y in corners])


def test_ten_crops_of_a_folder(mesh, folder):
  pipeline = streamed(mesh, folder, eval_transform="resize(15)|ten_crop(13)")
  assert pipeline.eval_image_shape == (10, 13, 13, 3)
  source = open_source("folder", "val", str(folder))
  images = np.concatenate([batch["image"] for batch in take(pipeline.eval_batches(), 9)])
  for i in range(NUM_VAL):
    np.testing.assert_array_equal(images[i], ten_crops(Image.open(source.read(i)[2]), 15, 13))


# Real data, where there are any.


def test_imagenet_is_streamed(mesh):
  pipeline = make_pipeline(
      name="imagenet2012", dir=real_data(), train_split="train", eval_split="validation",
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


def test_crops_of_imagenet_are_those_of_the_whole_images():
  source = open_source("imagenet2012", "train", real_data())
  transforms = parse_transforms("random_resized_crop(32)|flip", HOST_TRANSFORMS)
  for i, (data, _, key) in enumerate(source.read_many(range(100))):
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    found = prepare(data, transforms, (32, 32, 3), example_rng(0, 0, i), key)
    np.testing.assert_array_equal(found, apply_all(transforms, whole, example_rng(0, 0, i)))


def test_ten_crops_of_imagenet(mesh):
  pipeline = make_pipeline(
      name="imagenet2012", dir=real_data(), train_split="train", eval_split="validation",
      train_transform="random_resized_crop(224)", eval_transform="resize(256)|ten_crop(224)",
      workers=0, batch_size=8, eval_batch_size=8, seed=0, mesh=mesh,
  )
  batch, = take(pipeline.eval_batches(), 1)
  source = open_source("imagenet2012", "validation", real_data())
  for i in range(8):
    image = Image.open(io.BytesIO(source.read(i)[0])).convert("RGB")
    np.testing.assert_array_equal(batch["image"][i], ten_crops(image, 256, 224))
