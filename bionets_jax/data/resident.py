"""Small sets live on the device, whole, as uint8, and are augmented there.

Every device holds the whole set and cuts its own part of each batch, so there is no traffic
between devices. A batch costs the host one small array of indices.
"""

import concurrent.futures
import dataclasses
import functools
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bionets_jax.data.decode import decode
from bionets_jax.data.grammar import check_pixels
from bionets_jax.data.stream import checked_label

# More than this many decoded bytes (train and eval together) are streamed instead.
MAX_RESIDENT_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class PadCrop:
  """Pads with `pixels` of black on all sides and crops the original size at random."""

  pixels: int

  usage = "pad_crop(pixels)"
  is_random = True

  def __post_init__(self):
    check_pixels("pixels", self.pixels)

  def __call__(self, image, key):
    height, width, channels = image.shape
    n = self.pixels
    padded = jnp.pad(image, ((n, n), (n, n), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * n + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), (height, width, channels))


@dataclasses.dataclass(frozen=True)
class Flip:
  """Mirrors left and right with probability 1/2."""

  usage = "flip"
  is_random = True

  def __call__(self, image, key):
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


# Called with one image, uint8 (h, w, c), and a key; the size stays.
DEVICE_TRANSFORMS = {"flip": Flip, "pad_crop": PadCrop}


def is_resident(*sources):
  """Whether the sources live on the device: one static image shape and small enough together."""
  shapes = {source.image_shape for source in sources}
  if len(shapes) > 1 or None in next(iter(shapes)):
    return False
  pixels = int(np.prod(next(iter(shapes))))
  return sum(len(source) for source in sources) * pixels <= MAX_RESIDENT_BYTES


def load(source, threads=None):
  """Decodes a whole source with static image shape.

  Args:
    source: a `Source`.
    threads: number of threads, by default one per core.

  Returns:
    images uint8 (n, h, w, c), labels int32 (n,).

  Raises:
    ValueError: undecodable, wrong shape or label out of range; the message holds the key.
  """
  images = np.empty((len(source), *source.image_shape), np.uint8)
  labels = np.empty(len(source), np.int32)
  started = shown = time.monotonic()

  def fill(indices):
    for index, (image, label, key) in zip(indices, source.read_many(indices), strict=True):
      image = decode(image, source.image_shape[-1], key)
      if image.shape != source.image_shape:
        raise ValueError(
            f"Example {key}: the image is {image.shape}, expected {source.image_shape}."
        )
      images[index] = image
      labels[index] = checked_label(label, source.num_classes, key)
    return len(indices)

  chunks = [range(i, min(i + 500, len(source))) for i in range(0, len(source), 500)]
  done = 0
  with concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool:
    for count in pool.map(fill, chunks):
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
  return images, labels


class ResidentSet:
  """Images and labels replicated over the mesh, batches cut and augmented there."""

  def __init__(self, images, labels, mesh, transforms=(), seed=0):
    """Copies the set to the devices.

    Args:
      images: uint8 (n, h, w, c) host array, the same in every process.
      labels: int32 (n,).
      mesh: a Mesh with the axis 'data'.
      transforms: made from DEVICE_TRANSFORMS.
      seed: int in [0, 2**32), of the augmentation.
    """
    replicated = NamedSharding(mesh, P())
    self._images = _replicate(images, replicated)
    self._labels = _replicate(labels, replicated)
    self._data_sharding = NamedSharding(mesh, P("data"))
    self._cut = jax.jit(jax.shard_map(
        functools.partial(_cut, transforms, seed),
        mesh=mesh,
        in_specs=(P(), P(), P("data"), P()),
        out_specs=P("data"),
    ), out_shardings=self._data_sharding)

  def batch(self, epoch, indices):
    """Returns the batch of these examples.

    An example's augmentation follows from (seed, epoch, index) alone, so neither the batch that
    it is in nor the number of devices changes it.

    Args:
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
    return self._cut(self._images, self._labels, indices, np.int32(epoch))


def _replicate(array, sharding):
  return jax.make_array_from_callback(array.shape, sharding, lambda rows: array[rows])


def _cut(transforms, seed, images, labels, indices, epoch):
  # The generator is named, so that jax_default_prng_impl cannot change a run's augmentation.
  key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), epoch)

  def one(index):
    image = images[index]
    example_key = jax.random.fold_in(key, index)
    for position, transform in enumerate(transforms):
      image = transform(image, jax.random.fold_in(example_key, position))
    real = index >= 0
    return {
        "image": jnp.where(real, image, 0),
        "label": jnp.where(real, labels[index], 0),
        "mask": real.astype(jnp.float32),
    }

  return jax.vmap(one)(indices)
