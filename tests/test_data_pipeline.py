import json
import os
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
from data_tools import (
  NUM_TRAIN,
  NUM_VAL,
  digest,
  digits,
  streamed,
  take,
)

from bionets_jax.data.device_transforms import DEVICE_TRANSFORMS, Flip
from bionets_jax.data.resident import load

SCRIPT = """
  import json, sys
  import jax, numpy as np
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
  from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
  sys.path.insert(0, sys.argv[2])
  import data_tools as t

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


# Splits, seeds, crops.


def test_a_third_split_is_the_test(mesh, folder):
  two = streamed(mesh, folder)
  assert (two.num_test, two.test_image_shape) == (0, None)
  with pytest.raises(ValueError, match="no test split"):
    two.test_batches()
  pipeline = streamed(
      mesh, folder, test_split="train", test_transform="center_crop(16)", eval_batch_size=6
  )
  assert (pipeline.num_eval, pipeline.num_test) == (NUM_VAL, NUM_TRAIN)
  assert (pipeline.eval_image_shape, pipeline.test_image_shape) == ((8, 8, 3), (16, 16, 3))
  batches = take(pipeline.test_batches(), 9)
  assert [batch["image"].shape for batch in batches] == [(6, 16, 16, 3)] * 2
  assert sum(batch["mask"].sum() for batch in batches) == NUM_TRAIN
  assert digest(take(pipeline.eval_batches(), 9)) == digest(
      take(streamed(mesh, folder, eval_batch_size=6).eval_batches(), 9))
  assert "test       train: 11 examples" in pipeline.describe()


@pytest.mark.parametrize("make", [
    lambda mesh, folder, **k: digits(
        mesh, train_transform="pad_crop(1)|flip", eval_transform="pad_crop(1)", test_split="test",
        batch_size=64, drop_remainder=True, **k),
    lambda mesh, folder, **k: streamed(
        mesh, folder, eval_transform="random_resized_crop(8)", test_split="val",
        test_transform="center_crop(8)", **k),
], ids=["resident", "streamed"])
def test_with_seed_is_the_pipeline_of_that_seed(mesh, folder, make):
  first = make(mesh, folder, seed=1)
  second = first.with_seed(2)
  digests = {}
  for seed, pipeline in {1: first, 2: second, "1 anew": make(mesh, folder, seed=1),
                         "2 anew": make(mesh, folder, seed=2)}.items():
    digests[seed] = [
        digest(take(batches, 4)) for batches in (
            pipeline.train_batches(2), pipeline.eval_batches(), pipeline.test_batches())
    ]
  assert digests[1] == digests["1 anew"] and digests[2] == digests["2 anew"]
  train, evaluation, test = zip(digests[1], digests[2], strict=True)
  # Evaluation is random here, drawn from the seed; the test is not.
  assert train[0] != train[1] and evaluation[0] != evaluation[1] and test[0] == test[1]
  # Drawn once: the second evaluation sees the same images.
  assert digest(take(second.eval_batches(), 4)) == evaluation[1]
  with pytest.raises(ValueError, match="seed must be in"):
    first.with_seed(-1)


def test_seeds_share_what_is_loaded_and_compiled(mesh, monkeypatch):
  loads, traces = [], []

  class Counted(Flip):

    def __call__(self, image, key):
      traces.append(1)
      return super().__call__(image, key)

  def counting(source, *args):
    loads.append(source.split)
    return load(source, *args)

  monkeypatch.setattr("bionets_jax.data.pipeline.load", counting)
  monkeypatch.setitem(DEVICE_TRANSFORMS, "flip", Counted)
  first = digits(mesh, train_transform="flip", drop_remainder=True)
  second = first.with_seed(1)
  for pipeline in (second, first, second.with_seed(2**32 - 1)):
    take(pipeline.train_batches(), 1)
    take(pipeline.eval_batches(), 1)
  assert loads == ["train", "test"]
  assert len(traces) == 1


def test_ten_crops_of_every_example(mesh, folder):
  pipeline = streamed(
      mesh, folder, eval_transform="resize(12)|ten_crop(8)", test_split="val",
      test_transform="resize(12)|center_crop(8)",
  )
  assert pipeline.image_shape == pipeline.test_image_shape == (8, 8, 3)
  assert pipeline.eval_image_shape == (10, 8, 8, 3)
  crops = take(pipeline.eval_batches(), 9)
  assert [batch["image"].shape for batch in crops] == [(4, 10, 8, 8, 3)] * 2
  assert crops[0]["image"].dtype == np.uint8 and not crops[1]["image"][1:].any()
  for batch, centre in zip(crops, take(pipeline.test_batches(), 9), strict=True):
    np.testing.assert_array_equal(batch["image"][:, 4], centre["image"])
    np.testing.assert_array_equal(batch["label"], centre["label"])


def test_a_streamed_test_beside_a_set_on_the_device(mesh):
  pipeline = digits(mesh, test_split="test", test_transform="ten_crop(6)", workers=0)
  assert pipeline.resident and pipeline.test_image_shape == (10, 6, 6, 1)
  assert "augmented there; test streamed by" in pipeline.describe()
  tenfold = take(pipeline.test_batches(), 1)[0]["image"]
  whole = take(pipeline.eval_batches(), 1)[0]["image"]
  np.testing.assert_array_equal(tenfold[:, 0], whole[:, :6, :6])


# What make_pipeline refuses.


@pytest.mark.parametrize("overrides, message", [
    (dict(train_transform="pad_crop(4)|random_resized_crop(8)"),
     r"pad_crop\(4\) works on a set that lives on the device, and digits is streamed from the host,"
     r" for random_resized_crop\(8\) works there alone"),
    (dict(train_transform="random_resized_crop(8)", eval_transform="pad_crop(1)"),
     "eval_transform: .*since its training split is"),
    (dict(train_transform="ten_crop(4)"), r"ten_crop\(size\) is for eval_transform and test_tran"),
    (dict(test_split="test", test_transform="flip"), "test_transform='flip': flip is random"),
    (dict(test_transform="resize(8)"), "needs a test_split"),
    (dict(test_split="val"), "Unknown split of digits"),
    (dict(train_transform="pad_corp(4)"), "train_transform: Unknown transform 'pad_corp'. Did you"),
    (dict(train_transform="pad_crop(0)"), "train_transform: 'pad_crop.0.' does not fit"),
    (dict(eval_transform="flip"), "flip is random.*with a test_split beside it, it may"),
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
     "lives on the device, and folder is streamed from the host, for its images differ in size"),
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
