"""Small sets live on the device, whole, as uint8, and are augmented there.

Every device holds the whole set and cuts its own part of each batch, so there is no traffic
between devices. A batch costs the host one small array of indices.
"""

import concurrent.futures
import functools
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bionets_jax.data.faults import NO_BAD_RECORDS, Fault
from bionets_jax.data.levels import as_uint8
from bionets_jax.data.stream import read_examples


def load(source, transforms, image_shape, limit=NO_BAD_RECORDS, threads=None):
  """Decodes a whole source and prepares its images.

  Args:
    source: a `Source`.
    transforms: host transforms, none of them random, that end in `image_shape`.
    image_shape: (h, w, c).
    limit: how many records may be bad.
    threads: number of threads, by default one per core.

  Returns:
    images uint8 (n, h, w, c), labels int32 (n,); zero where a record is bad.
    faults: list of `Fault`, of the bad records, by index.

  Raises:
    TooManyBadRecords (a ValueError): more records than `limit` allows are unreadable or undecodable, or have
      another shape or a label out of range; the message holds their keys.
  """
  images = np.zeros((len(source), *image_shape), np.uint8)
  labels = np.zeros(len(source), np.int32)
  faults = []
  started = shown = time.monotonic()

  def fill(indices):
    bad = []
    for index, found in zip(
        indices, read_examples(source, indices, transforms, image_shape, lambda index: None), strict=True):
      if isinstance(found, Fault):
        bad.append(found)
        limit.check(bad)
      else:
        images[index], labels[index] = found
    return len(indices), bad

  # Small images are read fastest in large chunks; large ones are to give every thread its part.
  size = 500 if not transforms else 50
  chunks = [range(i, min(i + size, len(source))) for i in range(0, len(source), size)]
  done = 0
  with concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool:
    for count, bad in pool.map(fill, chunks):
      faults.extend(bad)
      limit.check(faults)
      done += count
      now = time.monotonic()
      if now - shown > 2:
        rate = done / (now - started)
        print(
            f"{source.name} {source.split}: decoded {done:,} of {len(source):,} images,"
            f" {rate:,.0f}/s, {(len(source) - done) / rate:.0f} s left",
            file=sys.stderr, flush=True,
        )
        shown = now
  return images, labels, faults


class ResidentSet:
  """Images and labels replicated over the mesh, batches cut and augmented there.

  Attributes:
    faults: index -> `Fault`, of the examples that cannot be used.
  """

  def __init__(self, images, labels, mesh, transforms=(), faults=()):
    """Copies the set to the devices.

    Args:
      images: uint8 (n, h, w, c) host array, the same in every process.
      labels: int32 (n,).
      mesh: a Mesh with the axis 'data'.
      transforms: made from DEVICE_TRANSFORMS.
      faults: as `load` gives them.
    """
    self.faults = {fault.index: fault for fault in faults}
    replicated = NamedSharding(mesh, P())
    self._images = _replicate(images, replicated)
    self._labels = _replicate(labels, replicated)
    self._data_sharding = NamedSharding(mesh, P("data"))
    self._cut = jax.jit(jax.shard_map(
        functools.partial(_cut, transforms),
        mesh=mesh,
        in_specs=(P(), P(), P("data"), P(), P()),
        out_specs=P("data"),
    ), out_shardings=self._data_sharding)

  def batch(self, seed, epoch, indices):
    """Returns the batch of these examples.

    An example's augmentation follows from (seed, epoch, index) alone, so neither the batch that
    it is in nor the number of devices changes it. One program serves all seeds and epochs.

    Args:
      seed: int in [0, 2**32), of the augmentation.
      epoch: int.
      indices: int array (batch,), the same in every process; -1 stands for no example.

    Returns:
      {'image': uint8 (batch, h, w, c), 'label': int32 (batch,), 'mask': float32 (batch,)},
      sharded over 'data'; all zero where the index is -1.
    """
    indices = np.asarray(indices, np.int32)
    indices = jax.make_array_from_callback(
        indices.shape, self._data_sharding, lambda rows: indices[rows]
    )
    return self._cut(self._images, self._labels, indices, np.int32(epoch), np.uint32(seed))


def _replicate(array, sharding):
  return jax.make_array_from_callback(array.shape, sharding, lambda rows: array[rows])


def _cut(transforms, images, labels, indices, epoch, seed):
  # The generator is named, so that jax_default_prng_impl cannot change a run's augmentation.
  key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), epoch)

  def one(index):
    image = images[index]
    example_key = jax.random.fold_in(key, index)
    for position, transform in enumerate(transforms):
      image = transform(image, jax.random.fold_in(example_key, position))
    real = index >= 0
    return {
        "image": jnp.where(real, as_uint8(image), 0),
        "label": jnp.where(real, labels[index], 0),
        "mask": real.astype(jnp.float32),
    }

  return jax.vmap(one)(indices)
