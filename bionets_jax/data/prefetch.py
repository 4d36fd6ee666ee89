"""Runs an iterator ahead in a thread."""

import itertools
import queue
import threading
import weakref

_END = object()
_JOIN = 2.0  # s


class Prefetcher:
  """Iterates over `map(function, iterator)`, up to `size` elements ahead in a thread.

  An exception in the thread is raised by `next`. `close` (also run when the object is dropped
  and at the interpreter's exit) stops the thread and calls `close_iterator`. `check(waited)` is called
  every second in which `next` waits, with the seconds that it has waited; it raises if there is nothing
  to wait for.
  """

  def __init__(self, iterator, function, size, close_iterator, check=lambda waited: None):
    self._queue = queue.Queue(size)
    self._check = check
    stop = threading.Event()
    self._thread = thread = threading.Thread(
        target=_run, args=(iterator, function, self._queue, stop), daemon=True
    )
    # The thread must not hold `self`, or dropping the iterator would not stop it.
    self._finalizer = weakref.finalize(self, _close, self._queue, stop, thread, close_iterator)
    thread.start()

  def __iter__(self):
    return self

  def __next__(self):
    if not self._finalizer.alive:
      raise StopIteration
    element, error = self._wait()
    if error is not None:
      self.close()
      raise error
    if element is _END:
      self.close()
      raise StopIteration
    return element

  def _wait(self):
    """Returns the next of the queue, with an error where none will come."""
    for waited in itertools.count(1):
      ended = not self._thread.is_alive()  # asked first: it may put its last element before it ends
      try:
        return self._queue.get(timeout=1)
      except queue.Empty:
        if ended:
          return None, RuntimeError("the thread that reads batches ahead has ended without a word")
      try:
        self._check(waited)
      except Exception as error:  # noqa: BLE001 (raised by the caller, who closes first)
        return None, error

  def close(self):
    """Stops; further `next` calls raise StopIteration. May be called more than once."""
    self._finalizer()


def _put(elements, element, stop):
  while not stop.is_set():
    try:
      elements.put(element, timeout=0.1)
      return
    except queue.Full:
      pass


def _run(iterator, function, elements, stop):
  try:
    while not stop.is_set():
      try:
        element = next(iterator)
      except StopIteration:
        _put(elements, (_END, None), stop)
        return
      _put(elements, (function(element), None), stop)
      del element  # else one batch more stays in memory
  except BaseException as error:  # whatever it is, the consumer must learn of it
    _put(elements, (None, error), stop)


def _close(elements, stop, thread, close_iterator):
  stop.set()
  other = thread is not threading.current_thread()
  if other:
    thread.join(_JOIN)
  while not elements.empty():
    elements.get_nowait()
  # A thread that still waits, for a process that is gone or a disk that does not answer, learns of it so.
  close_iterator()
  if other:
    thread.join(_JOIN)
