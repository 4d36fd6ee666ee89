"""What the host does about a step whose loss or gradients were not finite.

The compiled step has changed nothing then (`state.make_train_step`); here it is told which examples and which
layer it was, and whether the run goes on.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bionets_jax.training.first_fault import find_first_fault
from bionets_jax.training.state import GIVEN_UP
from bionets_jax.training.writer import read_metrics
from bionets_jax.weights.run_metric import AP50_VOC07, TOP1_ERROR
from bionets_jax.weights.whole import write_whole

# config.nonfinite -> the number of such steps in a row after which a run ends.
GIVE_UP = {"stop": 1, "skip": 20}
FILE = "nonfinite.jsonl"
_SHOWN = 8


def handle(
    run: Any, state: Any, batch: Mapping[str, Any], step: int, metrics: Mapping[str, float], *, lead: bool,
    say: Callable[[str], None],
) -> None:
  """Tells of a step that was not finite, to a reader and to WORKDIR/nonfinite.jsonl.

  Args:
    run: with `workdir`, `config`, `setup` and `checkpoints`.
    state: the run's own. If it has given up, that is the state as the step found it.
    batch: of the step.
    step: its number, from 1 on.
    metrics: of the step, sums; 'in_a_row' as `make_train_step` has it.
    lead: whether this process writes.
    say: where a step is told that was only left out.

  Raises:
    FloatingPointError: if the state has given up: with the step, its examples, the first layer at fault and the
      last good checkpoint.
  """
  count = metrics["count"]
  loss, norm = metrics["loss"] / count, metrics["grad_norm"] / count
  keys = run.setup.pipeline.train_keys(step - 1)
  line = {"step": step, "loss": str(loss), "gradient_norm": str(norm), "examples": keys}
  what = f"the loss is {loss} at step {step} (gradient norm {norm:.3g})"
  if math.isfinite(loss) and math.isfinite(norm):
    what += " and the running statistics are not finite"
  if metrics["in_a_row"] != GIVEN_UP:
    _write(run.workdir, line | {"skipped": True}, lead, say)
    say(f"{run.workdir}: {what}: skipped, with the examples {shown(keys)}")
    return

  text, rows = _first_fault(run, state, batch, step)
  bad = [keys[row] for row in rows]
  note = _write(run.workdir, line | {"skipped": False, "first_fault": text, "examples_at_fault": bad}, lead, say)
  config = run.config
  in_a_row = GIVE_UP[config.nonfinite]
  if in_a_row > 1:
    what += f", the last of {in_a_row} steps in a row that were not finite"
    other = ""
  else:
    other = "; config.nonfinite='skip' leaves such a step out, and the same --workdir goes on with it"
  run.checkpoints.close()  # one may be on its way to the disk
  saved = run.checkpoints.latest_step()
  kept = "none was saved yet" if saved is None else f"the last good one is of step {saved}"
  raise FloatingPointError("\n".join([
      f"{run.workdir}: {what}; no checkpoint was written of it, {kept}. A smaller config.schedule.lr (now "
      f"{config.schedule.lr}) or a config.schedule.warmup often helps; a run of another config needs another "
      f"--workdir{other}",
      f"first at fault: {text}",
      *([f"its examples:   {shown(bad)}"] if 0 < len(bad) < len(keys) else []),
      f"the batch:      {shown(keys)}{note}"]))


def forget_after(workdir: str, step: int) -> None:
  """Drops what WORKDIR/nonfinite.jsonl says of later steps that were skipped: they are made again.

  What ended a run stays: made again with another option, the step is diagnosed no more.
  """
  path = os.path.join(workdir, FILE)
  if os.path.exists(path):
    kept = [line for line in read_metrics(path) if line["step"] <= step or not line.get("skipped")]
    write_whole({path: "".join(json.dumps(line) + "\n" for line in kept)})


def shown(keys: list[str]) -> str:
  """The first of many keys, and how many there are."""
  more = f", ... ({len(keys)})" if len(keys) > _SHOWN else ""
  return ", ".join(keys[:_SHOWN]) + more


def error_of(values: Mapping[str, float]) -> float:
  """By which evaluations are compared: the top-1 error, or what lacks the average precision to 100 %.

  Infinite where anything measured is not finite: logits that are NaN count as a wrong prediction, so that the error
  alone does not show them.
  """
  if not all(map(math.isfinite, values.values())):
    return math.inf
  return values[TOP1_ERROR.key] if TOP1_ERROR.key in values else 100.0 - values.get(AP50_VOC07.key, 0.0)


def is_better(values: Mapping[str, float], best: Mapping[str, float]) -> bool:
  """Whether an evaluation is better than the best one so far, {} for none."""
  return not best or error_of(values) < error_of(best)


def remark(evaluations: Sequence[Mapping[str, float]]) -> str:
  """What the log says behind evaluations of which one is not finite; '' if all are."""
  return "  (not finite, and never the best)" if math.inf in map(error_of, evaluations) else ""


def check_best(run: Any) -> None:
  """Refuses to call weights the best of a run that has no finite evaluation.

  Raises:
    FloatingPointError: with config.select='best'. The last checkpoint stays.
  """
  best = run.memory["best"]
  if run.config.select == "best" and best and error_of(best) == math.inf:
    raise FloatingPointError(
        f"{run.workdir}: no evaluation was finite ({', '.join(f'{k} {v}' for k, v in best.items())}), so that "
        "there are no best weights to keep; config.select='last' keeps those of the last step")


def _first_fault(run: Any, state: Any, batch: Mapping[str, Any], step: int) -> tuple[str, tuple[int, ...]]:
  """(what there is to say, the rows of the batch that it is about)."""
  task = run.setup.task
  try:
    fault = find_first_fault(
        task, state, task.frozen, batch, step=step - 1, seed=run.config.seed, accumulate=run.config.accumulate,
        mesh=run.setup.mesh)
  except Exception as error:  # noqa: BLE001 (a device without memory for it, say; the step is to be told anyway)
    return f"not found: computing the step again failed ({type(error).__name__}: {str(error).splitlines()[0]})", ()
  return fault.text, fault.rows


def _write(workdir: str, line: dict[str, Any], lead: bool, say: Callable[[str], None]) -> str:
  """Appends to WORKDIR/nonfinite.jsonl; where the whole list is, for a reader."""
  if not lead:
    return ""
  path = os.path.join(workdir, FILE)
  try:
    with open(path, "a", encoding="utf-8") as file:
      file.write(json.dumps(line) + "\n")
  except OSError as error:  # what happened is said all the same
    say(f"{path} could not be written: {error}")
    return ""
  return f"; all of it in {path}"
