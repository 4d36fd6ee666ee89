"""Pictures with objects: letterbox, boxes under augmentation, batches of one shape, made-up sets."""

import pickle

import jax
import numpy as np
import pytest
from data_tools import digest, take
from jax.sharding import Mesh
from PIL import Image

from bionets_jax.data import make_pipeline, open_source
from bionets_jax.data.faults import Fault, Limit
from bionets_jax.data.grouped_order import GroupedEvalPlan, GroupedPlan
from bionets_jax.data.letterbox import Letterbox
from bionets_jax.data.object_batches import ObjectsReader, place_objects
from bionets_jax.data.objects import Annotation, FlipObjects, ObjectsSource, ScaleJitter
from bionets_jax.data.placement import place
from bionets_jax.data.shapes import KINDS, outline
from bionets_jax.data.stream import read_faults
from bionets_jax.data.transforms import example_rng

FLIP, PLAIN = "flip|letterbox(64, 96)", "letterbox(64, 96)"


def shapes(mesh, **overrides):
  arguments = dict(
      name="generated/shapes", train_split="train[:60]", eval_split="test[:21]", train_transform=FLIP,
      eval_transform=PLAIN, workers=0, drop_remainder=True, batch_size=4, eval_batch_size=4, seed=3, mesh=mesh,
  )
  return make_pipeline(**arguments | overrides)


# The letterbox.


def test_sizes_are_mmdetection_s():
  box = Letterbox(600, 1000)
  assert box.shapes == ((608, 832), (608, 1024), (832, 608), (1024, 608))
  random = np.random.RandomState(0)
  for height, width in [(375, 500), (500, 375), (333, 500), (1, 500), *random.randint(20, 1500, (300, 2)).tolist()]:
    # mmcv.imrescale with scale (1000, 600), written out.
    factor = min(1000 / max(height, width), 600 / min(height, width))
    expected = tuple(max(int(side * float(factor) + 0.5), 1) for side in (height, width))
    assert box.resized(height, width) == expected
    chosen = box.shapes[box.shape_of(height, width)]
    fitting = [shape for shape in box.shapes if shape[0] >= expected[0] and shape[1] >= expected[1]]
    assert chosen in fitting and np.prod(chosen) == min(map(np.prod, fitting))
  assert Letterbox(96, 128).shapes == ((96, 128), (128, 96))
  assert Letterbox(64, 64).shapes == ((64, 64),)
  # 4 : 3, which half of all photographs have, is in the smaller shapes, however it is rounded.
  for short in range(33, 700):
    box = Letterbox(short, 2 * short)
    assert box.shape_of(375, 500) == 0 and np.prod(box.shapes[box.shape_of(500, 375)]) == np.prod(box.shapes[0])


