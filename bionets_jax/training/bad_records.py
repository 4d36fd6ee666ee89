"""WORKDIR/bad_records.jsonl: which examples of a run could not be used, and why."""

import functools
import json
import os
from collections.abc import Callable
from typing import Any

from bionets_jax.training.writer import read_metrics
from bionets_jax.weights.whole import write_whole

BAD_RECORDS = "bad_records.jsonl"


def follow(run: Any, step: int, say: Callable[[str], None], *, lead: bool) -> None:
  """From here on the run's bad records go on from its memory, are written to its workdir and said.

  A line has 'step', 'split', 'index', 'key', 'reason', 'stand_in'. Lines beyond `step` belong to steps that
  are made again: they are dropped.

  Args:
    run: of the loop, restored.
    step: that it goes on from.
    say: told of each bad record, in the first process. The others write to stderr.
    lead: whether this is the first process, which writes.
  """
  bad = run.setup.pipeline.bad_records
  bad.restore(run.memory.get("bad_records", {}), step)
  if not lead:
    return
  path = os.path.join(run.workdir, BAD_RECORDS)
  if os.path.exists(path):
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    write_whole({path: "".join(json.dumps(line) + "\n" for line in kept)})
  bad.say = say
  bad.write = functools.partial(_append, path, say)


def remember(run: Any) -> dict[str, Any]:
  """What a checkpoint holds of the run's bad records. In a job of several processes all of them call it.

  Raises:
    TooManyBadRecords: all processes together have found more than the config lets pass.
  """
  bad = run.setup.pipeline.bad_records
  bad.agree()
  return {"bad_records": bad.state()}


def _append(path: str, say: Callable[[str], None], line: dict[str, Any]) -> None:
  try:
    with open(path, "a", encoding="utf-8") as file:
      file.write(json.dumps(line) + "\n")
  except OSError as error:  # it is not worth a run; the checkpoint counts them too
    say(f"{path} cannot be written: {error.strerror}; the line would have been {json.dumps(line)}")
