"""Memory of the process on the host."""

import ctypes
import os

_M_ARENA_MAX = -8  # of glibc's malloc.h
_ARENAS = 2


def keep_arenas_few() -> None:
  """Has glibc share two arenas among all threads; to be called before there are any.

  By itself it makes up to eight for each core, and a thread that is new (each save has some, each evaluation with
  its readers) allocates from whichever is free: every arena grows, in the course of hours, to the most that any
  thread ever needed. Where another C library is at work, or MALLOC_ARENA_MAX is in the environment, nothing is done.
  """
  if "MALLOC_ARENA_MAX" in os.environ:
    return
  try:
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
  except (OSError, AttributeError):
    pass
