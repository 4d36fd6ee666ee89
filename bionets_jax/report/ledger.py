"""Experiments: runs that differ in nothing but the seed, with mean and deviation."""

import collections
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bionets_jax.report import caveats
from bionets_jax.report.workdirs import Run, find, is_number
from bionets_jax.training.config import identity
from bionets_jax.training.spread import Spread
from bionets_jax.weights.run_metric import OF_CLASS, Metric, metric_of

STATISTICS = ("best", "last", "test")


class What(NamedTuple):
  """What was evaluated; '' where the file does not say."""

  data: str
  split: str
  transform: str
  average: str
  examples: str


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Finished runs of one config, by seed.

  Attributes:
    name: from the names of their folders.
    runs: at least one, each with another seed.
    unfinished: runs of the same config that have not finished, of other seeds than those.
    departures: what keeps these runs from being those of the paper. Where there are any, no difference
      to the paper's number is taken.
    remarks: what else a reader should know.
  """

  name: str
  runs: tuple[Run, ...]
  unfinished: tuple[Run, ...] = ()

  @property
  def first(self) -> dict[str, Any]:
    return self.runs[0].summary

  @property
  def paper(self) -> dict[str, Any]:
    return self.first.get("paper") or {}

  @property
  def data(self) -> str:
    return self.first.get("data", "")

  @property
  def metric(self) -> Metric:
    """By which number these runs are compared."""
    return metric_of(self.first)

  @property
  def statistic(self) -> str:
    """Which of ours stands beside the paper's number: 'best', 'last' or 'test'."""
    named = self.paper.get("statistic")
    return named if named in STATISTICS else "test" if "test" in self.first else "last"

  def word(self, statistic: str) -> str:
    """'lowest' or 'highest' for 'best'."""
    return self.metric.extreme if statistic == "best" else statistic

  def spread(self, statistic: str, metric: str = "") -> Spread | None:
    """Of a metric, in per cent where the paper has that; None unless all runs have it, and finite.

    Args:
      statistic: one of `STATISTICS`.
      metric: its key in the summaries; '' for the one that the runs are compared by.
    """
    values = [run.summary.get(statistic, {}).get(metric or self.metric.key) for run in self.runs]
    return Spread.of(values) if all(map(is_number, values)) else None

  def of_classes(self) -> dict[str, Spread | None]:
    """Of a detector class -> its AP, of the statistic that is compared; as `spread`. {} for classifiers."""
    keys = dict.fromkeys(key for run in self.runs for key in run.summary.get(self.statistic, {})
                         if key.startswith(OF_CLASS))
    return {key.removeprefix(OF_CLASS): self.spread(self.statistic, key) for key in keys}

  def crops(self, metric: str = "top1_error") -> Spread | None:
    """The same of the averages over ten crops, once every run has been evaluated so."""
    values = [self._ten_crops(run).get(metric) for run in self.runs]
    return Spread.of(values) if all(map(is_number, values)) else None

  def difference(self) -> float | None:
    """Ours minus the paper's number, in points; None where the two do not compare."""
    ours, theirs = self.spread(self.statistic), self.paper.get(self.metric.key)
    return None if ours is None or theirs is None or self.departures else ours.mean - theirs

  @property
  def departures(self) -> list[str]:
    return caveats.departures(self)

  @property
  def remarks(self) -> list[str]:
    return caveats.remarks(self)

  def distinct(self, key: str) -> list[Any]:
    """The values of a key of the summaries, each once, in the order of the seeds."""
    return list(dict.fromkeys(run.summary.get(key) or "" for run in self.runs))

  def evaluations(self) -> dict[What, list[dict[str, Any]]]:
    """What was evaluated -> one evaluation for each run that has it."""
    out: dict[What, list[dict[str, Any]]] = {}
    for run in self.runs:
      for key, e in _by_what(run).items():
        out.setdefault(key, []).append(e)
    return out

  def _ten_crops(self, run: Run) -> dict[str, Any]:
    which = "test" if self.statistic == "test" else "eval"
    split = run.config.get("data", {}).get(f"{which}_split")
    examples = (run.summary.get("inputs") or {}).get(f"{which}_examples")
    average = run.config.get("crop_average", "softmax")
    fitting = [(what.average not in ("", average), e) for what, e in _by_what(run).items()
               if "ten_crop" in what.transform and what.data in ("", self.data) and what.split in ("", split)
               and e.get("examples", examples) == examples]
    return min(fitting, key=lambda pair: pair[0])[1] if fitting else {}


