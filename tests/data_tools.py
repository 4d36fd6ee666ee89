"""What the tests of the data pipeline share."""

import hashlib
import itertools
import os

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

from bionets_jax.data import make_pipeline

NUM_TRAIN, NUM_VAL = 11, 5


def one_device():
  """A mesh of the first device alone."""
  return Mesh(np.array(jax.devices()[:1]), ("data",))


def make_folder(root):
  """Fills `root` with a folder of noise in sizes that all differ, and returns it."""
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


def real_data():
  """The directory of real TFDS sets; skips the test that asks where there is none."""
  path = os.environ.get("BIONETS_TEST_DATA")
  if not path:
    pytest.skip("BIONETS_TEST_DATA is not set")
  return path
