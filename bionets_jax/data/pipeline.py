"""From the name of a data set to sharded batches on the devices: what the trainer calls.

Sets that are small live on the devices (resident.py); all others are streamed from the host
(stream.py); placement.py decides. Either way a batch is a pure function of (seed, step) and of
nothing else: not of the number of workers, processes or devices.
"""

import copy
import dataclasses
import math

from bionets_jax.data.bad_records import BadRecords
from bionets_jax.data.batches import ResidentBatches, cores, resolve_workers, stream_batches
from bionets_jax.data.faults import NO_BAD_RECORDS, Limit, TooManyBadRecords
from bionets_jax.data.grouped_order import GroupedEvalPlan, GroupedPlan
from bionets_jax.data.object_batches import ObjectsPlacement, place_objects
from bionets_jax.data.objects import ObjectsSource
from bionets_jax.data.order import BatchPlan, EvalPlan
from bionets_jax.data.placement import Placement, place
from bionets_jax.data.resident import ResidentSet, load
from bionets_jax.data.sources import Source, open_source
from bionets_jax.data.transforms import TenCrop


def make_pipeline(
    *,
    name,
    dir="",  # noqa: A002 (the config's field)
    train_split,
    eval_split,
    test_split="",
    train_transform="",
    eval_transform="",
    test_transform="",
    workers=-1,
    drop_remainder=False,
    max_bad_records=0,
    batch_size,
    eval_batch_size,
    seed,
    mesh,
):
  """Opens a data set for training, evaluation and, where there is a third split, the test.

  Args:
    name: of the set, as in `open_source`.
    dir: where the set is; '' for TFDS's default directory.
    train_split: e.g. 'train' or, for TFDS sets, 'train[:90%]'.
    eval_split: e.g. 'test', 'validation', 'train[90%:]'.
    test_split: likewise; '' for none.
    train_transform: e.g. 'random_resized_crop(224)|flip' (streamed) or 'pad_crop(4)|flip'
      (on the device); `parse_transforms` has the grammar, `placement` says which is where. Of a set for
      detection 'flip|letterbox(600, 1000)': OBJECT_TRANSFORMS, the last of them the letterbox.
    eval_transform: e.g. 'resize(256)|center_crop(224)'. Random only if there is a test_split: then
      drawn once per example, from the seed.
    test_transform: of the test_split, e.g. 'resize(256)|ten_crop(224)'; nothing random.
    workers: worker processes for streamed sets; 0 reads in threads of this process, -1 means
      one less than the cores, at most 16. Worker processes are spawned, so the main script
      needs `if __name__ == '__main__'`.
    drop_remainder: leave out the last, smaller batch of every epoch. For detection it has to be True.
    max_bad_records: how many records, over all splits, may be unreadable, undecodable or have a label out of
      range. In training others stand in for them, in evaluation they are left out (`BatchReader`).
    batch_size: global batch size; a multiple of the number of devices.
    eval_batch_size: likewise.
    seed: int in [0, 2**32), of order and augmentation.
    mesh: a Mesh with the one axis 'data', over all devices of all processes.

  Returns:
    A `Pipeline`.

  Raises:
    FileNotFoundError: the set is not there; says how to prepare it.
    ValueError: an argument that does not fit; says which would.
  """
  if tuple(mesh.axis_names) != ("data",):
    raise ValueError(f"The mesh must have the one axis 'data', it has {mesh.axis_names}.")
  if workers < -1:
    raise ValueError(f"workers must be -1 (automatic), 0 (threads) or more, got {workers}.")
  if test_transform and not test_split:
    raise ValueError(f"test_transform={test_transform!r} needs a test_split, and there is none.")
  limit = Limit(max_bad_records)
  train = open_source(name, train_split, dir)
  requests = [("train_transform", train_transform, train),
              ("eval_transform", eval_transform, open_source(name, eval_split, dir))]
  if test_split:
    requests.append(("test_transform", test_transform, open_source(name, test_split, dir)))
  for _, _, source in requests[1:]:
    _check_classes(train, source)
  objects = isinstance(train, ObjectsSource)
  if objects:
    _check_drop_remainder(train, drop_remainder)
    placements, groups = zip(*place_objects(requests), strict=True)
  else:
    placements = place(requests)
  _check_transforms(requests, placements)
  train_plan = (GroupedPlan(groups[0], batch_size, seed) if objects else
                BatchPlan(len(train), batch_size, seed, drop_remainder))
  _check_train_batches(train_plan, mesh.size)
  if eval_batch_size < 1 or eval_batch_size % mesh.size:
    raise ValueError(
        f"eval_batch_size={eval_batch_size} does not divide over {mesh.size} devices; use"
        f" {_or(_multiples_near(eval_batch_size, mesh.size))}."
    )
  parts = {}
  for i, ((field, _, source), placement) in enumerate(zip(requests, placements, strict=True)):
    plan = (train_plan if i == 0 else GroupedEvalPlan(groups[i], eval_batch_size) if objects else
            EvalPlan(len(source), eval_batch_size))
    parts[field.removesuffix("_transform")] = _Part(source, placement, plan)
  return Pipeline(parts, resolve_workers(workers), seed, mesh, limit)