class Ledger(NamedTuple):
  """Experiments, runs that have not finished, and (path, what is wrong with it)."""

  experiments: list[Experiment]
  unfinished: list[Run]
  warnings: list[tuple[str, str]]


def collect(workdirs: Iterable[str]) -> list[Experiment]:
  """The experiments whose runs lie in `workdirs` or below: see `read`."""
  return read(workdirs).experiments


def read(workdirs: Iterable[str]) -> Ledger:
  """Reads all runs in `workdirs` and below, and puts those together that differ only in the seed.

  Two runs belong together if their configs are the same but for the seed and what `NOT_THE_RUN` names,
  their data had as many examples, and they name the same row of the paper. Of two runs with the same
  seed the first counts.

  Args:
    workdirs: of a run, a sweep, a study, or folders of any of these; they may overlap.

  Raises:
    FileNotFoundError: if one of them is not there.
  """
  found = find(workdirs)
  groups: dict[str, dict[int | None, Run]] = {}
  left_out: dict[tuple[str, str], list[str]] = {}
  for run in found.runs:
    group = groups.setdefault(_key(run), {})
    counted = group.setdefault(run.seed, run)
    if counted is not run:
      same = "copies of those" if _numbers(run) == _numbers(counted) else "other runs than those"
      left_out.setdefault((run.label, f"{same} in {counted.label}"), []).append(str(run.seed))
  found.warnings += [(label, f"seed {', '.join(seeds)} left out: {what}, which count")
                     for (label, what), seeds in left_out.items()]
  config_of = {key: _plain(next(iter(group.values()))) for key, group in groups.items()}
  waiting = {key: {run.seed: run for run in found.unfinished
                   if run.config and _plain(run) == config and run.seed not in groups[key]}.values()
             for key, config in config_of.items()}
  names = _names([_common([run.label for run in group.values()]) for group in groups.values()])
  experiments = [
      Experiment(name, tuple(sorted(group.values(), key=lambda run: run.seed or 0)), tuple(waiting[key]))
      for name, (key, group) in zip(names, groups.items(), strict=True)]
  return Ledger(experiments, found.unfinished, found.warnings)


def _key(run: Run) -> str:
  paper = run.summary.get("paper") or {}
  inputs = {k: v for k, v in (run.summary.get("inputs") or {}).items() if k != "teacher_crc32"}
  what = _plain(run) or run.label  # without a config nothing says what else would be the same
  return json.dumps([what, inputs, paper.get("table"), paper.get("row")], sort_keys=True)


def _plain(run: Run) -> dict[str, Any]:
  """The config without what may differ within an experiment; keys that it is too old for are filled in."""
  if not run.config:
    return {}
  return {key: value for key, value in identity(run.config).items() if key != "seed"}


def _numbers(run: Run) -> list[Any]:
  return [run.summary.get(key) for key in ("last", "best", "test", "train_seconds")]


def _by_what(run: Run) -> dict[What, dict[str, Any]]:
  keys = ("data", "split", "transform", "crop_average", "examples")
  return {What(*(str(e.get(key) or "") for key in keys)): e for e in run.evaluations}


def _common(labels: Sequence[str]) -> str:
  """The path for a group: that of all its runs, or what their names begin with."""
  if len(set(labels)) == 1:
    return labels[0]
  prefix = os.path.commonprefix([os.path.basename(label) for label in labels])
  prefix = re.sub(r"[-_. ]+(seed|s|run)?[-_. ]*$", "", prefix)
  return os.path.join(os.path.dirname(labels[0]), prefix) if len(prefix) > 2 else labels[0]


def _names(paths: Sequence[str]) -> list[str]:
  """The ends of the paths, as long as it takes to tell them apart; a second one of a path gets a number."""
  parts = {path: [part for part in path.split(os.sep) if part] for path in paths}
  length = dict.fromkeys(parts, 1)
  def ends():
    return {path: "/".join(parts[path][-n:]) for path, n in length.items()}
  while True:
    taken = collections.Counter(ends().values())
    longer = {path: n + (taken[ends()[path]] > 1 and n < len(parts[path])) for path, n in length.items()}
    if longer == length:
      break
    length = longer
  seen: collections.Counter[str] = collections.Counter()
  out = []
  for path in paths:
    seen[path] += 1
    out.append(ends()[path] + (f" ({seen[path]})" if seen[path] > 1 else ""))
  return out
