"""This process among the others of a job, and how they end together.

A process that has failed leaves the others waiting for it. JAX aborts them when one is silent for some
time, and a collective over sockets fails when its other end is gone; but neither says why, and neither
notices a process that lives and no longer takes part. So each process tells the others why it ends, in the
key-value store of JAX's coordination service, and a thread in each of them looks there every second.
"""

import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import jax

from bionets_jax.training import exit_status, stopping

# What the others have left to finish a save when one has failed.
GRACE_SECONDS = 15
# Processes that are done wait for each other this long: the first one writes weights and plots.
LEAVE_SECONDS = 1800

_END = "bionets_jax/end"       # why the job ends; who is first writes it
_GONE = "bionets_jax/gone/"    # + rank, of a process that is about to leave after that
_NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # JAX's, from the moment when any process has had SIGTERM

_job = None


def enter() -> None:
  """Makes the process look out for the others. After `jax.distributed.initialize`.

  Raises:
    RuntimeError: if the processes were started for jobs of different sizes.
  """
  global _job
  _job = _Job()
  sys.excepthook = _job.failed
  _job.start()
  _job.check_size()


def leave(status: int, message: str = "") -> NoReturn:
  """Ends the process; in a job of several so that none of them is left waiting.

  Args:
    status: 0 or INTERRUPTED where all processes of the job come here; anything else where this one has
      failed, which ends the others.
    message: what has failed, for the output of the others.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  if _job is None:
    sys.exit(status)
  if status in (0, exit_status.INTERRUPTED):
    _job.leave_together(status)
  _job.announce(status, message)
  _job.exit(status)


def announce(error: BaseException) -> None:
  """Tells the other processes that this one has failed and is on its way out, however long that takes."""
  if _job is not None:
    _job.announce(1, _one_line(error))


class _Job:
  """This process among the others. The thread looks for what they say, and for SIGTERM to any of them."""

  def __init__(self):
    from jax._src import distributed  # jax.distributed gives no access to its store

    state = distributed.global_state
    self._client, self._rank, self._count = state.client, state.process_id, state.num_processes
    self._leaving = threading.Event()
    self._exiting = threading.Lock()  # never released

  def start(self) -> None:
    threading.Thread(target=self._watch, daemon=True).start()

  def check_size(self) -> None:
    """Raises RuntimeError in a process that was started for another number of processes than the first one."""
    if self._rank == 0:
      self._client.key_value_set("bionets_jax/count", str(self._count))
    first = int(self._client.blocking_key_value_get("bionets_jax/count", 60_000))
    if first != self._count:
      raise RuntimeError(f"process {self._rank} was started for a job of {self._count} processes, and the first "
                         f"one for {first}; give all of them the same count")

  def announce(self, status: int, message: str) -> None:
    """Writes down why the job ends, unless that has been done."""
    reason = {"rank": self._rank, "host": socket.gethostname(), "status": status, "message": message[:2000]}
    try:
      self._client.key_value_set(_END, json.dumps(reason))
    except Exception:  # noqa: BLE001 (written already, or the first process is gone, which JAX notices)
      pass

  def failed(self, kind, value, trace) -> None:
    """The excepthook: a normal end would wait for the others, who wait for this process."""
    try:
      reason = self._reason()
    except Exception:  # noqa: BLE001 (the first process is gone)
      reason = None
    if reason and reason["rank"] != self._rank:
      self._end(reason)  # what was raised here only follows from it
    if lost_a_process(value):
      print(f"error: process {self._rank} of {self._count} has lost another process of the job, whose output "
            f"says why: {_one_line(value)}", file=sys.stderr)
    else:
      traceback.print_exception(kind, value, trace)
    self.announce(1, _one_line(value))
    self.exit(1)

  def leave_together(self, status: int) -> NoReturn:
    """Ends when all the others are here too."""
    self._leaving.set()  # the thread still looks out for failures
    try:
      self._client.wait_at_barrier(f"bionets_jax/leave/{status}", LEAVE_SECONDS * 1000)
      jax.distributed.shutdown()
    except Exception as error:  # noqa: BLE001 (whatever it is, this process is done)
      if reason := self._reason():
        self._end(reason)
      print(f"error: {_one_line(error)}", file=sys.stderr)
      self.exit(1)
    os._exit(status)

  def exit(self, status: int) -> NoReturn:
    """Ends now. The first process, whose end aborts all others, waits until they have gone."""
    self._exiting.acquire()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
      self._client.key_value_set(f"{_GONE}{self._rank}", "gone")
      end = time.monotonic() + GRACE_SECONDS + 5
      while self._rank == 0 and time.monotonic() < end and len(self._client.key_value_dir_get(_GONE)) < self._count:
        time.sleep(0.1)
    except Exception:  # noqa: BLE001 (the store is gone; nothing to wait for)
      pass
    os._exit(status)

  def _watch(self) -> None:
    seen = None
    while True:
      time.sleep(1)
      try:
        reason = self._reason()
        if not reason and not self._leaving.is_set() and not stopping.in_loop() and self._get(_NOTICE):
          self.announce(exit_status.INTERRUPTED, "stopped on request; there was nothing to save")
          reason = self._reason()
      except Exception:  # noqa: BLE001 (JAX notices that the store is gone, and says so)
        continue
      if reason and not self._exiting.locked():
        seen = seen or time.monotonic()
        idle = reason["status"] == exit_status.INTERRUPTED and not stopping.in_loop()
        if idle or time.monotonic() - seen > GRACE_SECONDS:
          self._end(reason)

  def _end(self, reason: dict[str, Any]) -> NoReturn:
    by = f"process {reason['rank']} of {self._count} ({reason['host']})"
    if reason["status"] == exit_status.INTERRUPTED:
      if self._rank == 0:
        print(reason["message"], file=sys.stderr)
    elif reason["rank"] == self._rank:
      print(f"error: {reason['message']}", file=sys.stderr)
    else:
      print(f"error: {by} has failed, and so ends process {self._rank}: {reason['message']}", file=sys.stderr)
    self.exit(reason["status"])

  def _reason(self) -> dict[str, Any] | None:
    found = self._get(_END)
    return json.loads(found) if found else None

  def _get(self, key: str) -> str | None:
    try:
      return self._client.key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
      if "NOT_FOUND" in str(error):
        return None
      raise


def lost_a_process(error: BaseException) -> bool:
  """Whether a collective or the coordination service failed: what follows from another process's end."""
  # By its words: some of XLA's errors come as ValueError.
  return bool(re.search(r"\bGloo\b|NCCL|coordination (service|agent)|heartbeat|Socket closed", str(error)))


def _one_line(error: BaseException) -> str:
  text = str(error).strip()
  return f"{type(error).__name__}: {text.splitlines()[0][:500] if text else ''}".rstrip(": ")
