"""Batches of images with their objects: what they consist of, and how each split's are made.

All images of a batch end in one of the letterbox's static shapes, and all batches have room for the same number
of objects, so that a detector is compiled once for each shape and memory is bounded by the largest.
"""

import dataclasses

import numpy as np

from bionets_jax.data.decode import decode
from bionets_jax.data.grammar import parse_transforms
from bionets_jax.data.letterbox import Letterbox
from bionets_jax.data.objects import OBJECT_TRANSFORMS, check_annotation
from bionets_jax.data.order import EvalPlan
from bionets_jax.data.stream import BatchReader, read_prepared
from bionets_jax.data.transforms import example_rng

_ROOM = 8  # the number of objects that a batch has room for is a multiple of it


def batch_spec(rows, shape, room):
  """Returns {field: (shape, dtype)} of a batch.

  image: uint8 (rows, H, W, 3), zero where padded.
  boxes: float32 (rows, room, 4), in pixels of `image`; zero where there is no object, as label and difficult.
  label: int32 (rows, room).
  difficult: bool (rows, room).
  present: bool (rows, room), where there is an object.
  size: float32 (rows, 2), height and width of what is no padding.
  scale: float32 (rows, 2), what y and x were multiplied by from the image as it was read; after scale_jitter
    from its window.
  index: int32 (rows,), number of the example in its split; -1 for none.
  """
  spec = {"image": ((rows, *shape, 3), np.uint8), "boxes": ((rows, room, 4), np.float32),
          "label": ((rows, room), np.int32), "difficult": ((rows, room), np.bool_),
          "present": ((rows, room), np.bool_), "size": ((rows, 2), np.float32),
          "scale": ((rows, 2), np.float32), "index": ((rows,), np.int32)}
  return {field: (size, np.dtype(kind)) for field, (size, kind) in spec.items()}


@dataclasses.dataclass(frozen=True)
class ObjectsPlacement:
  """How the images of one split are prepared; what `Placement` is for classification.

  Attributes:
    host: transforms of OBJECT_TRANSFORMS before the letterbox, in order.
    letterbox: the `Letterbox` that ends them.
    room: int, for how many objects a batch has room.
    image_shape: (h, w, 3), the most frequent of the split's shapes.
  """

  host: tuple
  letterbox: Letterbox
  room: int
  image_shape: tuple

  resident = False

  @property
  def transforms(self):
    """All transforms, in order."""
    return (*self.host, self.letterbox)

  def reader(self, source, plan, seed, shards, num_shards, limit):
    """Returns the `ObjectsReader` of a split; the arguments are its own."""
    return ObjectsReader(source, plan, self, seed, shards, num_shards, limit)

  def abstract_batches(self, plan):
    """Returns [{field: (shape, dtype)}], of each shape of a `GroupedPlan`'s images, the most frequent first."""
    return [batch_spec(plan.batch_size, self.letterbox.shapes[group], self.room) for group in _by_frequency(plan)]

  def describe(self, plan):
    """Returns the shapes of training's images in words, and what is left out for want of a full batch."""
    kinds = [f"{_text(self.letterbox.shapes[group])} ({plan.batches_of(group):,} batches)"
             for group in _by_frequency(plan)]
    left = [f"; the {count:,} of {_text(self.letterbox.shapes[group])} fill no batch and are left out"
            for group, count in plan.left_out.items()]
    return " and ".join(kinds) + f", up to {self.room} objects{''.join(left)}"


def _by_frequency(plan):
  groups = [group for group in np.unique(plan.groups).tolist() if plan.batches_of(group)]
  return sorted(groups, key=plan.batches_of, reverse=True)


def _text(shape):
  return " x ".join(map(str, shape))