@dataclasses.dataclass(frozen=True)
class _Part:
  """One split: its examples, how they are prepared, and in which order."""

  source: Source
  placement: Placement | ObjectsPlacement
  plan: BatchPlan | EvalPlan


class Pipeline:
  """Batches of one data set. Made by `make_pipeline`.

  Attributes:
    num_classes: int.
    class_names: tuple of str.
    image_shape: (h, w, c) of the training images, after the transforms; for detection of most of them.
    eval_image_shape: the same for evaluation; (10, h, w, c) if it ends in ten crops.
    test_image_shape: likewise; None without a test split.
    num_train: number of training examples.
    num_eval: number of evaluation examples.
    num_test: number of test examples; 0 without a test split.
    steps_per_epoch: int.
    resident: bool, whether the training set lives on the devices.
    resident_bytes: of all splits that live on the devices, on each of them.
    readers: worker processes, or threads of this one, that read what is streamed.
    bad_records: `BadRecords`, those that the batches so far had.
  """

  def __init__(self, parts, workers, seed, mesh, limit=NO_BAD_RECORDS):
    self._parts = parts
    self.bad_records = BadRecords(limit, {which: part.source for which, part in parts.items()})
    self._workers = workers
    self._seed = seed
    self._mesh = mesh
    self._resident_sets = {}
    train = parts["train"]
    self.resident = train.placement.resident
    self.class_names = train.source.class_names
    self.num_classes = train.source.num_classes
    self.num_train, self.num_eval, self.num_test = (
        len(parts[which].source) if which in parts else 0 for which in ("train", "eval", "test"))
    self.steps_per_epoch = train.plan.steps_per_epoch
    self.resident_bytes = sum(
        len(part.source) * math.prod(part.placement.host_shape)
        for part in parts.values() if part.placement.resident)
    self.readers = workers or cores()
    self.image_shape, self.eval_image_shape, self.test_image_shape = (
        parts[which].placement.image_shape if which in parts else None
        for which in ("train", "eval", "test"))

  def with_seed(self, seed):
    """Returns the pipeline that differs in the seed alone, of order and augmentation.

    The two share what they read from, what is on the devices (whichever loads it first) and what
    is compiled for it.

    Args:
      seed: int in [0, 2**32), else ValueError.
    """
    other = copy.copy(self)
    train = self._parts["train"]
    other._parts = self._parts | {
        "train": dataclasses.replace(train, plan=train.plan.with_seed(seed))
    }
    other._seed = seed
    other.bad_records = BadRecords(
        self.bad_records.limit, {which: part.source for which, part in self._parts.items()})
    return other

  def fingerprint(self):
    """Returns {'train_crc32': int, ...} of each split, that change with the examples or their order."""
    return {f"{which}_crc32": part.source.fingerprint() for which, part in self._parts.items()}

  def batch_sizes(self):
    """Returns the distinct training batch sizes that occur, the full one first: (128, 80)."""
    return self._parts["train"].plan.batch_sizes

  def abstract_batches(self):
    """Returns [{field: (shape, dtype)}], of each kind of training batch, the most frequent one first.

    For classification one of each size; for detection one of each static shape of the images.
    """
    train = self._parts["train"]
    return train.placement.abstract_batches(train.plan)

  def train_batches(self, start_step=0):
    """Iterates without end over the training batches from `start_step` on.

    Args:
      start_step: int >= 0. To resume is to start at the step that would have been next.

    Returns:
      An iterator with `close()`, which raises TooManyBadRecords, a ValueError, where there are more than
      max_bad_records. Batches are {'image': uint8 (B, h, w, c),
      'label': int32 (B,)}, for detection those of `batch_spec`; global arrays sharded over 'data'.
    """
    return self._batches("train", start_step)

  def train_keys(self, step):
    """Returns the keys of the training batch of `step` in the order of its rows; no example is read for it.

    Of one that `bad_records` knows of the key says that another is in its place.
    """
    part, bad = self._parts["train"], set(self.bad_records.state().get("train", ()))
    return [part.source.key(index) + " (bad; another stands in for it)" * (index in bad)
            for index in part.plan.indices(step)[1].tolist()]

  def eval_batches(self):
    """Iterates once over the evaluation split, in its own order, every example once.

    Returns:
      An iterator with `close()` over batches as in training plus 'mask', float32 (B,): 0 in the
      rows that fill up the last batch and of bad records; `skipped()` is the number of the latter. All
      batches have eval_batch_size rows. With ten crops 'image' is (B, 10, h, w, c).
    """
    return self._batches("eval")

  def test_batches(self):
    """Iterates once over the test split, as `eval_batches` does; ValueError if there is none."""
    if "test" not in self._parts:
      raise ValueError("The pipeline has no test split; give make_pipeline one.")
    return self._batches("test")

  def describe(self):
    """Returns a few lines of text: the set, its sizes, where it is, how it is read."""
    source, plan = self._parts["train"].source, self._parts["train"].plan
    in_none = plan.num_examples - plan.steps_per_epoch * plan.batch_size
    last = f", the last one {plan.remainder or 'dropped'}" if in_none else ""
    if isinstance(plan, GroupedPlan):
      last = f", each of one shape; {in_none:,} examples are in none"
    others = [
        f"{which:<10} {self._parts[which].source.split}: {len(self._parts[which].source):,} examples"
        for which in ("eval", "test") if which in self._parts
    ]
    return "\n".join([
        f"data set   {source.name} ({source.location})",
        f"train      {source.split}: {self.num_train:,} examples, {self.steps_per_epoch:,}"
        f" batches of {plan.batch_size:,} an epoch{last}",
        *others,
        f"images     {self._parts['train'].placement.describe(plan)}, {self.num_classes:,} classes",
        f"input      {self._how()}",
    ])

  def _how(self):
    """Says where the splits are and how they are read."""
    by = f"{self._workers} worker processes" if self._workers else f"{cores()} threads of this process"
    streamed = [which for which, part in self._parts.items() if not part.placement.resident]
    if not self.resident:
      return f"streamed by {by}"
    also = f"; {' and '.join(streamed)} streamed by {by}" if streamed else ""
    return f"resident: {self.resident_bytes / 2**20:.1f} MiB on every device, augmented there{also}"

  def _batches(self, which, start_step=0):
    part, bad = self._parts[which], self.bad_records

    def on_batch(step, faults):
      bad.note(which, faults, step + 1 if which == "train" else None)

    if part.placement.resident:
      resident = self._resident(which)
      bad.note(which, resident.faults.values())
      return ResidentBatches(resident, part.plan, start_step, self._seed, on_batch)
    return stream_batches(
        part.source, part.plan, part.placement, start_step, self._seed, self._workers, self._mesh, bad.limit,
        on_batch)

  def _resident(self, which):
    # Loaded on first use: an evaluation alone does not decode the training set.
    if which not in self._resident_sets:
      part = self._parts[which]
      try:
        images, labels, faults = load(
            part.source, part.placement.host, part.placement.host_shape, self.bad_records.limit)
      except TooManyBadRecords as error:
        self.bad_records.note(which, error.faults)  # they are listed too; it raises
        raise
      self._resident_sets[which] = ResidentSet(images, labels, self._mesh, part.placement.device, faults)
    return self._resident_sets[which]


