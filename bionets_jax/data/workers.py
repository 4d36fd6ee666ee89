"""Worker processes that read batches ahead, and what is said when one of them dies.

Grain starts the processes and hands out the work. A decoder that crashes, or a kernel that is out of memory,
ends a worker without a word; so each keeps a note of what it is at where the main process can read it.
Nothing here imports jax.
"""

import contextlib
import functools
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time

import numpy as np

from bionets_jax.terminal import printable

# A worker that has ended may have left batches behind; without any for so long (s) there is none.
_GRACE = 3.0
_SLOW = 60  # s without a batch, after which it is said what is waited for

_notes = None  # of this worker process: int64 (2,), the step and the example that it is at


def note(step, index):
  """Notes, in a worker process, what is read next: if it is the last that the process does, it is known."""
  if _notes is not None:
    _notes[:] = step, index


def read_ahead(reader, start_step, workers, threads):
  """Returns an iterator over reader[start_step], reader[start_step + 1], ...

  Args:
    reader: a `BatchReader`.
    start_step: int.
    workers: worker processes; 0 reads in `threads` threads of this process.
    threads: int, used when workers is 0. Every worker process has one.

  Returns:
    A `ReadAhead`.

  Raises:
    ValueError: there is too little shared memory for the workers.
  """
  import grain
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads its flags, also where no absl app runs
  if workers:
    _check_shared_memory(reader.batch_bytes, workers)
  threads = 1 if workers else threads
  dataset = grain.MapDataset.source(reader)[start_step:].to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  )
  notes = Notes(workers) if workers else None
  if workers:
    dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1),
        worker_init_fn=functools.partial(_start_worker, os.getpid(), notes.path),
    )
  return ReadAhead(iter(dataset), notes, reader.key)


class Notes:
  """What each worker is at, in a file that outlives it.

  Attributes:
    path: of the file: int64 (workers, 3): process, step, example; zeros before it starts.
  """

  def __init__(self, workers):
    handle, self.path = tempfile.mkstemp(prefix="bionets_workers_")
    os.write(handle, bytes(8 * 3 * workers))
    os.close(handle)

  def read(self):
    """Returns a list of (process, step, example) of the workers that have started."""
    try:
      rows = np.fromfile(self.path, np.int64).reshape(-1, 3)
    except FileNotFoundError:  # closed meanwhile
      return []
    return [tuple(map(int, row)) for row in rows if row[0]]

  def close(self):
    if os.path.exists(self.path):
      os.remove(self.path)


class ReadAhead:
  """Iterates over batches that threads or processes read; `close` stops these."""

  def __init__(self, iterator, notes, key):
    """
    Args:
      iterator: Grain's.
      notes: `Notes`; None without worker processes.
      key: from the index of an example to its key.
    """
    self._iterator, self._notes, self._key = iterator, notes, key
    self._gone_since = None

  def __iter__(self):
    return self

  def __next__(self):
    try:
      return next(self._iterator)
    except RuntimeError as error:
      code = re.search(r"exit code (-?\d+)", str(error))
      if self._notes is None or not code:
        raise
      raise RuntimeError(self._obituary(self._gone(), int(code[1]))) from error

  def check(self, waited):
    """To be called every now and then by who waits for a batch.

    Grain notices workers that fail. One that ends as if it were done, which a library may make it do, leaves
    it waiting for ever.

    Args:
      waited: int, seconds without a batch.

    Raises:
      RuntimeError: a worker has ended, and no batch comes.
    """
    if self._notes is None:
      return
    gone = self._gone()
    if not gone:
      self._gone_since = None
      if waited % _SLOW == 0:
        at = ", ".join(f"{self._key(index)} (step {step + 1})" for _, step, index in self._notes.read())
        text = f"no batch for {waited} s; the reading processes are at {at or 'their start'}"
        print(printable(text), file=sys.stderr, flush=True)
      return
    self._gone_since = self._gone_since or time.monotonic()
    if time.monotonic() - self._gone_since > _GRACE:
      raise RuntimeError(self._obituary(gone))

  def close(self):
    """Stops the threads or processes. May be called more than once."""
    if self._gone_since is None:
      self._iterator.close()
    else:
      # Grain waits for the worker that it takes for alive, in here too.
      closing = threading.Thread(target=self._iterator.close, daemon=True)
      closing.start()
      closing.join(1)
    if self._notes is not None:
      self._notes.close()

  def _gone(self):
    """What the workers that are no more were at."""
    alive = {process.pid for process in multiprocessing.active_children()}
    return [row for row in self._notes.read() if row[0] not in alive]

  def _obituary(self, gone, code=0):
    how = f"was ended by {_signal_name(-code)}" if code < 0 else f"ended with status {code}"
    if not code:
      how = "has ended as if it were done"
    elif -code == signal.SIGKILL:
      how += " (which the system sends where memory runs out; fewer config.data.workers need less)"
    if not gone:
      return (f"a process that reads images {how} while it started; the messages above may say why, and"
              " config.data.workers=0 reads without such processes")
    at = "; ".join(f"process {process} was at {self._key(index)}, for step {step + 1}"
                   for process, step, index in gone)
    return (f"a process that reads images {how}: {at}. If it ends there again, its decoder does not survive this"
            " example: repair it or take it out of the data set")


def _signal_name(number):
  try:
    return signal.Signals(number).name
  except ValueError:
    return f"signal {number}"


def _start_worker(parent, path, index, count):
  """Runs first in each worker process of the process `parent`.

  Ctrl-C in a terminal and many schedulers signal the whole process group; the workers must go on
  while the main process saves. It ends them itself; if it is killed, they notice and end.
  """
  global _notes
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)

  def watch():  # the parent may be gone before this process has come up
    while os.getppid() == parent:
      time.sleep(1)
    with contextlib.suppress(OSError):  # of the notes; another worker may have removed them
      os.remove(path)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
  row = np.memmap(path, np.int64, "r+", shape=(count, 3))[index]
  row[0] = os.getpid()
  _notes = row[1:]


def _check_shared_memory(batch_bytes, workers, directory="/dev/shm"):
  """Raises ValueError if the workers' batches cannot fit into shared memory.

  Without this a worker dies of a bus error. A worker holds at least the batch that it has ready
  and the one that it is making.
  """
  if not os.path.isdir(directory):
    return
  free, needed = shutil.disk_usage(directory).free, 2 * workers * batch_bytes
  if free < needed:
    raise ValueError(
        f"{directory} has {free / 2**20:.0f} MiB free, and {workers} workers need at least"
        f" {needed / 2**20:.0f} MiB there for their batches. Start the container with"
        f" --shm-size={2 * needed / 2**30:.1f}g, or use fewer workers (0 needs none)."
    )
