"""The input: the same batches whoever reads them, and each example once in an epoch, wherever it begins."""

import collections
import zlib

import jax
import numpy as np

from bionets_jax.data.pipeline import make_pipeline
from bionets_jax.data.sources import open_source
from bionets_jax.selfcheck.check import Check, Context
from bionets_jax.training.devices import make_mesh

WORKERS = 2
_BATCH, _STEPS, _RESUMED = 16, 6, 3  # 64 images are 4 batches an epoch


def check_workers(context: Context) -> list[Check]:
  """Streamed batches, augmented on the host, by threads and by worker processes, from the start and from later on."""
  context.say(f"batches by threads, by {WORKERS} worker processes, and by these from step {_RESUMED} on")
  threads = _digests(context, 0, 0)
  others = _digests(context, WORKERS, 0) + _digests(context, WORKERS, _RESUMED)
  differing = sum(a != b for a, b in zip(threads + threads[_RESUMED:], others, strict=True))
  return [Check("workers", f"batches read by threads and by {WORKERS} processes, also resumed at step {_RESUMED}",
                differing, 0, "batches")]


def check_order(context: Context) -> list[Check]:
  """The images of an epoch, as devices get them in turns, against those that the source holds."""
  context.say("the examples of an epoch, with a new start every step or two, now here and now there")
  counts = sorted({1, len(context.devices)})
  pipelines = [_pipeline(context.devices[:n], 0, "generated/cifar10", "") for n in counts]
  source = open_source("generated/cifar10", "train")
  wanted = collections.Counter(image.tobytes() for image, _, _ in source.read_many(range(len(source))))
  met: collections.Counter = collections.Counter()
  random = np.random.default_rng(0)
  step, end = pipelines[0].steps_per_epoch, 2 * pipelines[0].steps_per_epoch  # the second epoch: the first is no rule
  while step < end:
    batches = pipelines[random.integers(len(pipelines))].train_batches(step)
    for _ in range(min(int(random.integers(1, 3)), end - step)):
      met.update(image.tobytes() for image in jax.device_get(next(batches))["image"])
      step += 1
    batches.close()
  wrong = (met - wanted).total() + (wanted - met).total()
  return [Check("order", f"an epoch of {len(source)} examples, restarted on {' and '.join(map(str, counts))} devices: "
                "lost or doubled", wrong, 0, "examples")]


def _pipeline(devices, workers, name, transform):
  return make_pipeline(
      name=name, train_split="train", eval_split="train", train_transform=transform,
      eval_transform=transform and "resize(40)|center_crop(32)", workers=workers, batch_size=_BATCH,
      eval_batch_size=_BATCH, seed=0, mesh=make_mesh(devices))


def _digests(context: Context, workers: int, start: int) -> list[int]:
  """crc32 of each batch, images and labels."""
  batches = _pipeline(
      context.devices[:1], workers, "generated/imagenet2012", "random_resized_crop(32)|flip").train_batches(start)
  try:
    found = [jax.device_get(next(batches)) for _ in range(start, _STEPS)]
  finally:
    batches.close()
  return [zlib.crc32(batch["label"].tobytes(), zlib.crc32(batch["image"].tobytes())) for batch in found]
