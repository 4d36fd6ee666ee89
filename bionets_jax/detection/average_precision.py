"""Average precision of detections: VOC's at an overlap of 0.5 and COCO's from 0.5 to 0.95, in NumPy.

Boxes are those of `detection.boxes`: corners of unit squares. VOC's development kit, and mmdetection 2 after it, count
corners from 1 and the last pixel in, (x1 + 1, y1 + 1, x2, y2), and add 1 to each side: for the same pixels the overlap
is the same number.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bionets_jax.detection.verdicts import AREAS, THRESHOLDS, Verdicts, coco, pairs_of, voc

_ELEVEN, _HUNDRED_AND_ONE = np.linspace(0, 1, 11), np.linspace(0, 1, 101)
# Recall, rising, and the most precision at that recall or above, for a setting (area, overlap).
Curves = dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]]


class Picture(NamedTuple):
  """What was found in one picture and what is in it; both in the same pixels, none of it padding.

  index: of the picture, from 0; no other has it. Pictures may come in any order.
  boxes: (D, 4); scores: (D,), finite; labels: (D,) int, of what was found.
  true_boxes: (G, 4); true_labels: (G,) int; difficult: (G,) bool.
  """

  index: int  # type: ignore[assignment]  # tuple's own is not used
  boxes: np.ndarray
  scores: np.ndarray
  labels: np.ndarray
  true_boxes: np.ndarray
  true_labels: np.ndarray
  difficult: np.ndarray


@dataclasses.dataclass(frozen=True)
class AveragePrecision:
  """Average precision in percent.

  Attributes:
    class_names: K of them.
    objects: (K,) int, those that are not difficult.
    of_classes: (K,) float64 by the measure's name, nan for classes without an object that counts:
      ap50_voc07: overlap of 0.5, mean precision at 11 recalls (VOC until 2009, and what VOC2007 is reported in);
      ap50: overlap of 0.5, area under the curve (VOC since 2010);
      ap: COCO's, the mean over overlaps of 0.5, 0.55, ..., 0.95;
      ap75: COCO's at an overlap of 0.75;
      ap_small, ap_medium, ap_large: COCO's of objects below 32^2, in between, and above 96^2 pixels.
  """

  class_names: tuple[str, ...]
  objects: np.ndarray
  of_classes: dict[str, np.ndarray]

  @property
  def means(self) -> dict[str, float]:
    """Of each measure the mean over the classes that have it; nan if none has."""
    return {name: float(np.mean(values[~np.isnan(values)])) if not np.isnan(values).all() else math.nan
            for name, values in self.of_classes.items()}


def average_precision(pictures: Sequence[Picture], class_names: Sequence[str]) -> AveragePrecision:
  """Average precision over all pictures.

  Difficult objects need not be found, and finding them is neither right nor wrong. Detections are looked at by
  falling score; those of equal scores by the index of their picture, and within a picture in the order given.

  Raises:
    ValueError: a picture whose arrays do not fit each other, a label that is no class, a score or box that is not
      finite, or two pictures of one index.
  """
  pictures = sorted(pictures, key=lambda picture: picture.index)
  _check(pictures, len(class_names))
  places = np.arange(len(pictures))

  found = np.repeat(places, [len(p.scores) for p in pictures])
  boxes, scores, labels = (_joined(pictures, name) for name in ("boxes", "scores", "labels"))
  order = np.lexsort((found, -scores, labels))  # stable: within a picture as given
  boxes, scores, labels, found = (x[order] for x in (boxes, scores, labels, found))

  held = np.repeat(places, [len(p.true_labels) for p in pictures])
  true_boxes, true_labels, difficult = (
      _joined(pictures, name) for name in ("true_boxes", "true_labels", "difficult"))
  pairs = pairs_of(boxes, labels * len(pictures) + found, true_boxes, true_labels * len(pictures) + held)

  measures = _of_classes(voc(pairs, difficult), labels, true_labels, len(class_names), _at_half)
  measures |= _of_classes(coco(pairs, boxes, true_boxes, difficult), labels, true_labels, len(class_names), _coco)
  counted = np.bincount(true_labels[~difficult], minlength=len(class_names))
  return AveragePrecision(tuple(class_names), counted, {name: 100 * values for name, values in measures.items()})


def _of_classes(verdicts: Verdicts, labels: np.ndarray, true_labels: np.ndarray, classes: int,
                measures: Callable[[Curves], dict[str, float]]) -> dict[str, np.ndarray]:
  """(classes,) of each of the measures.

  Args:
    labels: (D,) ascending, of detections by falling score.
    measures: is given the curves of each setting of the verdicts in which anything counts.
  """
  settings = verdicts.right.shape[:-1]
  ends = np.searchsorted(labels, np.arange(classes + 1))
  rows = []
  for c in range(classes):
    of, objects = slice(ends[c], ends[c + 1]), verdicts.counts[..., true_labels == c].sum(-1)
    curves = {}
    for at in np.ndindex(settings):
      if number := int(objects[at]):
        right, wrong = (np.cumsum(x[at][of], dtype=np.float64) for x in (verdicts.right, verdicts.wrong))
        precision = np.maximum.accumulate((right / np.maximum(right + wrong, 1.0))[::-1])[::-1]
        curves[at] = right / number, precision
    rows.append(measures(curves))
  return {name: np.array([row[name] for row in rows]) for name in measures({})}


def _at_half(curves: Curves) -> dict[str, float]:
  if () not in curves:
    return {"ap50_voc07": math.nan, "ap50": math.nan}
  recall, precision = curves[()]
  return {"ap50_voc07": _sampled(recall, precision, _ELEVEN),
          "ap50": float(np.sum(np.diff(recall, prepend=0.0) * precision))}


def _coco(curves: Curves) -> dict[str, float]:
  sampled = {at: _sampled(*curve, _HUNDRED_AND_ONE) for at, curve in curves.items()}

  def mean(area, thresholds=THRESHOLDS):
    return float(np.mean([sampled.get((area, THRESHOLDS.index(t)), math.nan) for t in thresholds]))

  areas = {"ap" if name == "all" else f"ap_{name}": mean(i) for i, name in enumerate(AREAS)}
  return areas | {"ap75": mean(list(AREAS).index("all"), [0.75])}


def _sampled(recall: np.ndarray, precision: np.ndarray, points: np.ndarray) -> float:
  """Mean precision at the points; 0 at those that no recall reaches."""
  at = np.searchsorted(recall, points, side="left")
  return float(np.append(precision, 0.0)[at].mean())


def _joined(pictures: Sequence[Picture], name: str) -> np.ndarray:
  forms: dict[str, tuple[Any, Any]] = {
      "boxes": (np.float64, (0, 4)), "scores": (np.float64, 0), "labels": (np.int64, 0), "difficult": (bool, 0)}
  kind, empty = forms[name.removeprefix("true_")]
  return np.concatenate([np.empty(empty, kind), *(np.asarray(getattr(p, name), kind) for p in pictures)])


def _check(pictures: Sequence[Picture], classes: int) -> None:
  for before, picture in zip([None, *pictures], pictures, strict=False):
    at = f"picture {picture.index}"
    if before is not None and before.index == picture.index:
      raise ValueError(f"{at} is given twice; each is to be measured once")
    for first, *others in (("boxes", "scores", "labels"), ("true_boxes", "true_labels", "difficult")):
      shape = np.shape(getattr(picture, first))
      if len(shape) != 2 or shape[1] != 4:
        raise ValueError(f"{at}: {first} of shape {shape}; expected (number, 4)")
      for name in others:
        if np.shape(getattr(picture, name)) != shape[:1]:
          have = np.shape(getattr(picture, name))
          raise ValueError(f"{at}: {name} of shape {have} for {first} of shape {shape}")
    for name in ("labels", "true_labels"):
      values = np.asarray(getattr(picture, name))
      if values.size and not 0 <= values.min() <= values.max() < classes:
        raise ValueError(
            f"{at}: {name} from {values.min()} to {values.max()}; there are {classes} classes, from 0")
    for name in ("boxes", "scores", "true_boxes"):
      if not np.isfinite(getattr(picture, name)).all():
        raise ValueError(f"{at}: {name} that are not finite")
