"""Signs of life of what must not stand still: `hangs` listens for them."""

import contextlib
import time
from collections.abc import Iterator

# How many places are within `expected` now.
_expecting = 0
_last = 0.0


@contextlib.contextmanager
def expected() -> Iterator[None]:
  """Within it `beat` is to be called again and again."""
  global _expecting
  beat()
  _expecting += 1
  try:
    yield
  finally:
    _expecting -= 1


def beat() -> None:
  global _last
  _last = time.monotonic()


def silence() -> float:
  """How many seconds ago the last beat was; 0 where none is expected."""
  return time.monotonic() - _last if _expecting else 0.0
