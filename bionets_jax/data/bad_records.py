"""The bad records of a run: each counted once, however often its turn comes."""

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from bionets_jax.data.faults import Fault
from bionets_jax.terminal import printable

_RECENT = 5


class BadRecords:
  """What is known of the records that cannot be used, over all splits.

  Attributes:
    limit: `Limit`, of how many there may be.
    say: called with a line about each that is new; by default it goes to stderr.
    write: called with {'step', 'split', 'index', 'key', 'reason', 'stand_in'} of each that is new.
  """

  def __init__(self, limit, sources):
    """
    Args:
      limit: a `Limit`.
      sources: name of a split, 'train', 'eval' or 'test' -> its `Source`.
    """
    self.limit = limit
    self.say = lambda text: print(printable(text), file=sys.stderr, flush=True)
    self.write = lambda line: None
    self._sources = sources
    self._known = {split: set() for split in sources}
    self._recent = []
    self._step = 0

  @property
  def counts(self):
    """Of each split that has any: how many are bad."""
    return {split: len(known) for split, known in self._known.items() if known}

  def state(self):
    """Returns {split: ascending indices}, for a checkpoint and `restore`."""
    return {split: sorted(known) for split, known in self._known.items() if known}

  def restore(self, state, step):
    """Goes on from what `state` returned, at a step of the run."""
    self._step = step
    for split, indices in state.items():
      self._known[split].update(indices)

  def note(self, split, faults, step=None, aloud=True):
    """Takes note of a batch's faults.

    Args:
      split: 'train', 'eval' or 'test'.
      faults: list of `Fault`, mostly empty.
      step: of the run; None for that of the last call with one.
      aloud: whether `say` is told.

    Raises:
      TooManyBadRecords: there are more than the limit now.
    """
    self._step = self._step if step is None else step
    if not faults:
      return
    for fault in faults:
      if fault.index in self._known[split]:
        continue
      self._known[split].add(fault.index)
      self._recent = [*self._recent[1 - _RECENT:], fault]
      number = sum(self.counts.values())
      self.write({"step": self._step, "split": split, "index": fault.index, "key": fault.key,
                  "reason": fault.reason, "stand_in": fault.stand_in})
      if self.limit.count and aloud:
        self.say(f"bad record {number} of at most {self.limit.count}, step {self._step}, {split}: {fault}; "
                 + (f"{fault.stand_in} stands in for it" if fault.stand_in else
                    "others stand in for it" if split == "train" else "it is left out"))
    number = sum(self.counts.values())
    if number > self.limit.count:
      self.limit.check(self._recent or list(faults), number)

  def agree(self):
    """Adds what the other processes of the job have found; all of them call it at the same step.

    Raises:
      TooManyBadRecords: as `note`, in all processes.
    """
    if not self.limit.count or jax.process_count() == 1:
      return
    splits = list(self._sources)
    own = np.array([(splits.index(split), index) for split, indices in self.state().items() for index in indices],
                   np.int32).reshape(-1, 2)
    most = int(multihost_utils.process_allgather(np.int32(len(own))).max())
    if not most:
      return
    padded = np.concatenate([own, np.full((most - len(own), 2), -1, np.int32)])
    for process, rows in enumerate(multihost_utils.process_allgather(padded)):
      for split, index in rows[rows[:, 0] >= 0].tolist():
        name = splits[split]
        there = Fault(index, self._sources[name].key(index), f"see the messages of process {process}")
        self.note(name, [there], aloud=jax.process_index() == 0)
