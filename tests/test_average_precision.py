"""Average precision against pycocotools, and against VOC's rules written out as loops."""

import math
import pathlib

import numpy as np
import pytest
from fixtures.random_scenes import CLASSES, SCENES, scene

from bionets_jax.detection.average_precision import Picture, average_precision

GOLDEN = np.load(pathlib.Path(__file__).parent / "fixtures" / "average_precision.npz")
NAMES = tuple("abcd"[:CLASSES])


@pytest.mark.parametrize("name", SCENES)
def test_equals_pycocotools(name):
  found = average_precision([Picture(*row) for row in scene(name)], NAMES)
  for measure in ("ap", "ap75", "ap_small", "ap_medium", "ap_large"):
    np.testing.assert_allclose(found.of_classes[measure], GOLDEN[f"{name}/{measure}"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SCENES)
def test_equals_voc_written_out(name):
  rows = scene(name)
  found = average_precision([Picture(*row) for row in rows], NAMES)
  for c in range(CLASSES):
    eleven, area = written_out(rows, c)
    np.testing.assert_allclose(found.of_classes["ap50_voc07"][c], eleven, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.of_classes["ap50"][c], area, rtol=0, atol=1e-10)
    assert found.objects[c] == sum(((row[5] == c) & ~row[6]).sum() for row in rows)


def written_out(rows, c):
  """(11 points, area) in percent as VOC's kit has them, whose corners are the first and the last pixel, from 1."""
  def pixels(box):
    return box[0] + 1, box[1] + 1, box[2], box[3]

  def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
      return 0.0
    both = width * height
    return both / ((a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1) - both)

  objects = {row[0]: [[pixels(box), hard, False] for box, label, hard in zip(row[4], row[5], row[6], strict=True)
                      if label == c] for row in rows}
  number = sum(not one[1] for held in objects.values() for one in held)
  if not number:
    return math.nan, math.nan
  detections = sorted((-row[2][i], row[0], i, pixels(row[1][i]))
                      for row in rows for i in range(len(row[2])) if row[3][i] == c)
  right = wrong = 0
  recall, precision = [], []
  for _, index, _, box in detections:
    best, of = -1.0, None
    for one in objects[index]:
      if overlap(box, one[0]) > best:
        best, of = overlap(box, one[0]), one
    if best >= 0.5 and of[1]:
      continue
    if best >= 0.5 and not of[2]:
      of[2] = True
      right += 1
    else:
      wrong += 1
    recall.append(right / number)
    precision.append(right / (right + wrong))
  eleven = sum(max([p for r, p in zip(recall, precision, strict=True) if r >= t], default=0.0)
               for t in np.arange(0.0, 1.1, 0.1)) / 11
  area, before = 0.0, 0.0
  for i, r in enumerate(recall):
    area += (r - before) * max(precision[i:])
    before = r
  return 100 * eleven, 100 * area


def picture(index, detections, objects):
  """Of squares of 10 pixels at multiples of 100: (place, score) and (place, difficult)."""
  return Picture(
      index, np.array([[100 * at, 0, 100 * at + 10, 10] for at, _ in detections]).reshape(-1, 4),
      np.array([score for _, score in detections]), np.zeros(len(detections), int),
      np.array([[100 * at, 0, 100 * at + 10, 10] for at, _ in objects]).reshape(-1, 4), np.zeros(len(objects), int),
      np.array([hard for _, hard in objects], bool))


def test_by_hand():
  """Right, wrong, right of three objects: precision 1, 1/2, 2/3 at recalls 1/3, 1/3, 2/3."""
  pictures = [picture(0, [(0, 0.9), (5, 0.8)], [(0, 0), (1, 0)]), picture(1, [(0, 0.7)], [(0, 0)])]
  found = average_precision(pictures, "a")
  assert found.means["ap50"] == pytest.approx(100 * (1 / 3 + 2 / 9))
  assert found.means["ap50_voc07"] == pytest.approx(100 * (4 + 3 * 2 / 3) / 11)
  assert found.means["ap"] == pytest.approx(found.means["ap75"]) == pytest.approx(100 * (34 + 33 * 2 / 3) / 101)


def test_difficult_objects_count_neither_way():
  plain = average_precision([picture(0, [(0, 0.9)], [(0, 0)])], "a")
  hard = average_precision([picture(0, [(1, 0.95), (0, 0.9), (1, 0.8)], [(0, 0), (1, 1), (2, 1)])], "a")
  assert plain.means["ap50"] == hard.means["ap50"] == hard.means["ap"] == 100.0 and hard.objects.tolist() == [1]


def test_an_object_is_found_once():
  found = average_precision([picture(0, [(0, 0.9), (0, 0.8), (1, 0.7)], [(0, 0), (1, 0)])], "a")
  assert found.means["ap50"] == pytest.approx(100 * (1 / 2 + 1 / 2 * 2 / 3))


def test_detections_of_equal_scores_count_by_index_whatever_the_order_of_pictures():
  right, wrong = picture(1, [(0, 0.5)], [(0, 0)]), picture(2, [(1, 0.5)], [])
  assert average_precision([right, wrong], "a").means["ap50"] == 100.0
  assert average_precision([wrong, right], "a").means["ap50"] == 100.0
  assert average_precision([wrong._replace(index=0), right], "a").means["ap50"] == 50.0


def test_classes_without_objects_are_in_no_mean():
  found = average_precision([picture(0, [(0, 0.9)], [(0, 0)])], NAMES)
  assert all(math.isnan(values[1]) for values in found.of_classes.values())
  assert found.means["ap50"] == found.means["ap"] == found.means["ap_small"] == 100.0
  assert math.isnan(found.means["ap_large"])
  assert all(math.isnan(value) for value in average_precision([], NAMES).means.values())


@pytest.mark.parametrize("change, message", [
    ({"scores": np.zeros(2)}, r"picture 7: scores of shape \(2,\) for boxes of shape \(1, 4\)"),
    ({"true_boxes": np.zeros(4)}, r"picture 7: true_boxes of shape \(4,\); expected \(number, 4\)"),
    ({"labels": np.array([1])}, "picture 7: labels from 1 to 1; there are 1 classes, from 0"),
    ({"boxes": np.full((1, 4), np.nan)}, "picture 7: boxes that are not finite"),
    ({"index": 3}, "picture 3 is given twice")])
def test_refuses(change, message):
  good = picture(7, [(0, 0.9)], [(0, 0)])
  with pytest.raises(ValueError, match=message):
    average_precision([good._replace(**change), good._replace(index=3)], "a")
