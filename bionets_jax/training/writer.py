"""metrics.jsonl and TensorBoard events."""

import contextlib
import json
import math
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from bionets_jax.weights.whole import write_whole


class MetricWriter:
  """Writes scalars to `workdir/metrics.jsonl`, one JSON object a line, and to `workdir/events.*`.

  After a restart from step s, lines beyond s belong to steps that are made again: they are dropped.

  A disk that is full is reported once, and no reason to stop: what belongs there waits in memory.
  """

  def __init__(self, workdir: str, step: int, say: Callable[[str], None] = print, *, evaluated: bool = True):
    """
    Args:
      workdir: exists.
      step: the one that the run goes on from.
      evaluated: whether the evaluation of that step is done; else it is made (again).
      say: told if something cannot be written, and when it can be again.

    Raises:
      OSError: they cannot be written from the start.
    """
    path = os.path.join(workdir, "metrics.jsonl")
    kept = [line for line in read_metrics(path) if line["step"] <= step
            and (evaluated or line["step"] < step or not any(key.startswith("eval/") for key in line))]
    write_whole({path: "".join(json.dumps(line) + "\n" for line in kept)})
    self._lines = _Appended(path, say)
    # Not by tensorboardX's writer: its thread dies of a full disk, and its queue then blocks for ever.
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
    self._events = _Appended(os.path.join(workdir, name), say)
    self._events.write(_record(Event(file_version="brain.Event:2")) + _record(
        Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))))  # hides what is made again

  def write(self, step: int, epoch: float, values: dict[str, float]) -> None:
    """Appends a line. NaN and infinity become null, and are in no event."""
    line: dict[str, Any] = {"step": step, "epoch": round(epoch, 4)}
    line |= {k: v if math.isfinite(v) else None for k, v in values.items()}
    self._lines.write((json.dumps(line) + "\n").encode())
    self._events.write(b"".join(
        _record(Event(step=step, summary=scalar(key, value))) for key, value in values.items()
        if math.isfinite(value)))

  def sync(self) -> None:
    """Returns when what was written is on the disk itself: a checkpoint of this step is to outlive the machine."""
    self._lines.sync()
    self._events.sync()

  def close(self) -> None:
    """Says what could not be written until the end."""
    self._lines.close()
    self._events.close()


class NoWriter:
  """Of the processes that are not the first."""

  def write(self, step: int, epoch: float, values: dict[str, float]) -> None:
    pass

  def sync(self) -> None:
    pass

  def close(self) -> None:
    pass


class _Appended:
  """A file that only grows, by whole parts: what cannot be written now waits in memory for the next time.

  Says when it cannot be written, and when it can be again.
  """

  def __init__(self, path: str, say: Callable[[str], None]):
    self._path, self._say = path, say
    self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    self._size = os.fstat(self._file).st_size  # of what is whole
    self._waiting = b""
    self._failing = False

  def write(self, part: bytes) -> None:
    self._waiting += part
    rest = self._waiting
    try:
      while rest:
        rest = rest[os.write(self._file, rest):]
    except OSError as error:
      if not self._failing:
        self._say(f"warning: {self._path} cannot be written: {error.strerror}. Training goes on, and what belongs "
                  "there is kept in memory until it can be")
      self._failing = True
      # Half a line or record would hide all that come after it.
      with contextlib.suppress(OSError):
        os.ftruncate(self._file, self._size)
      return
    if self._failing:
      self._say(f"{self._path} can be written again, and has everything")
    self._size += len(self._waiting)
    self._waiting, self._failing = b"", False

  def sync(self) -> None:
    with contextlib.suppress(OSError):  # the next `write` says it
      os.fsync(self._file)

  def close(self) -> None:
    if self._waiting:
      self.write(b"")
    if self._waiting:
      self._say(f"warning: {self._path} could not be written until the end, and is not complete")
    os.close(self._file)


def _record(event: Event) -> bytes:
  """An event as TensorBoard's files have it: its length and bytes, each with a checksum."""
  event.wall_time = time.time()
  data = event.SerializeToString()
  length = struct.pack("<Q", len(data))
  return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))


def read_metrics(path: str) -> list[dict[str, Any]]:
  """The lines of a metrics.jsonl; [] if there is none. What follows a line that is none is left out."""
  if not os.path.exists(path):
    return []
  if not os.path.isfile(path):  # a device never ends
    raise ValueError(f"{path} is no regular file; remove it")
  lines = []
  with open(path, encoding="utf-8", errors="replace") as file:
    for text in file:
      try:
        line = json.loads(text)
      except (ValueError, RecursionError):
        break
      if not isinstance(line, dict) or type(line.get("step")) is not int:
        break
      lines.append(line)
  return lines
