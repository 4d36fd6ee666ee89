"""The trained networks behind the page: their weights, and what they take for what on their own images."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bionets_jax.evaluate import command_line
from bionets_jax.evaluate.run import evaluate
from bionets_jax.report.ledger import Experiment, Ledger
from bionets_jax.report.workdirs import Run, is_number
from bionets_jax.weights.native import find_weights

ERRORS = (ValueError, OSError, RuntimeError)  # of data, weights or a network that do not go together


class Confused(NamedTuple):
  """What one network takes for what.

  Attributes:
    experiment: its name.
    run: the one of its runs that was looked at.
    data: name, split and transform of the images, and their number as examples.
    found: see `evaluate.confusion`.
  """

  experiment: str
  run: Run
  data: Mapping[str, Any]
  found: Mapping[str, Any]

  @property
  def where(self) -> str:
    seed = "" if self.run.seed is None else f", seed {self.run.seed}"
    transform = "" if self.own or not self.data["transform"] else f", {self.data['transform']}"
    return (f"{self.experiment}{seed}: {self.data['name']} {self.data['split']}{transform}, "
            f"{self.data['examples']:,} images")

  @property
  def own(self) -> bool:
    """Whether the images are those of the run's own evaluation, made in the same way."""
    data = self.run.config.get("data", {})
    return any(self.data["name"] == data.get("name") and self.data["split"] == data.get(f"{part}_split")
               and self.data["transform"] == (data.get(f"{part}_transform") or "") for part in ("test", "eval"))


class Networks:
  """Weights of the runs, read once each."""

  def __init__(self):
    self._loaded: dict[str, Any] = {}

  def load(self, run: Run) -> Any:
    """A `weights.Loaded`, or a `detection.LoadedDetector`; raises one of `ERRORS` if there is none."""
    if run.workdir not in self._loaded:
      if run.summary.get("task") == "detection":
        from bionets_jax.detection.loading import load
      else:
        from bionets_jax.weights.loading import load
      self._loaded[run.workdir] = load(run.workdir)
    return self._loaded[run.workdir]


def with_weights(experiment: Experiment) -> Run | None:
  """The first of its runs that has its weights beside it."""
  for run in experiment.runs:
    try:
      find_weights(run.workdir)
    except FileNotFoundError:
      continue
    return run
  return None


def confusions(
    ledger: Ledger, stored: bool, say: Callable[[str], None]
) -> tuple[list[Confused], list[tuple[str, str]]]:
  """Of one run of each classifying experiment what it takes for what.

  That which `python -m bionets_jax.evaluate WORKDIR --confusion` has stored counts first, and of several that on
  the run's own images, then that on most; else it is computed on the run's own images, and nothing is written.

  Args:
    ledger: of the experiments.
    stored: True for nothing computed.
    say: told of the progress.

  Returns:
    Them, and (experiment, why there is none).
  """
  found, problems = [], []
  for e in ledger.experiments:
    if e.metric.larger:
      continue  # a detector, which finds any number of objects in an image
    if of_files := [_from_file(e, run, evaluation) for run in e.runs for evaluation in run.evaluations
                    if _is_confusion(evaluation.get("confusion"))]:
      found.append(max(of_files, key=lambda c: (c.own, c.data["examples"])))
    elif stored:
      problems.append((e.name, "none is stored"))
    elif (run := with_weights(e)) is None:
      problems.append((e.name, "none is stored, and none of its runs has its weights here"))
    else:
      say(f"{e.name}: evaluating")
      bad = run.config.get("data", {}).get("max_bad_records")
      options = command_line.parse([
          run.workdir, "--confusion", f"--max-bad-records={bad if type(bad) is int and bad > 0 else 0}"])
      try:
        content = evaluate(options, lambda text: say(f"  {text}"), write=False)
      except ERRORS as error:
        problems.append((e.name, f"none is stored, and it cannot be evaluated: {error}"))
        continue
      data = content["data"] | {"examples": content["examples"]}
      found.append(Confused(e.name, run, data, content["confusion"]))
  return found, problems


def _from_file(e: Experiment, run: Run, evaluation: Mapping[str, Any]) -> Confused:
  folder = evaluation.get("dir") or run.config.get("data", {}).get("dir") or ""
  data = {"name": str(evaluation.get("data")), "split": str(evaluation.get("split")),
          "transform": str(evaluation.get("transform") or ""), "dir": str(folder),
          "examples": sum(row["examples"] for row in evaluation["confusion"]["per_class"])}
  return Confused(e.name, run, data, evaluation["confusion"])


def _is_confusion(found: Any) -> bool:
  """Whether a value of somebody's JSON file has the form of `evaluate.confusion`'s."""
  if not isinstance(found, dict):
    return False
  names, counts, rows, mistakes = (
      found.get(key) for key in ("class_names", "counts", "per_class", "mistakes"))
  if not all(isinstance(part, list) for part in (names, counts, rows, mistakes)) or not names:
    return False
  number = len(names)
  return all(isinstance(name, str) for name in names) and len(counts) == len(rows) == number and all(
      _are_counts(row) and len(row) == number for row in counts) and all(map(_is_row, rows)) and all(
          _are_counts(row, -1) and len(row) == 3 and row[0] >= 0 and max(row[1:]) < number for row in mistakes)


def _is_row(row: Any) -> bool:
  return isinstance(row, dict) and _are_counts([row.get("examples"), row.get("errors")]) and (
      row.get("error") is None or is_number(row["error"]))


def _are_counts(row: Any, least: int = 0) -> bool:
  return isinstance(row, list) and all(type(n) is int and n >= least for n in row)