def _check_transforms(requests, placements):
  """Raises ValueError for what is random in an evaluation, or of many crops in training."""
  has_test = len(requests) > 2
  for (field, text, _), placement in zip(requests, placements, strict=True):
    for transform in placement.transforms:
      if field == "train_transform":
        if isinstance(transform, TenCrop):
          raise ValueError(
              f"{field}={text!r}: {transform.usage} is for eval_transform and test_transform."
          )
      elif transform.is_random and not (field == "eval_transform" and has_test):
        unless = "" if has_test else " (with a test_split beside it, it may)"
        raise ValueError(
            f"{field}={text!r}: {transform.usage} is random, and evaluation must not be{unless}."
        )


def _check_drop_remainder(train, drop_remainder):
  if not drop_remainder:
    raise ValueError(
        f"{train.name} is a set for detection, whose batches all have one of a few shapes: set drop_remainder=True"
        " (what does not fill a batch is left out, other examples in every epoch).")


def _check_classes(train, evaluation):
  if train.class_names == evaluation.class_names:
    return
  only = [
      f"only in {s.split!r}: {', '.join(sorted(set(s.class_names) - set(o.class_names))[:5])}"
      for s, o in ((train, evaluation), (evaluation, train))
      if set(s.class_names) - set(o.class_names)
  ]
  raise ValueError(
      f"{train.name}: {train.split!r} has {train.num_classes} classes and {evaluation.split!r}"
      f" {evaluation.num_classes}, and they must be the same; {'; '.join(only)}."
  )


def _check_train_batches(plan, devices):
  """Raises ValueError unless every batch of the plan divides over the devices."""
  examples, batch_size = plan.num_examples, plan.batch_size
  if batch_size % devices:
    raise ValueError(
        f"batch_size={batch_size} does not divide over {devices} devices; use"
        f" {_or(_multiples_near(batch_size, devices))}."
    )
  if plan.remainder % devices:
    # A multiple of the devices leaves a remainder that divides only if the examples do.
    raise ValueError(
        f"{examples} training examples leave a last batch of {plan.remainder} beside those of"
        f" {batch_size}, which does not divide over {devices} devices (nor does any other batch"
        f" size's, as {examples} does not). Set drop_remainder=True, or use"
        f" {_or([n for n in (1, 2, 4, 8) if examples % n == 0])} devices."
    )


def _multiples_near(number, divisor):
  below = number // divisor * divisor
  return [n for n in (below, below + divisor) if n > 0]


def _or(options):
  return " or ".join(map(str, options))
