"""CIFAR-10 and CIFAR-100 as TFDS builds them, without TensorFlow.

Names, version, features, examples and their order are TFDS's, whose builders are extended here;
only reading the archive and encoding the images (PNG, lossless) is done by Python and PIL instead.

Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import os
import tarfile

import numpy as np
from PIL import Image
from tensorflow_datasets.image_classification import cifar

_LARGEST_MEMBER = 160_000_000  # bytes; CIFAR-100's train.bin has 153,700,000


class _FromArchive:
  """What replaces the steps of TFDS's builders that need TensorFlow."""

  def _split_generators(self, dl_manager):
    info = self._cifar_info
    # Verified by TFDS against its checksum; an archive in the manual directory is taken first.
    archive = os.fspath(dl_manager.download(info.url))
    members = _read(archive, info.prefix, [*info.label_files, *info.train_files, *info.test_files])
    for key, name in zip(info.label_keys, info.label_files, strict=True):
      self.info.features[key].names = members[name].decode().split()
    return {
        split: self._generate_examples(f"{split}_", [members[name] for name in names])
        for split, names in (("train", info.train_files), ("test", info.test_files))
    }

  def _generate_examples(self, prefix, files):
    keys = self._cifar_info.label_keys
    index = 0
    for data in files:
      # Each record: the labels, then the red, green and blue planes of 32 x 32.
      records = np.frombuffer(data, np.uint8).reshape(-1, len(keys) + 3072)
      for record in records:
        image = record[len(keys):].reshape(3, 32, 32).transpose(1, 2, 0)
        yield index, {
            **{key: int(label) for key, label in zip(keys, record, strict=False)},
            "id": f"{prefix}{index:05d}",
            "image": Image.fromarray(np.ascontiguousarray(image)),
        }
        index += 1


def _read(archive, prefix, names):
  """Returns the contents of members by name; nothing is unpacked.

  Raises:
    ValueError: a member is missing, no file, or larger than any of the real archive's.
  """
  with tarfile.open(archive) as tar:
    found = {}
    for name in names:
      try:
        member = tar.getmember(prefix + name)
      except KeyError as error:
        raise ValueError(f"{archive} has no member {prefix + name}.") from error
      if not member.isfile() or member.size > _LARGEST_MEMBER:
        raise ValueError(f"{archive}: {member.name} is no file of at most {_LARGEST_MEMBER:,} bytes.")
      found[name] = tar.extractfile(member).read()
    return found


class Cifar10(_FromArchive, cifar.Cifar10, skip_registration=True):
  """TFDS's 'cifar10'."""


class Cifar100(_FromArchive, cifar.Cifar100, skip_registration=True):
  """TFDS's 'cifar100'."""
