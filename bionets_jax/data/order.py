"""Which examples are in which batch: pure functions of (seed, step), without any state.

Resuming is asking for a later step. Every process can compute every batch's indices, so the
order does not depend on how many processes, workers or devices there are.
"""

import threading

import numpy as np


class BatchPlan:
  """The order of training: epochs of shuffled examples, cut into batches.

  Every epoch visits each example once, in an order of its own. With `drop_remainder` the tail
  of the permutation that does not fill a batch is left out (another tail every epoch); without,
  the last batch of the epoch is smaller. A batch never spans two epochs.

  The shuffle is `numpy.random.RandomState`'s, which NumPy has frozen: the order of a run can be
  reproduced with any version.
  """

  def __init__(self, num_examples, batch_size, seed, drop_remainder):
    """Makes the plan.

    Args:
      num_examples: int >= 1.
      batch_size: int >= 1.
      seed: int in [0, 2**32).
      drop_remainder: bool.

    Raises:
      ValueError: any of these is out of range, or no batch could be filled.
    """
    if num_examples < 1:
      raise ValueError(f"num_examples must be at least 1, got {num_examples}.")
    if batch_size < 1:
      raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if not 0 <= seed < 2**32:
      raise ValueError(f"seed must be in [0, 2**32), got {seed}.")
    if drop_remainder and batch_size > num_examples:
      raise ValueError(
          f"batch_size={batch_size} is larger than the {num_examples} training examples, and"
          f" drop_remainder=True leaves no batch. Use batch_size <= {num_examples} or"
          " drop_remainder=False."
      )
    self.num_examples = num_examples
    self.batch_size = batch_size
    self.seed = seed
    self._drop_remainder = drop_remainder
    full, rest = divmod(num_examples, batch_size)
    self.remainder = 0 if drop_remainder else rest
    self.steps_per_epoch = full + bool(self.remainder)
    self._permutations = {}
    self._lock = threading.Lock()

  @property
  def batch_sizes(self):
    """The distinct batch sizes that occur, the full one first: (128, 80)."""
    if self.num_examples < self.batch_size:
      return (self.remainder,)
    return (self.batch_size, self.remainder) if self.remainder else (self.batch_size,)

  def with_seed(self, seed):
    """Returns the plan that differs in the seed alone."""
    return BatchPlan(self.num_examples, self.batch_size, seed, self._drop_remainder)

  def _permutation(self, epoch):
    with self._lock:
      if epoch not in self._permutations:
        # Two are kept, for the readers that are ahead in the next epoch.
        while len(self._permutations) > 1:
          del self._permutations[next(iter(self._permutations))]  # the oldest
        self._permutations[epoch] = self._shuffle(np.random.RandomState([self.seed, epoch]))
      return self._permutations[epoch]

  def _shuffle(self, random):
    """Returns an epoch's order, int64 (num_examples,): first what is in its batches."""
    return random.permutation(self.num_examples)

  def indices(self, step):
    """Returns (epoch, indices) of the batch of `step`; indices is int64 (batch,)."""
    epoch, position = divmod(step, self.steps_per_epoch)
    start = position * self.batch_size
    return epoch, self._permutation(epoch)[start:start + self.batch_size]

  def following(self, step, row):
    """Iterates over the examples that come behind row `row` of the batch of `step` in its epoch's order.

    Around the end of the order and up to the example in question, which is not among them; with
    `drop_remainder` the tail that is in no batch is among them. Yields ints.
    """
    epoch, position = divmod(step, self.steps_per_epoch)
    order = self._permutation(epoch)
    start = position * self.batch_size + row
    for offset in range(1, len(order)):
      yield int(order[(start + offset) % len(order)])

  def __getstate__(self):
    return {**self.__dict__, "_permutations": {}, "_lock": None}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._lock = threading.Lock()


class EvalPlan:
  """The order of evaluation: the split's own, every example exactly once.

  The last batch is filled up with -1, which stands for no example (image zero, label zero, mask
  zero), so that every batch has the same size and sums over the mask are exact.
  """

  def __init__(self, num_examples, batch_size):
    """Makes the plan; both are ints >= 1, else ValueError."""
    if num_examples < 1 or batch_size < 1:
      raise ValueError(
          f"num_examples and batch_size must be at least 1, got {num_examples}, {batch_size}."
      )
    self.num_examples = num_examples
    self.batch_size = batch_size
    self.num_steps = -(-num_examples // batch_size)

  def indices(self, step):
    """Returns (epoch 0, int64 (batch_size,)) with -1 where there is no example."""
    indices = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
    return 0, np.where(indices < self.num_examples, indices, -1)
