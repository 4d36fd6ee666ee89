"""Which classes are taken for which, and how often: exact over a split."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bionets_jax.training.state import Batch, Metrics, Tree
from bionets_jax.training.tasks import Classification

_TOLD = 5  # classes, and pairs of classes, that are said


class ConfusionTask:
  """A task whose evaluation keeps what was predicted. Its batches have `index`, the number of each example."""

  def __init__(self, task: Classification):
    self._task = task

  def evaluate(self, params: Tree, model_state: Tree, batch: Batch) -> Metrics:
    return self._task.evaluate(params, model_state, batch)

  def examples(self, params: Tree, model_state: Tree, batch: Batch) -> Batch:
    """int32 (N,) `label`, `index` and `predicted`, which is -1 where a logit is NaN; and float32 (N,) `mask`."""
    # The same operations on the same arrays as in `evaluate`: XLA does them once.
    logits = self._task.logits(params, model_state, batch)
    predicted = jnp.where(jnp.isnan(logits).any(-1), -1, logits.argmax(-1))
    return {"predicted": predicted.astype(jnp.int32), **{key: batch[key] for key in ("label", "index", "mask")}}


def confusion(examples: Mapping[str, np.ndarray], class_names: Sequence[str]) -> dict[str, Any]:
  """The confusion matrix and what follows from it.

  Args:
    examples: of all batches, as `ConfusionTask.examples` gives them; rows of mask 0 are no examples.
    class_names: of all classes, K.

  Returns:
    Under 'class_names' these; 'counts' K lists of K numbers, a row for each true class and a column for each
    predicted one; 'per_class' for each class its examples, errors, and error in per cent (None without examples);
    'mistakes' [number in the split, true class, predicted class] of each example that is taken for another class,
    in the order of the split. Where there are examples whose logits are not numbers, 'without_prediction' is how
    many: they are errors of their class, and in no column.
  """
  number = len(class_names)
  there = examples["mask"] > 0
  label, predicted, index = (examples[key][there].astype(np.int64) for key in ("label", "predicted", "index"))
  told = predicted >= 0
  counts = np.bincount(label[told] * number + predicted[told], minlength=number**2).reshape(number, number)
  totals = np.bincount(label, minlength=number)
  errors = totals - np.diag(counts)
  order = np.argsort(index, kind="stable")
  mistakes = np.stack([index, label, predicted], 1)[order]
  mistakes = mistakes[mistakes[:, 1] != mistakes[:, 2]]
  return {
      "class_names": list(class_names), "counts": counts.tolist(),
      "per_class": [
          {"class": name, "examples": n, "errors": wrong, "error": 100 * wrong / n if n else None}
          for name, n, wrong in zip(class_names, totals.tolist(), errors.tolist(), strict=True)],
      "mistakes": mistakes.tolist(),
      **({"without_prediction": int((~told).sum())} if not told.all() else {})}


def most_confused(counts: Sequence[Sequence[int]], limit: int) -> list[tuple[int, int, int]]:
  """(true class, predicted class, how often), the most frequent first, of those that differ and occur."""
  table = np.array(counts)
  np.fill_diagonal(table, 0)
  order = np.argsort(-table, axis=None, kind="stable")[:limit]
  pairs = [(*divmod(int(i), len(table)), int(table.flat[i])) for i in order]
  return [pair for pair in pairs if pair[2]]


def in_words(found: Mapping[str, Any]) -> str:
  """Two lines: the classes with the highest errors, and the pairs that are confused most often."""
  names = found["class_names"]
  rows = sorted((row for row in found["per_class"] if row["errors"]), key=lambda row: -row["error"])[:_TOLD]
  classes = ", ".join(f"{row['class']}: {row['error']:.1f} % ({row['errors']:,} of {row['examples']:,})" for row in rows)
  pairs = ", ".join(f"{names[true]} for {names[other]} ({count:,})"
                    for true, other, count in most_confused(found["counts"], _TOLD))
  return f"highest errors: {classes or 'none'}\ntaken for another: {pairs or 'none'}"