def test_the_picture_is_in_the_upper_left_corner():
  image = np.random.RandomState(0).randint(0, 256, (30, 50, 3)).astype(np.uint8)
  padded, size, scale = Letterbox(48, 64).fit(image)
  assert padded.shape == (64, 64, 3) and size.tolist() == [38, 64]
  np.testing.assert_allclose(scale, [38 / 30, 64 / 50], rtol=1e-6)
  expected = Image.fromarray(image).resize((64, 38), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(padded[:38], expected)
  assert not padded[38:].any()
  # A picture of the right size is not resampled.
  padded, size, scale = Letterbox(30, 50).fit(image)
  np.testing.assert_array_equal(padded[:30, :50], image)
  assert scale.tolist() == [1, 1] and padded.dtype == np.uint8 and not padded[:, 50:].any()


@pytest.mark.parametrize("arguments, message", [
    ((64, 48), "short must not be more than long"), ((0, 48), "whole number of pixels"),
    ((32, 48, "cubic"), "bilinear, bicubic, fast_bilinear"),
])
def test_impossible_letterboxes(arguments, message):
  with pytest.raises(ValueError, match=message):
    Letterbox(*arguments)


# Boxes under augmentation: rectangles of a colour each are found again by it.


def rectangles(seed):
  """A black picture with up to nine rectangles, none over another: (image, annotation)."""
  random = np.random.RandomState(seed)
  image = np.zeros((random.randint(60, 90), random.randint(60, 90), 3), np.uint8)
  boxes = []
  for number in range(9):
    y, x = (number // 3) * 20, (number % 3) * 20
    top, left = y + random.randint(5), x + random.randint(5)
    bottom, right = top + random.randint(1, 16), left + random.randint(1, 16)
    image[top:bottom, left:right] = 50 + 20 * number
    boxes.append((left, top, right, bottom))
  return image, Annotation(np.float32(boxes), np.arange(9, dtype=np.int32), np.arange(9) % 2 == 0)


def found_boxes(image):
  """Number of a rectangle -> the box of its pixels."""
  found = {}
  for number in range(9):
    rows, columns = (np.flatnonzero((image[..., 0] == 50 + 20 * number).any(axis)) for axis in (1, 0))
    if len(rows):
      found[number] = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
  return found


def test_flip_moves_the_boxes():
  flipped = 0
  for seed in range(20):
    image, annotation = rectangles(seed)
    new, moved = FlipObjects()(image, annotation, example_rng(0, 0, seed))
    assert {label: tuple(box) for label, box in zip(moved.labels.tolist(), moved.boxes.tolist(), strict=True)
            } == found_boxes(new)
    np.testing.assert_array_equal(moved.difficult, annotation.difficult)
    flipped += (new != image).any()
  assert 4 < flipped < 16


def test_scale_jitter_cuts_the_boxes_and_drops_what_is_gone():
  dropped, sizes = 0, []
  for seed in range(60):
    image, annotation = rectangles(seed)
    new, moved = ScaleJitter(0.5, 2.0, 0.4)(image, annotation, example_rng(0, 0, seed))
    visible = found_boxes(new)
    sizes.append(new.shape[0] / image.shape[0])
    assert abs(new.shape[1] / image.shape[1] - sizes[-1]) < 1 / 60  # a pixel
    kept = dict(zip(moved.labels.tolist(), moved.boxes.tolist(), strict=True))
    for number, box in zip(annotation.labels.tolist(), annotation.boxes, strict=True):
      left, top, right, bottom = visible.get(number, (0, 0, 0, 0))
      share = (right - left) * (bottom - top) / np.prod(box[2:] - box[:2])
      assert (number in kept) == (share >= 0.4), (seed, number)
      if number in kept:
        assert tuple(kept[number]) == visible[number]
        assert moved.difficult[list(kept).index(number)] == (number % 2 == 0)
      dropped += number not in kept
  assert dropped > 50 and min(sizes) < 0.6 and max(sizes) > 1.7


def test_scale_jitter_s_arguments():
  for arguments in ((0.1, 1), (1, 5), (1.2, 0.9), (0.9, 1.1, 2)):
    with pytest.raises(ValueError, match="low|high|least"):
      ScaleJitter(*arguments)


# The order.


def test_every_training_batch_is_of_one_group():
  groups = np.random.RandomState(1).choice(4, 103, p=[0.5, 0.3, 0.18, 0.02])
  plan = GroupedPlan(groups, 8, 5)
  counts = np.bincount(groups, minlength=4)
  assert plan.steps_per_epoch == (counts // 8).sum() == sum(map(plan.batches_of, range(4)))
  assert plan.left_out == {3: counts[3]} and plan.batch_sizes == (8,)
  epochs = []
  for epoch in range(3):
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    batches = [plan.indices(step) for step in steps]
    assert {number for number, _ in batches} == {epoch}
    for step, (_, indices) in zip(steps, batches, strict=True):
      assert len(indices) == 8 and set(groups[indices]) == {plan.group(step)}
    epochs.append(np.concatenate([indices for _, indices in batches]))
    assert len(set(epochs[-1].tolist())) == len(epochs[-1])
    seen = np.bincount(groups[epochs[-1]], minlength=4)
    np.testing.assert_array_equal(seen, counts // 8 * 8)
  assert len({tuple(epoch) for epoch in epochs}) == 3
  assert len({frozenset(epoch.tolist()) for epoch in epochs}) > 1  # other tails
  order = [plan.group(step) for step in range(plan.steps_per_epoch)]
  assert order != sorted(order)
  copy = pickle.loads(pickle.dumps(plan))
  np.testing.assert_array_equal(copy.indices(7)[1], plan.indices(7)[1])
  assert (plan.with_seed(6).indices(0)[1] != plan.indices(0)[1]).any()
  np.testing.assert_array_equal(plan.with_seed(6).with_seed(5).indices(3)[1], plan.indices(3)[1])
  # What can stand in for an example: each other one of its group, once.
  step, group = 4, plan.group(4)
  others = list(plan.following(step, 2))
  assert sorted([*others, plan.indices(step)[1][2]]) == np.flatnonzero(groups == group).tolist()
  assert others[:5] == plan.indices(step)[1][3:].tolist()


def test_evaluation_has_every_example_once():
  groups = np.array([1, 0, 1, 1, 2, 1, 1, 0])
  plan = GroupedEvalPlan(groups, 3)
  batches = [plan.indices(step)[1].tolist() for step in range(plan.num_steps)]
  assert batches == [[1, 7, -1], [0, 2, 3], [5, 6, -1], [4, -1, -1]]
  assert [plan.group(step) for step in range(4)] == [0, 1, 1, 2]
  assert plan.indices(99)[1].tolist() == [-1] * 3


def test_a_batch_that_no_group_fills_is_refused():
  with pytest.raises(ValueError, match="batch_size=4 is more than the 3 .* batch_size <= 3"):
    GroupedPlan([0, 0, 1, 1, 1], 4, 0)


# Batches.


def test_batches_hold_the_planned_examples(mesh):
  pipeline = shapes(mesh)
  source = open_source("generated/shapes", "train[:60]")
  box = Letterbox(64, 96)
  plan = GroupedPlan([box.shape_of(*size) for size in source.sizes], 4, 3)
  kinds = pipeline.abstract_batches()
  assert pipeline.steps_per_epoch == plan.steps_per_epoch and pipeline.batch_sizes() == (4,)
  assert kinds[0]["image"] == ((4, 64, 96, 3), np.uint8) and pipeline.image_shape == (64, 96, 3)
  assert [kind["image"][0] for kind in kinds] == [(4, 64, 96, 3), (4, 96, 64, 3)]
  assert pipeline.num_train == 60 and pipeline.class_names == KINDS and not pipeline.resident
  shown = set()
  for step, batch in zip(range(2, 17), take(pipeline.train_batches(2), 15), strict=True):
    assert {field: (array.shape, array.dtype) for field, array in batch.items()} in kinds
    shown.add(batch["image"].shape)
    epoch, indices = plan.indices(step)
    np.testing.assert_array_equal(batch["index"], indices)
    for row, index in enumerate(indices.tolist()):
      image, annotation, _ = source.read(index)
      image, annotation = FlipObjects()(image, annotation, example_rng(3, epoch, index))
      padded, size, scale = box.fit(image)
      np.testing.assert_array_equal(batch["image"][row], padded)
      np.testing.assert_array_equal(batch["size"][row], size)
      count = len(annotation.labels)
      assert batch["present"][row].tolist() == [True] * count + [False] * (8 - count)
      np.testing.assert_allclose(batch["boxes"][row, :count], annotation.boxes * np.tile(scale[::-1], 2), rtol=1e-6)
      np.testing.assert_array_equal(batch["label"][row, :count], annotation.labels)
      np.testing.assert_array_equal(batch["difficult"][row, :count], annotation.difficult)
      assert not batch["boxes"][row, count:].any() and not batch["difficult"][row, count:].any()
  assert len(shown) == 2


def test_evaluation_is_exact(mesh):
  pipeline = shapes(mesh)
  batches = take(pipeline.eval_batches(), 99)
  index = np.concatenate([batch["index"] for batch in batches])
  mask = np.concatenate([batch["mask"] for batch in batches])
  assert sorted(index[index >= 0].tolist()) == list(range(21)) and len(batches) == 6  # of 16 and 5
  np.testing.assert_array_equal(mask, index >= 0)
  source = open_source("generated/shapes", "test[:21]")
  for batch in batches:
    assert len(set(batch["image"].shape[1:3])) == 2 and batch["image"].shape[0] == 4
    for row in range(4):
      if batch["index"][row] < 0:
        assert not any(batch[field][row].any() for field in batch if field != "index")
        continue
      annotation = source.read(int(batch["index"][row]))[1]
      there = batch["present"][row]
      original = batch["boxes"][row][there] / np.tile(batch["scale"][row][::-1], 2)
      np.testing.assert_allclose(original, annotation.boxes, atol=1e-4)


def test_neither_workers_nor_devices_nor_processes_change_a_batch(mesh):
  text = "flip|scale_jitter(0.7, 1.4)|letterbox(64, 96)"
  pipeline = shapes(mesh, train_transform=text)
  expected = digest(take(pipeline.train_batches(5), 4))
  four = Mesh(np.array(jax.devices()[:4]), ("data",))
  several = take(shapes(four, train_transform=text).train_batches(5), 4)
  assert digest(several) == expected
  assert digest(take(shapes(mesh, train_transform=text, workers=1).train_batches(5), 4)) == expected
  assert digest(take(shapes(mesh, train_transform=text, seed=4).with_seed(3).train_batches(5), 4)) == expected
  source = open_source("generated/shapes", "train[:60]")
  (placement, groups), = place_objects([("train_transform", text, source)])
  for plan in (GroupedPlan(groups, 4, 3), GroupedEvalPlan(groups, 4)):
    whole, *parts = (ObjectsReader(pickle.loads(pickle.dumps(source)), plan, placement, 3, shards, 4, Limit())
                     for shards in ([0, 1, 2, 3], [0, 3], [1, 2]))
    a, b = (part[6] for part in parts)
    assert digest([whole[6]]) == digest([{
        field: np.concatenate([a[field][:1], b[field], a[field][1:]]) for field in a}])
  assert digest([{f: whole[6][f] for f in whole.fields}]) == digest([whole[6]])  # evaluation's include the mask
  assert whole.batch_bytes == 4 * (64 * 96 * 3 + 8 * (16 + 4 + 1 + 1) + 8 + 8 + 4)


class Faulty(ObjectsSource):
  """Twelve pictures; some of them cannot be used."""

  name, split, location, class_names, most_objects = "faulty", "train", "here", ("a", "b"), 2
  sizes = np.int32([(64, 96), (96, 64)] * 5 + [(64, 96), (0, 0)])
  bad = {0: "image", 3: "label", 4: "box", 6: "size", 11: "unknown"}

  def __len__(self):
    return 12

  def read(self, index):
    kind = self.bad.get(index)
    size = (60, 96) if kind == "size" else (64, 96) if kind == "unknown" else tuple(self.sizes[index])
    image = b"none" if kind == "image" else np.full((*size, 3), index + 1, np.uint8)
    box = (1, 2, 97, 9) if kind == "box" else (1, 2, 5, 9)
    annotation = Annotation(np.float32([box]), np.int32([2 if kind == "label" else 1]), np.array([False]))
    return image, annotation, self.key(index)


def test_bad_records_are_stood_in_for_by_others_of_their_shape():
  source = Faulty()
  (placement, groups), = place_objects([("train_transform", PLAIN, source)])
  plan = GroupedPlan(groups, 3, 0)
  reader = ObjectsReader(source, plan, placement, 0, [0], 1, Limit(5))
  met = {}
  for step in range(plan.steps_per_epoch):
    batch = reader[step]
    planned, used = plan.indices(step)[1], batch["index"]
    assert set(groups[used]) == {plan.group(step)} and not set(used.tolist()) & set(source.bad)
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], used + 1)
    for fault in read_faults(batch):
      met[fault.index] = fault.reason
      assert fault.stand_in == source.key(int(used[planned.tolist().index(fault.index)]))
  expected = {0: "not a readable image", 3: "label 2 is not in", 4: "outside of the image", 6: "had .64, 96. when",
              11: "had .0, 0. when"}
  assert met and set(met) <= set(expected)
  evaluation = ObjectsReader(source, GroupedEvalPlan(groups, 4), placement, 0, [0], 1, Limit(5))
  faults = {}
  for step in range(4):
    batch = evaluation[step]
    np.testing.assert_array_equal(batch["mask"], batch["index"] >= 0)
    faults |= {fault.index: fault for fault in read_faults(batch)}
  assert set(faults) == set(expected)
  for index, fault in faults.items():
    assert isinstance(fault, Fault)
    with pytest.raises(ValueError, match=expected[index]):
      raise ValueError(fault.reason)
  with pytest.raises(ValueError, match="Example faulty train.0.: not a readable image"):
    ObjectsReader(source, GroupedEvalPlan(groups, 4), placement, 0, [0], 1, Limit(0))[0]


@pytest.mark.parametrize("changes, message", [
    (dict(drop_remainder=False), "set drop_remainder=True"),
    (dict(train_transform="flip"), "train_transform='flip'.*end in one letterbox, e.g. 'flip.letterbox"),
    (dict(train_transform="letterbox(64, 96)|flip"), "end in one letterbox"),
    (dict(eval_transform=""), "eval_transform=''.*end in one letterbox"),
    (dict(eval_transform=FLIP), "eval_transform=.*flip is random"),
    (dict(train_transform="leterbox(64, 96)"), "train_transform: .*Did you mean 'letterbox'"),
    (dict(train_transform="letterbox(48)"), "does not fit letterbox.short, long"),
    (dict(batch_size=60), "batch_size=60 is more than the 5. training examples"),
    (dict(name="generated/shape"), "Did you mean 'shapes'"),
    (dict(train_split="trian"), "Did you mean 'train'"),
])
def test_refusals(mesh, changes, message):
  with pytest.raises(ValueError, match=message):
    shapes(mesh, **changes)


def test_a_set_for_detection_is_none_for_classification():
  with pytest.raises(ValueError, match="--transform: generated/shapes is a set for detection"):
    place([("--transform", "resize(8)", open_source("generated/shapes", "test"))])


def test_what_is_said_about_the_batches(mesh):
  text = shapes(mesh, train_split="train[:22]").describe()
  assert "22 examples, 5 batches of 4" in text and "2 examples are in none" in text
  assert "64 x 96 (5 batches), up to 8 objects; the 2 of 96 x 64 fill no batch" in text
  kind, = make_pipeline(name="digits", train_split="train", eval_split="test", batch_size=1442, eval_batch_size=5,
                        seed=0, mesh=mesh).abstract_batches()
  assert kind == {"image": ((1442, 8, 8, 1), np.uint8), "label": ((1442,), np.int32)}


# The made-up pictures.


def test_shapes_are_deterministic_and_of_their_form():
  source = open_source("generated/shapes", "train")
  again = pickle.loads(pickle.dumps(open_source("generated/shapes", "test[:5]+train[:50]")))
  assert len(source) == 2000 and source.num_classes == 5 and len(set(map(tuple, source.sizes.tolist()))) == 4
  hidden = []
  for index in range(50):
    image, annotation, key = source.read(index)
    other = again.read(index + 5)
    np.testing.assert_array_equal(image, other[0])
    assert key == other[2]
    assert image.shape == (*source.sizes[index], 3) and 2 <= len(annotation.labels) <= source.most_objects
    low, high = annotation.boxes[:, :2], annotation.boxes[:, 2:]
    assert (low >= 0).all() and (high <= image.shape[1::-1]).all() and (high - low >= 12).all()
    assert not annotation.difficult[-1]  # nothing is before the object that was painted last
    hidden.extend(annotation.difficult.tolist())
  assert 0 < np.mean(hidden) < 0.15
  assert source.read(0)[0].tobytes() != open_source("generated/shapes", "test").read(0)[0].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_outlines_fill_their_boxes(kind):
  for height, width in ((16, 16), (21, 33), (64, 47)):
    mask = outline(kind, height, width)
    # The exact areas, in parts of the box.
    share = dict(disc=np.pi / 4, ring=np.pi / 4 * 0.7, triangle=0.5, square=1, cross=2 * 0.34 - 0.34 ** 2)[kind]
    assert abs(mask.mean() - share) < 0.07
    rows, columns = mask.any(1), mask.any(0)
    assert rows[2:].all() and columns.all() and rows[-1]  # of the triangle's point little is seen
