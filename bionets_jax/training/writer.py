"""metrics.jsonl and TensorBoard events."""

import json
import math
import os
from typing import Any

from tensorboardX import SummaryWriter


class MetricWriter:
  """Writes scalars to `workdir/metrics.jsonl`, one JSON object a line, and to `workdir/events.*`.

  After a restart from step s, lines beyond s belong to steps that are made again: they are dropped.
  """

  def __init__(self, workdir: str, step: int):
    """
    Args:
      workdir: exists.
      step: the one that the run goes on from.
    """
    self._path = os.path.join(workdir, "metrics.jsonl")
    kept = [line for line in read_metrics(self._path) if line["step"] <= step]
    temporary = self._path + ".tmp"
    with open(temporary, "w", encoding="utf-8") as file:
      file.writelines(json.dumps(line) + "\n" for line in kept)
    os.replace(temporary, self._path)
    self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
    self._events = SummaryWriter(workdir, purge_step=step + 1)

  def write(self, step: int, epoch: float, values: dict[str, float]) -> None:
    """Appends a line. NaN and infinity become null.

    Raises:
      OSError: if it cannot be written.
    """
    line: dict[str, Any] = {"step": step, "epoch": round(epoch, 4)}
    line |= {k: v if math.isfinite(v) else None for k, v in values.items()}
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()
    # Its thread dies of a full disk, and its queue then blocks for ever.
    if not self._alive():
      raise OSError(f"{os.path.dirname(self._path)}: the TensorBoard events cannot be written; is the "
                    "disk full?")
    for key, value in values.items():
      self._events.add_scalar(key, value, step)

  def _alive(self) -> bool:
    # No public name leads to the thread; where this one does not either, there is nothing to see.
    writer = getattr(self._events.file_writer, "event_writer", None)
    thread = getattr(writer, "_worker", None)
    return thread is None or thread.is_alive()

  def close(self) -> None:
    self._file.close()
    if self._alive():
      self._events.close()


class NoWriter:
  """Of the processes that are not the first."""

  def write(self, step: int, epoch: float, values: dict[str, float]) -> None:
    pass

  def close(self) -> None:
    pass


def read_metrics(path: str) -> list[dict[str, Any]]:
  """The lines of a metrics.jsonl; [] if there is none. A half-written last line is left out."""
  if not os.path.exists(path):
    return []
  lines = []
  with open(path, encoding="utf-8") as file:
    for text in file:
      try:
        line = json.loads(text)
      except json.JSONDecodeError:
        break
      if not isinstance(line, dict):
        break
      lines.append(line)
  return lines
