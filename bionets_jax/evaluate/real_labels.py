"""ReaL, the reassessed labels of ImageNet's validation images: Beyer et al. 2020, arXiv 2006.07159.

Each image has the set of all classes that are in it; it may be empty. A prediction is right if it is in the
set, and images with an empty set do not count.
"""

import json
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bionets_jax.data.faults import Fault
from bionets_jax.data.sources import Source
from bionets_jax.data.stream import read_records
from bionets_jax.training.state import Batch, Metrics, Tree
from bionets_jax.training.tasks import Classification

IMAGES = 50_000
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\b")


def read_real_labels(path: str, num_classes: int) -> list[list[int]]:
  """The sets of classes of the published real.json, in the order of the images' numbers.

  Raises:
    OSError: it cannot be read.
    ValueError: it is something else.
  """
  try:
    with open(path, encoding="utf-8") as file:
      sets = json.load(file)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"--real-labels={path}: not a JSON file ({error})") from error
  if not isinstance(sets, list) or len(sets) != IMAGES:
    what = f"{len(sets):,} entries" if isinstance(sets, list) else f"a {type(sets).__name__}"
    raise ValueError(f"--real-labels={path}: expected a list of {IMAGES:,} lists of classes, got {what}")
  for number, one in enumerate(sets, 1):
    if not isinstance(one, list) or not all(type(c) is int and 0 <= c < num_classes for c in one):
      raise ValueError(f"--real-labels={path}: image {number} has {one!r}; expected a list of classes from 0 "
                       f"to {num_classes - 1}")
  return sets


class RealLabels:
  """The sets of a split's examples, by the number in the name of each example's file."""

  def __init__(self, sets: Sequence[Sequence[int]], source: Source):
    """
    Args:
      sets: see `read_real_labels`.
      source: of the examples; the names of their files are in their keys.
    """
    self._sets = sets
    self._source = source
    self._largest = max(map(len, sets))

  def rows(self, indices: np.ndarray) -> np.ndarray:
    """int32 (N, M): the classes of each example's set, filled up with -1; no example (-1) has none.

    Raises:
      ValueError: an example is no image of ILSVRC-2012's validation set.
    """
    out = np.full((len(indices), self._largest), -1, np.int32)
    there = np.flatnonzero(indices >= 0)
    for row, found in zip(there, read_records(self._source, indices[there]), strict=True):
      if isinstance(found, Fault):  # counted, or refused, where its image is read
        continue
      key = found[2]
      numbers = _NUMBER.findall(key)
      if not numbers or not 1 <= int(numbers[-1]) <= IMAGES:
        raise ValueError(f"--real-labels: example {key} has no file name such as "
                         "ILSVRC2012_val_00000001.JPEG; these labels are of ImageNet's validation images")
      classes = self._sets[int(numbers[-1]) - 1]
      out[row, :len(classes)] = classes
    return out


class RealTask:
  """A task whose evaluation counts ReaL's labels too. Its batches have `real`, see `RealLabels.rows`."""

  def __init__(self, task: Classification):
    self._task = task

  def evaluate(self, params: Tree, model_state: Tree, batch: Batch) -> Metrics:
    """As the task's, and (N,) `real_labelled`, 1 where the set is not empty, and `real_correct`."""
    real = batch["real"].T
    candidates = jnp.concatenate([batch["label"][None], jnp.maximum(real, 0)])
    # Mapped over labels alone: the network runs once.
    each = jax.vmap(
        lambda label: self._task.evaluate(params, model_state, batch | {"label": label}))(candidates)
    right = (each["top1_error"][1:] == 0) & (real >= 0)
    return {name: values[0] for name, values in each.items()} | {
        "real_correct": right.any(0).astype(jnp.float32),
        "real_labelled": (real >= 0).any(0).astype(jnp.float32)}

  def examples(self, params: Tree, model_state: Tree, batch: Batch) -> Batch:
    return self._task.examples(params, model_state, batch)


def real_error(values: dict[str, float], total: int) -> dict[str, float]:
  """`values` with the means of `RealTask` turned into `real_error` in percent, and `real_examples`.

  Raises:
    ValueError: if none of the images has a label.
  """
  values = dict(values)
  correct, labelled = values.pop("real_correct"), values.pop("real_labelled")
  if not labelled:
    raise ValueError("--real-labels: none of the images has a label in there")
  return values | {"real_error": 100 * (1 - correct / labelled), "real_examples": round(labelled * total)}
