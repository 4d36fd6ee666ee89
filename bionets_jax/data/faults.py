"""Records that cannot be used: what is known of each, and when there are too many.

Worker processes send these to the main process. Nothing here imports jax.
"""

import dataclasses

_SHOWN = 5  # of the bad records, in a message


@dataclasses.dataclass(frozen=True)
class Fault:
  """One record that cannot be used.

  Attributes:
    index: int, of the example in its split.
    key: str, finds it again.
    reason: str, what is wrong with it.
    stand_in: key of the example that is in the batch in its place; '' for none.
  """

  index: int
  key: str
  reason: str
  stand_in: str = ""

  def __str__(self):
    return f"Example {self.key}: {self.reason}"


class TooManyBadRecords(ValueError):
  """More records are bad than the config lets pass.

  Attributes:
    faults: tuple of `Fault`, those that were found last.
  """

  def __init__(self, message, faults=()):
    super().__init__(message)
    self.faults = tuple(faults)


@dataclasses.dataclass(frozen=True)
class Limit:
  """How many records may be bad.

  Attributes:
    count: int >= 0.
    option: what sets it, for messages.
  """

  count: int = 0
  option: str = "config.data.max_bad_records"

  def __post_init__(self):
    if not isinstance(self.count, int) or isinstance(self.count, bool) or self.count < 0:
      raise ValueError(f"{self.option}={self.count!r}: give a whole number, 0 for none.")

  def check(self, faults, number=None):
    """Raises TooManyBadRecords if there are more than `count`.

    Args:
      faults: of different records, the newest last.
      number: how many there are in all; by default those in `faults`.
    """
    number = len(faults) if number is None else number
    if number <= self.count:
      return
    if not self.count:
      raise TooManyBadRecords(
          f"{str(faults[0]).rstrip('.')}. Repair or remove it; or set {self.option}, which is 0, to the number of"
          " bad records that may be skipped.", faults)
    last = "".join(f"\n  {fault}" for fault in faults[-_SHOWN:])
    raise TooManyBadRecords(
        f"{number} records are bad, more than {self.option}={self.count} lets pass. The last ones:{last}", faults)


NO_BAD_RECORDS = Limit()
