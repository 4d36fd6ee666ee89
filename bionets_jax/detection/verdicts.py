"""Which detections are right and which are wrong, by VOC's rules and by COCO's."""

from typing import NamedTuple

import numpy as np

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
LIMIT = 100  # of a class's detections in a picture that COCO looks at


class Pairs(NamedTuple):
  """Detections and objects of the same group (picture and class), with their overlap; P of them by detection.

  detection, thing: (P,) int; iou: (P,); group: (D,) of each detection; things: the number of objects.
  """

  detection: np.ndarray
  thing: np.ndarray
  iou: np.ndarray
  group: np.ndarray
  things: int


class Verdicts(NamedTuple):
  """By setting (S...) of overlap and area. Detections that are neither right nor wrong are left out.

  right, wrong: (S..., D) bool; counts: (S..., G) bool, the objects that are to be found.
  """

  right: np.ndarray
  wrong: np.ndarray
  counts: np.ndarray


def pairs_of(boxes: np.ndarray, group: np.ndarray, true_boxes: np.ndarray, true_group: np.ndarray) -> Pairs:
  """
  Args:
    boxes: (D, 4) of detections, by falling score within each group.
    group: (D,) int.
    true_boxes: (G, 4) of objects.
    true_group: (G,) int.
  """
  order = np.argsort(true_group, kind="stable")
  start, end = (np.searchsorted(true_group[order], group, side=side) for side in ("left", "right"))
  number = end - start
  detection = np.repeat(np.arange(len(group)), number)
  within = np.arange(len(detection)) - np.repeat(np.cumsum(number) - number, number)
  thing = order[start[detection] + within]
  return Pairs(detection, thing, _iou(boxes[detection], true_boxes[thing]), group, len(true_group))


def voc(pairs: Pairs, difficult: np.ndarray) -> Verdicts:
  """A detection asks for the object that it overlaps most, the first of several, if by 0.5 or more.

  It is right if none of a higher score has asked for that object, and neither right nor wrong if the object is
  difficult.
  """
  right, neither = np.zeros((2, len(pairs.group)), bool)
  if pairs.iou.size:
    start, of = _runs(pairs.detection)
    best = np.maximum.reduceat(pairs.iou, start)
    places = np.arange(len(of))
    first = np.minimum.reduceat(np.where(pairs.iou == best[of], places, len(of)), start)[best >= 0.5]
    detection, thing = pairs.detection[first], pairs.thing[first]
    neither[detection[difficult[thing]]] = True
    right[detection[np.unique(thing, return_index=True)[1]]] = True
  return Verdicts(right & ~neither, ~right & ~neither, ~difficult)


def coco(pairs: Pairs, boxes: np.ndarray, true_boxes: np.ndarray, difficult: np.ndarray) -> Verdicts:
  """Of areas x overlaps. By falling score a detection takes the one that it overlaps most of the objects left.

  Objects that are difficult or of another area are taken only if no other will do, and what takes them is neither
  right nor wrong; nor is what takes nothing and is of another area itself.
  """
  low, high = np.array(list(AREAS.values())).T[..., None]
  area, true_area = _area(boxes), _area(true_boxes)
  counts = ~difficult & (true_area >= low) & (true_area <= high)
  rank = _ranks(pairs.group)
  right, neither = _take(pairs, counts, rank)
  neither |= ((area < low) | (area > high))[:, None] | (rank >= LIMIT)
  shape = (len(AREAS), len(THRESHOLDS))
  return Verdicts(right, ~right & ~neither, np.broadcast_to(counts[:, None], (*shape, counts.shape[-1])))


def _take(pairs: Pairs, counts: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(right, took what does not count), each of areas x overlaps x detections."""
  thresholds = np.array(THRESHOLDS)[:, None]
  shape = (len(AREAS), len(THRESHOLDS))
  right, neither = np.zeros((2, *shape, len(rank)), bool)
  taken = np.zeros((*shape, pairs.things), bool)
  kept = (pairs.iou >= THRESHOLDS[0]) & (rank[pairs.detection] < LIMIT)
  detection, thing, iou = (x[kept] for x in (pairs.detection, pairs.thing, pairs.iou))
  # The best of a detection last, and of equal ones the last object, as COCO's own evaluation has it.
  order = np.lexsort((thing, iou, detection, rank[detection]))
  detection, thing, iou = (x[order] for x in (detection, thing, iou))
  # All groups at once, one detection of each in a round: those before it have taken theirs.
  bounds = np.flatnonzero(np.diff(rank[detection], prepend=-1, append=-1))
  for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
    what, size = thing[begin:end], end - begin
    start, _ = _runs(detection[begin:end])
    free = (iou[begin:end] >= thresholds) & ~taken[..., what]
    value = np.where(free, 1 + np.arange(size) + size * counts[:, None, what], 0)
    best = np.maximum.reduceat(value, start, axis=-1)
    *at, column = np.nonzero(best)
    of, chosen = detection[begin:end][start[column]], what[(best[(*at, column)] - 1) % size]
    taken[(*at, chosen)] = True
    counted = counts[at[0], chosen]
    right[(*at, of)], neither[(*at, of)] = counted, ~counted
  return right, neither


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(where each run of equal values starts, (N,) the number of the run that each is in)."""
  new = np.diff(values, prepend=values[:1] - 1) != 0
  return np.flatnonzero(new), np.cumsum(new) - 1


def _ranks(group: np.ndarray) -> np.ndarray:
  """(D,) how many of the same group are before each."""
  order = np.argsort(group, kind="stable")
  start, of = _runs(group[order])
  rank = np.empty(len(group), np.int64)
  rank[order] = np.arange(len(group)) - start[of] if len(group) else 0
  return rank


def _area(boxes: np.ndarray) -> np.ndarray:
  return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """(P,) of each of a (P, 4) with its b. 0 where both are empty."""
  sides = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0.0)
  common = sides[:, 0] * sides[:, 1]
  union = _area(a) + _area(b) - common
  return np.divide(common, union, out=np.zeros_like(union), where=union > 0)
