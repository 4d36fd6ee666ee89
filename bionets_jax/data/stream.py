"""Streaming from the host: whole batches as a pure function of the step, read ahead by Grain.

The unit that Grain distributes over threads and worker processes is the batch, so what a batch
holds cannot depend on their number. Nothing here imports jax; workers unpickle `BatchReader`.
"""

import functools
import math
import os
import shutil
import signal
import sys
import threading
import time

import numpy as np

from bionets_jax.data.decode import decode, size_of_baseline_jpeg
from bionets_jax.data.transforms import RandomResizedCrop, apply_all, example_rng


def shard_rows(batch_size, shard, num_shards):
  """Returns the slice of a global batch's rows that shard `shard` of `num_shards` holds."""
  rows = batch_size // num_shards
  return slice(shard * rows, (shard + 1) * rows)


class BatchReader:
  """`reader[step]` is this process's part of the global batch of `step`.

  A batch is cut into `num_shards` equal runs of rows, one per device of the mesh; this process
  reads the runs in `shards`, one after the other.
  """

  def __init__(self, source, plan, transforms, image_shape, seed, shards, num_shards):
    """Makes the reader.

    Args:
      source: a `Source`.
      plan: a `BatchPlan` or `EvalPlan` over it; batch sizes are multiples of num_shards.
      transforms: host transforms that end in `image_shape`.
      image_shape: (h, w, c) of every image after the transforms; (10, h, w, c) for ten crops.
      seed: int, of the augmentation.
      shards: the shards that this process holds, ascending ints below num_shards.
      num_shards: int.
    """
    self._source = source
    self._plan = plan
    self._transforms = transforms
    self._image_shape = tuple(image_shape)
    self._seed = seed
    self._shards = tuple(shards)
    self._num_shards = num_shards

  @property
  def batch_bytes(self):
    """Bytes of the images of this process's part of a full batch."""
    rows = self._plan.batch_size // self._num_shards * len(self._shards)
    return rows * math.prod(self._image_shape)

  def __len__(self):
    # Without end, evaluation too: its consumer stops, and the batches behind are empty.
    return sys.maxsize

  def __getitem__(self, step):
    """Returns {'image': uint8 (n, *image_shape), 'label': int32 (n,), 'mask': float32 (n,)}.

    Rows without an example (index -1) are zero in all three.

    Raises:
      ValueError: an image is undecodable or has the wrong shape, or a label is out of range;
        the message holds the example's key.
    """
    epoch, indices = self._plan.indices(step)
    indices = np.concatenate(
        [indices[shard_rows(len(indices), shard, self._num_shards)] for shard in self._shards]
    )
    images = np.zeros((len(indices), *self._image_shape), np.uint8)
    labels = np.zeros(len(indices), np.int32)
    rows = np.flatnonzero(indices >= 0)
    examples = self._source.read_many(indices[rows])
    for row, (image, label, key) in zip(rows, examples, strict=True):
      rng = example_rng(self._seed, epoch, int(indices[row]))
      images[row] = prepare(image, self._transforms, self._image_shape, rng, key)
      labels[row] = checked_label(label, self._source.num_classes, key)
    return {"image": images, "label": labels, "mask": (indices >= 0).astype(np.float32)}


def prepare(image, transforms, image_shape, rng, key):
  """Decodes and transforms one example.

  Args:
    image: as `Source.read` gives it.
    transforms: host transforms.
    image_shape: what they are to end in.
    rng: of the example; None where nothing is random.
    key: of the example, for messages.

  Returns:
    uint8 image_shape.

  Raises:
    ValueError: undecodable, too small for a transform, or of another shape; holds the key.
  """
  image, transforms = _decode_and_crop(image, transforms, image_shape[-1], rng, key)
  try:
    image = apply_all(transforms, image, rng)
  except ValueError as error:
    raise ValueError(f"Example {key}: {error}") from error
  if image.shape != image_shape:
    raise ValueError(f"Example {key}: the image is {image.shape}, expected {image_shape}.")
  return image


def _decode_and_crop(image, transforms, channels, rng, key):
  """Decodes, and applies the first transform too if it needs but a part of the image.

  Returns:
    The image and the transforms that are left.
  """
  size = None
  if transforms and isinstance(transforms[0], RandomResizedCrop) and isinstance(image, bytes):
    size = size_of_baseline_jpeg(image)
  if size is None:
    return decode(image, channels, key), transforms
  box = transforms[0].box(*size, rng)
  top, _, height, _ = box
  return transforms[0].cut(decode(image, channels, key, top + height), box), transforms[1:]


def _check_shared_memory(batch_bytes, workers, directory="/dev/shm"):
  """Raises ValueError if the workers' batches cannot fit into shared memory.

  Without this a worker dies of a bus error. A worker holds at least the batch that it has ready
  and the one that it is making.
  """
  if not os.path.isdir(directory):
    return
  free, needed = shutil.disk_usage(directory).free, 2 * workers * batch_bytes
  if free < needed:
    raise ValueError(
        f"{directory} has {free / 2**20:.0f} MiB free, and {workers} workers need at least"
        f" {needed / 2**20:.0f} MiB there for their batches. Start the container with"
        f" --shm-size={2 * needed / 2**30:.1f}g, or use fewer workers (0 needs none)."
    )


def checked_label(label, num_classes, key):
  """Returns the label, or raises ValueError if it is none (unlabelled test sets have -1)."""
  if not 0 <= label < num_classes:
    raise ValueError(f"Example {key}: label {label} is not in [0, {num_classes}).")
  return label


def _start_worker(parent, index, count):
  """Runs first in each worker process of the process `parent`.

  Ctrl-C in a terminal and many schedulers signal the whole process group; the workers must go on
  while the main process saves. It ends them itself; if it is killed, they notice and end.
  """
  del index, count
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)

  def watch():  # the parent may be gone before this process has come up
    while os.getppid() == parent:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def read_ahead(reader, start_step, workers, threads):
  """Returns a Grain iterator over reader[start_step], reader[start_step + 1], ...

  Args:
    reader: a `BatchReader`.
    start_step: int.
    workers: worker processes; 0 reads in `threads` threads of this process.
    threads: int, used when workers is 0. Every worker process has one.

  Returns:
    An iterator with `close()`, which stops the workers.

  Raises:
    ValueError: there is too little shared memory for the workers.
  """
  import grain
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads its flags, also where no absl app runs
  if workers:
    _check_shared_memory(reader.batch_bytes, workers)
  threads = 1 if workers else threads
  dataset = grain.MapDataset.source(reader)[start_step:].to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  )
  if workers:
    dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1),
        worker_init_fn=functools.partial(_start_worker, os.getpid()),
    )
  return iter(dataset)
