"""From the name of a data set to sharded batches on the devices: what the trainer calls.

Small sets of one image size live on the devices (resident.py); all others are streamed from
the host (stream.py). Either way a batch is a pure function of (seed, step) and of nothing else:
not of the number of workers, processes or devices.
"""

import itertools
import os

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bionets_jax.data.grammar import names_in, parse_transforms
from bionets_jax.data.order import BatchPlan, EvalPlan
from bionets_jax.data.prefetch import Prefetcher
from bionets_jax.data.resident import DEVICE_TRANSFORMS, ResidentSet, is_resident, load
from bionets_jax.data.sources import open_source
from bionets_jax.data.stream import BatchReader, read_ahead
from bionets_jax.data.transforms import HOST_TRANSFORMS, output_size

_DEVICE_BATCHES_AHEAD = 2
_MAX_WORKERS = 16


def make_pipeline(
    *,
    name,
    dir="",  # noqa: A002 (the config's field)
    train_split,
    eval_split,
    train_transform="",
    eval_transform="",
    workers=-1,
    drop_remainder=False,
    batch_size,
    eval_batch_size,
    seed,
    mesh,
):
  """Opens a data set for training and evaluation.

  Args:
    name: 'digits', 'folder' or a TFDS name (`open_source`).
    dir: where the set is; '' for TFDS's default directory.
    train_split: e.g. 'train' or, for TFDS sets, 'train[:90%]'.
    eval_split: e.g. 'test', 'validation', 'train[90%:]'.
    train_transform: e.g. 'random_resized_crop(224)|flip' (streamed) or 'pad_crop(4)|flip'
      (on the device); `parse_transforms` has the grammar.
    eval_transform: e.g. 'resize(256)|center_crop(224)'; nothing random.
    workers: worker processes for streamed sets; 0 reads in threads of this process, -1 means
      one less than the cores, at most 16. Worker processes are spawned, so the main script
      needs `if __name__ == '__main__'`.
    drop_remainder: leave out the last, smaller batch of every epoch.
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
  train = open_source(name, train_split, dir)
  evaluation = open_source(name, eval_split, dir)
  _check_classes(train, evaluation)
  resident = is_resident(train, evaluation)
  train_transforms = _transforms("train_transform", train_transform, resident, name)
  eval_transforms = _transforms("eval_transform", eval_transform, resident, name)
  for transform in eval_transforms:
    if transform.is_random:
      raise ValueError(
          f"eval_transform={eval_transform!r}: {transform.usage} is random, and evaluation must"
          " not be."
      )
  plan = BatchPlan(len(train), batch_size, seed, drop_remainder)
  _check_train_batches(plan, mesh.size)
  if eval_batch_size < 1 or eval_batch_size % mesh.size:
    raise ValueError(
        f"eval_batch_size={eval_batch_size} does not divide over {mesh.size} devices; use"
        f" {_or(_multiples_near(eval_batch_size, mesh.size))}."
    )
  return Pipeline(
      train, evaluation, plan, EvalPlan(len(evaluation), eval_batch_size),
      train_transforms, eval_transforms, resident, _resolve_workers(workers), seed, mesh,
  )


class Pipeline:
  """Batches of one data set. Made by `make_pipeline`.

  Attributes:
    num_classes: int.
    class_names: tuple of str.
    image_shape: (h, w, c) of the training images, after the transforms.
    eval_image_shape: the same for evaluation.
    num_train: number of training examples.
    num_eval: number of evaluation examples.
    steps_per_epoch: int.
    resident: bool, whether the set lives on the devices.
  """

  def __init__(self, train, evaluation, train_plan, eval_plan, train_transforms,
               eval_transforms, resident, workers, seed, mesh):
    self._train, self._eval = train, evaluation
    self._train_plan, self._eval_plan = train_plan, eval_plan
    self._train_transforms, self._eval_transforms = train_transforms, eval_transforms
    self._workers = workers
    self._seed = seed
    self._mesh = mesh
    self._sharding = NamedSharding(mesh, P("data"))
    self._resident_sets = {}
    self.resident = resident
    self.class_names = train.class_names
    self.num_classes = train.num_classes
    self.num_train, self.num_eval = len(train), len(evaluation)
    self.steps_per_epoch = train_plan.steps_per_epoch
    self.image_shape = self._shape("train_transform", train, train_transforms)
    self.eval_image_shape = self._shape("eval_transform", evaluation, eval_transforms)

  def _shape(self, field, source, transforms):
    height, width, channels = source.image_shape
    if self.resident:  # device transforms keep the size
      return height, width, channels
    size = output_size(transforms, (height, width))
    if None in size:
      raise ValueError(
          f"The images of {source.name} differ in size and {field} does not end in one fixed"
          " size; add center_crop(224) or random_resized_crop(224)."
      )
    return (*size, channels)

  def batch_sizes(self):
    """Returns the distinct training batch sizes that occur, the full one first: (128, 80)."""
    return self._train_plan.batch_sizes

  def train_batches(self, start_step=0):
    """Iterates without end over the training batches from `start_step` on.

    Args:
      start_step: int >= 0. To resume is to start at the step that would have been next.

    Returns:
      An iterator with `close()`. Batches are {'image': uint8 (B, h, w, c),
      'label': int32 (B,)}, global arrays sharded over 'data'.
    """
    if self.resident:
      return _ResidentBatches(self._resident("train"), self._train_plan, start_step)
    return self._stream(
        self._train, self._train_plan, self._train_transforms, self.image_shape, start_step,
        self._workers,
    )

  def eval_batches(self):
    """Iterates once over the evaluation split, in its own order, every example once.

    Returns:
      An iterator with `close()` over batches as in training plus 'mask', float32 (B,): 0 in the
      rows that fill up the last batch. All batches have eval_batch_size rows.
    """
    if self.resident:
      return _ResidentBatches(self._resident("eval"), self._eval_plan, 0)
    return self._stream(
        self._eval, self._eval_plan, self._eval_transforms, self.eval_image_shape, 0,
        min(self._workers, self._eval_plan.num_steps),
    )

  def describe(self):
    """Returns a few lines of text: the set, its sizes, where it is, how it is read."""
    height, width, channels = self.image_shape
    if self.resident:
      total = sum(len(s) * int(np.prod(s.image_shape)) for s in (self._train, self._eval))
      how = f"resident: {total / 2**20:.1f} MiB on every device, augmented there"
    elif self._workers:
      how = f"streamed by {self._workers} worker processes"
    else:
      how = f"streamed by {_cores()} threads of this process"
    remainder = self._train_plan.num_examples % self._train_plan.batch_size
    last = ""
    if remainder:
      last = f", the last one {self._train_plan.remainder or 'dropped'}"
    return "\n".join([
        f"data set   {self._train.name} ({self._train.location})",
        f"train      {self._train.split}: {self.num_train:,} examples, {self.steps_per_epoch:,}"
        f" batches of {self._train_plan.batch_size:,} an epoch{last}",
        f"eval       {self._eval.split}: {self.num_eval:,} examples",
        f"images     {height} x {width} x {channels}, {self.num_classes:,} classes",
        f"input      {how}",
    ])

  def _resident(self, which):
    # Loaded on first use: an evaluation alone does not decode the training set.
    if which not in self._resident_sets:
      if which == "train":
        source, transforms = self._train, self._train_transforms
      else:
        source, transforms = self._eval, self._eval_transforms
      images, labels = load(source)
      self._resident_sets[which] = ResidentSet(
          images, labels, self._mesh, transforms, self._seed
      )
    return self._resident_sets[which]

  def _stream(self, source, plan, transforms, image_shape, start_step, workers):
    shards = local_shards(self._mesh)
    reader = BatchReader(
        source, plan, transforms, image_shape, self._seed, shards, self._mesh.size
    )
    host = read_ahead(reader, start_step, workers, _cores())
    wanted = _fields(plan)

    def to_devices(local):
      # What comes from worker processes is shared memory. jax may keep a reference to it for as
      # long as it likes, so that it would still be there at exit; the copy lets it go at once.
      own = np.array if workers else np.asarray
      return {
          field: _global_array(own(local[field]), self._sharding, shards, self._mesh.size)
          for field in wanted
      }

    # Evaluation stops here, not in Grain: an exhausted Grain iterator keeps its last batches in
    # shared memory until the garbage collector runs, which at exit is too late.
    batches = itertools.islice(host, getattr(plan, "num_steps", None))
    return Prefetcher(batches, to_devices, _DEVICE_BATCHES_AHEAD, host.close)


class _ResidentBatches:
  """The batches of a plan from a `ResidentSet`; dispatch is asynchronous, nothing to prefetch."""

  def __init__(self, resident_set, plan, start_step):
    self._set, self._plan, self._step = resident_set, plan, start_step
    self._end = getattr(plan, "num_steps", None)

  def __iter__(self):
    return self

  def __next__(self):
    if self._step == self._end:
      raise StopIteration
    batch = self._set.batch(*self._plan.indices(self._step))
    self._step += 1
    return {field: batch[field] for field in _fields(self._plan)}

  def close(self):
    """Ends the iteration."""
    self._end = self._step


def _fields(plan):
  return ("image", "label", "mask") if isinstance(plan, EvalPlan) else ("image", "label")


def local_shards(mesh):
  """Returns the positions on the 'data' axis of the devices of this process, ascending."""
  process = jax.process_index()
  return tuple(
      i for i, device in enumerate(mesh.devices.flat) if device.process_index == process
  )


def _global_array(local, sharding, shards, num_shards):
  """Makes the global array out of this process's rows (the runs of `shards`, concatenated)."""
  rows = len(local) // len(shards)
  offsets = {shard * rows: i * rows for i, shard in enumerate(shards)}

  def shard_of(index):
    start = offsets[index[0].start or 0]
    return local[start:start + rows]

  return jax.make_array_from_callback(
      (rows * num_shards, *local.shape[1:]), sharding, shard_of
  )


def _transforms(field, text, resident, name):
  """Parses a config field with the table that fits the set."""
  here, there = HOST_TRANSFORMS, DEVICE_TRANSFORMS
  if resident:
    here, there = there, here
  for used in names_in(text):
    if used not in here and used in there:
      lives = "lives on the device" if resident else "is streamed from the host"
      other = "is streamed from the host" if resident else "lives on the device"
      raise ValueError(
          f"{field}={text!r}: {used} works on a set that {other}, and {name} {lives}. There it"
          f" can be: {', '.join(sorted(here))}."
      )
  try:
    return parse_transforms(text, here)
  except ValueError as error:
    raise ValueError(f"{field}: {error}") from error


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


def _cores():
  """Returns the number of cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _resolve_workers(workers):
  return min(_MAX_WORKERS, _cores() - 1) if workers == -1 else workers
