"""SIGTERM and Ctrl-C: while a run is trained a question that the loop asks, before and after that the end."""

import itertools
import os
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

from bionets_jax.training.exit_status import INTERRUPTED

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Runs that are in their loop now, and so have something to save.
_in_loop = 0
# A signal that came while nobody asked for it, in a process that `leave_on_signals` was called in.
_received = threading.Event()
# JAX agrees on one of these numbers as the point at which all processes stop, so none may come twice.
_questions = itertools.count(1)


def leave_on_signals() -> None:
  """From now on SIGTERM and Ctrl-C end the process with status 75, at once, outside `StopRequest`.

  Outside there is nothing to save. A handler that raises would not do: Python runs handlers in the main
  thread and between two of its own instructions, so that minutes of compiling go by first, and an exception
  on the way back into XLA aborts the process. So a thread is told of the signals, and ends the process from
  outside.

  Call it from the main thread. The processes of a job leave together: `distributed.start` takes over SIGTERM.
  """
  read, write = os.pipe()
  os.set_blocking(write, False)
  for number in _SIGNALS:
    signal.signal(number, _handle)  # without one, nothing is written to the pipe
  signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  threading.Thread(target=_listen, args=(read,), daemon=True).start()


def in_loop() -> bool:
  """Whether a run is being trained, so that something would be lost."""
  return _in_loop > 0


def _handle(number, frame):
  """What is to be done is done by `_listen`."""


def _listen(read: int) -> None:
  while True:
    for number in os.read(read, 64):
      if number not in _SIGNALS:
        continue
      if number == signal.SIGINT and jax.distributed.is_initialized():
        os.kill(os.getpid(), signal.SIGTERM)  # which JAX tells the other processes, as soon as there are any
      elif in_loop():
        _received.set()
      else:
        print("stopped on request; there was nothing to save", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(INTERRUPTED)


class StopRequest:
  """Turns SIGTERM and the first Ctrl-C into a question that the loop asks again and again.

  In a job of several processes JAX's own handler passes SIGTERM on, and all of them get the same
  answer to the same question. Outside the main thread signals are left alone.
  """

  def __init__(self):
    self._event = threading.Event()
    self._previous = {}

  def __enter__(self):
    global _in_loop
    if threading.current_thread() is threading.main_thread():
      if jax.distributed.is_initialized():
        handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
      else:
        handlers = dict.fromkeys(_SIGNALS, self._handle)
      for number, handler in handlers.items():
        self._previous[number] = signal.signal(number, handler)
    _in_loop += 1
    return self

  def __exit__(self, *_):
    global _in_loop
    _in_loop -= 1
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number, frame):
    if self._event.is_set() and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._event.set()

  @property
  def pending(self) -> bool:
    """Whether a signal has come to this process, answered or not."""
    return self._event.is_set() or _received.is_set()

  def asked(self) -> bool:
    """Whether to stop now. The processes of a job must all ask, equally often."""
    if jax.distributed.is_initialized():
      return multihost_utils.reached_preemption_sync_point(next(_questions))
    return self.pending