class ObjectsReader(BatchReader):
  """`BatchReader` of a split of an `ObjectsSource`: batches of `batch_spec`, with 'mask' besides."""

  def __init__(self, source, plan, placement, seed, shards, num_shards, limit):
    """
    Args:
      source: an `ObjectsSource`.
      plan: a `GroupedPlan` or `GroupedEvalPlan` over it, of the groups of `place_objects`.
      placement: an `ObjectsPlacement`.
      seed, shards, num_shards, limit: as in `BatchReader`.
    """
    super().__init__(source, plan, placement.host, placement.image_shape, seed, shards, num_shards, limit)
    self._letterbox = placement.letterbox
    self._room = placement.room

  @property
  def batch_bytes(self):
    """Bytes of this process's part of the largest batch."""
    return max(sum(np.prod(size, dtype=int) * kind.itemsize
                   for size, kind in batch_spec(self._rows, shape, self._room).values())
               for shape in self._letterbox.shapes)

  @property
  def fields(self):
    """Names of what a batch consists of."""
    return (*batch_spec(1, (1, 1), 1), *(["mask"] if isinstance(self._plan, EvalPlan) else []))

  def _empty(self, step, rows):
    spec = batch_spec(rows, self._letterbox.shapes[self._plan.group(step)], self._room)
    batch = {field: np.zeros(*each) for field, each in spec.items()}
    batch["index"][:] = -1
    return batch

  def _examples(self, step, epoch, indices):
    shape = self._letterbox.shapes[self._plan.group(step)]

    def prepared(index, image, annotation, key):
      rng = example_rng(self._seed, epoch, index)
      return self._prepared(index, decode(image, 3, key), annotation, rng, shape)

    return read_prepared(self._source, indices, prepared, step)

  def _prepared(self, index, image, annotation, rng, shape):
    """Returns what an example consists of, in the order of `batch_spec`."""
    known = tuple(self._source.sizes[index].tolist())
    if image.shape[:2] != known:
      raise ValueError(
          f"the image has {image.shape[:2]} rows and columns, and had {known} when the set was opened.")
    check_annotation(annotation, known, self._source.num_classes)
    for transform in self._transforms:
      image, annotation = transform(image, annotation, rng)
    padded, size, scale = self._letterbox.fit(image, shape)
    boxes = annotation.boxes * scale[[1, 0, 1, 0]]
    present = np.arange(self._room) < len(boxes)

    def in_rows(values):
      return np.concatenate([values, np.zeros((self._room - len(values), *values.shape[1:]), values.dtype)])

    objects = map(in_rows, (boxes, annotation.labels, annotation.difficult))
    return padded, *objects, present, size, scale, index


def place_objects(requests):
  """Says how the images of every split are prepared, and of which group each of them is.

  Args:
    requests: as in `place`, of `ObjectsSource`s.

  Returns:
    A list of (`ObjectsPlacement`, groups int (n,)), one for each split.

  Raises:
    ValueError: transforms that do not exist, or do not end in the one letterbox; names the field.
  """
  most = max(source.most_objects for _, _, source in requests)
  room = max(-(-most // _ROOM), 1) * _ROOM
  return [_place(field, text, source, room) for field, text, source in requests]


def _place(field, text, source, room):
  try:
    transforms = parse_transforms(text, OBJECT_TRANSFORMS)
  except ValueError as error:
    raise ValueError(f"{field}: {error}") from error
  if [isinstance(t, Letterbox) for t in transforms] != [False] * (len(transforms) - 1) + [True]:
    raise ValueError(f"{field}={text!r}: {source.name} is a set for detection, whose transforms end in one"
                     " letterbox, e.g. 'flip|letterbox(600, 1000)'.")
  *host, letterbox = transforms
  # A record that could not be read has no size; whatever its group, others stand in for it.
  shapes = [letterbox.shape_of(*size) if min(size) else 0 for size in source.sizes.tolist()]
  groups = np.asarray(shapes, np.int32)
  shape = letterbox.shapes[np.bincount(groups).argmax()]
  return ObjectsPlacement(tuple(host), letterbox, room, (*shape, 3)), groups
