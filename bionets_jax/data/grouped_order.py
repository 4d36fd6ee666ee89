"""Orders in which all examples of a batch are of one group: the static shape that their images end in."""

import numpy as np

from bionets_jax.data.order import BatchPlan, EvalPlan


class GroupedPlan(BatchPlan):
  """The order of training: full batches, each of one group.

  In every epoch the examples are shuffled, those of each group cut into batches, and the batches shuffled. What
  does not fill a batch of its group is left out: other examples in every epoch, but for a group with fewer than a
  batch.

  Attributes:
    groups: int (n,), of each example.
    left_out: group -> number of examples, of the groups that fill no batch.
  """

  def __init__(self, groups, batch_size, seed):
    """
    Args:
      groups: int (n,), of each example.
      batch_size, seed: as in `BatchPlan`.

    Raises:
      ValueError: as `BatchPlan`, and if no group fills a batch.
    """
    self.groups = np.asarray(groups)
    names, counts = np.unique(self.groups, return_counts=True)
    if len(groups) and batch_size > counts.max():
      raise ValueError(
          f"batch_size={batch_size} is more than the {counts.max()} training examples of the most frequent shape of"
          f" images; use batch_size <= {counts.max()}.")
    super().__init__(len(groups), batch_size, seed, drop_remainder=True)
    self.left_out = {int(g): int(n) for g, n in zip(names, counts, strict=True) if n < batch_size}
    self.steps_per_epoch = int((counts // batch_size).sum())

  def with_seed(self, seed):
    return GroupedPlan(self.groups, self.batch_size, seed)

  def group(self, step):
    """Returns the group that the examples of a step are of."""
    return int(self.groups[self.indices(step)[1][0]])

  def batches_of(self, group):
    """Returns how many batches an epoch has of a group."""
    return int((self.groups == group).sum()) // self.batch_size

  def _shuffle(self, random):
    order = random.permutation(self.num_examples)
    batches, tails = [], []
    for group in np.unique(self.groups):
      members = order[self.groups[order] == group]
      full = len(members) // self.batch_size * self.batch_size
      batches.append(members[:full].reshape(-1, self.batch_size))
      tails.append(members[full:])
    batches = np.concatenate(batches)
    return np.concatenate([batches[random.permutation(len(batches))].reshape(-1), *tails])

  def following(self, step, row):
    """As `BatchPlan.following`, of the same group."""
    group = self.group(step)
    return (index for index in super().following(step, row) if self.groups[index] == group)


class GroupedEvalPlan(EvalPlan):
  """The order of evaluation: group by group, every example exactly once.

  The last batch of each group is filled up with -1.
  """

  def __init__(self, groups, batch_size):
    """Makes the plan of groups (n,); ValueError as `EvalPlan`."""
    super().__init__(len(groups), batch_size)
    groups = np.asarray(groups)
    self._rows, self._groups = [], []
    for group in np.unique(groups):
      members = np.flatnonzero(groups == group)
      for start in range(0, len(members), batch_size):
        part = members[start:start + batch_size]
        self._rows.append(np.pad(part, (0, batch_size - len(part)), constant_values=-1))
        self._groups.append(int(group))
    self.num_steps = len(self._rows)

  def group(self, step):
    """Returns the group that the examples of a step are of."""
    return self._groups[min(step, self.num_steps - 1)]

  def indices(self, step):
    """As `EvalPlan.indices`."""
    return 0, self._rows[step] if step < self.num_steps else np.full(self.batch_size, -1)
