"""Runs an iterator ahead in a thread."""

import queue
import threading
import weakref

_END = object()


class Prefetcher:
  """Iterates over `map(function, iterator)`, up to `size` elements ahead in a thread.

  An exception in the thread is raised by `next`. `close` (also run when the object is dropped
  and at the interpreter's exit) stops the thread and calls `close_iterator`.
  """

  def __init__(self, iterator, function, size, close_iterator):
    self._queue = queue.Queue(size)
    stop = threading.Event()
    thread = threading.Thread(
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
    element, error = self._queue.get()
    if error is not None:
      self.close()
      raise error
    if element is _END:
      self.close()
      raise StopIteration
    return element

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
  if thread is not threading.current_thread():
    thread.join()
  while not elements.empty():
    elements.get_nowait()
  close_iterator()
