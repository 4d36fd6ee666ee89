"""What the builders of sets from folders of image files have in common.

A builder makes a TFDS set in ArrayRecord form without TensorFlow. Real folders hold files that
cannot be read; these are left out, before the set is split, and reported by name.
"""

import concurrent.futures
import os

import numpy as np
import tensorflow_datasets as tfds

from bionets_jax.data.decode import decode_rgb


class FilesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder that reads files in `dl_manager.manual_dir`.

  Attributes:
    CLASS_NAMES: tuple of str.
    PUBLISHED_SIZES: dict of split -> number of examples that the paper's authors had.
    left_out: list of (name, reason), filled while building.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = "See `python -m bionets_jax.data.prepare --list`."

  def __init__(self, **kwargs):
    self.left_out = []
    super().__init__(**kwargs)

  def report(self):
    """Returns lines of text: what was left out and which sizes differ from the published ones."""
    lines = [
        f"Warning: {split} has {self.info.splits[split].num_examples:,} examples, published are"
        f" {count:,}." for split, count in self.PUBLISHED_SIZES.items()
        if self.info.splits[split].num_examples != count
    ]
    if self.left_out:
      lines.append(f"Left out: {len(self.left_out)}.")
      lines.extend(f"  {name}: {reason}" for name, reason in self.left_out)
    return lines


def problems(paths, read=decode_rgb, also=lambda image: None):
  """Reads image files, in threads.

  Args:
    paths: list of str.
    read: from the bytes of a file to an image; raises ValueError.
    also: called with every image; its result is returned.

  Returns:
    One (problem, result) per path: the problem is '' or says why the file cannot be read.
  """
  def one(path):
    if not os.path.isfile(path):
      return "no such file", None
    with open(path, "rb") as file:
      data = file.read()
    try:
      return "", also(read(data))
    except ValueError as error:
      return str(error), None

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    return list(pool.map(one, paths))


def split_by_class(labels, fractions, seed):
  """Shuffles every class and cuts it: the rule of kEffNet's authors, with an order of our own.

  Their library cuts the n shuffled files of a class at int(n * a), int(n * (a + b)), ...; the
  same here. It shuffles in the order in which the file system lists the files, so that their
  split cannot be made again; here the order is that of the arguments, and the shuffle that of
  `numpy.random.RandomState`, which NumPy has frozen.

  Args:
    labels: ints (n,), of the examples in an order that does not depend on the file system.
    fractions: of the parts; their sum is 1.
    seed: int.

  Returns:
    int array (n,), the part of each example.
  """
  labels = np.asarray(labels)
  parts = np.zeros(len(labels), int)
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    members = members[np.random.RandomState([seed, label]).permutation(len(members))]
    total = 0.0
    for part, fraction in enumerate(fractions):
      parts[members[int(len(members) * total):]] = part
      total += fraction
  return parts
