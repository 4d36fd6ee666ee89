"""What the workdir of a run says of its weights: how they were trained, and what was measured."""

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bionets_jax.weights.run_metric import Metric, metric_of

CAVEAT = "caveat.txt"
_SECTIONS = ("last", "best", "test", "paper", "inputs", "versions")  # objects in a summary.json


class Measured(NamedTuple):
  """An error of a network, in per cent; of a detector average precision.

  Attributes:
    what: whose it is.
    data, split, transform: what it was measured on; '' where the run does not say.
    images: their number; None where the run does not say.
    first, beside: by the run's metric and what stands beside it, as text, since it may be a mean with its
      deviation; '' for none.
    value: key -> number of these two where they are of these weights; {} else.
  """

  what: str
  data: str
  split: str
  transform: str
  images: int | None
  first: str
  beside: str
  value: Mapping[str, float] = {}


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished run.

  Attributes:
    config, summary: its config.json and summary.json.
    sweep: summary.json of the runs that differ from it in the seed; {} if it is alone.
    evaluations: its evaluations/*.json.
    caveats: what is written in the caveat.txt of its folder and those above.
  """

  config: Mapping[str, Any]
  summary: Mapping[str, Any]
  sweep: Mapping[str, Any]
  evaluations: tuple[Mapping[str, Any], ...]
  caveats: tuple[str, ...]

  @property
  def paper(self) -> Mapping[str, Any]:
    """The paper's numbers for this row; {} for none."""
    return self.summary.get("paper") or {}

  @property
  def metric(self) -> Metric:
    """By which number it is compared."""
    return metric_of(self.summary)

  def selected(self) -> Mapping[str, Any]:
    """The evaluation of the weights that the run has kept."""
    return self.summary.get("best" if self.summary.get("select") == "best" else "last") or {}

  def measured(self) -> list[Measured]:
    """These weights' errors, or average precision, first, then what else the run knows."""
    metric = self.metric
    data, inputs = self.config.get("data") or {}, self.summary.get("inputs") or {}
    name = data.get("name") or self.summary.get("data", "")

    def row(what, split, values, own=True):
      value = {key: values[key] for key in (metric.key, metric.beside) if _is_number(values.get(key))}
      return Measured(
          what, name, data.get(f"{split}_split", ""), data.get(f"{split}_transform", ""),
          inputs.get(f"{split}_examples"), _text(value.get(metric.key)), _text(value.get(metric.beside)),
          value if own else {})

    summary, kept = self.summary, self.selected()
    rows = []
    if summary.get("test"):
      rows.append(row(f"these weights, of step {summary['test'].get('step')}", "test", summary["test"]))
    if kept:
      chosen = f", chosen by this {metric.noun}" if summary.get("select") == "best" else ""
      rows.append(row(f"these weights, of step {kept.get('step')}{chosen}", "eval", kept))
    for part, of in (("best", f"the {metric.extreme} of all evaluations"), ("last", "the last evaluation")):
      if summary.get(part) and summary[part].get("step") != kept.get("step"):
        what = f"{of}, at step {summary[part].get('step')}: other weights"
        rows.append(row(what, "eval", summary[part], own=False))
    for evaluation in self.evaluations:
      rows += _evaluated(evaluation)
    for part, of in (
        ("test", "test"), ("last", "last evaluation"), ("best", f"{metric.extreme} of all evaluations")):
      if self.sweep.get(part):
        spread = self.sweep[part]
        first = row("", "test" if part == "test" else "eval", {}, own=False)
        seeds = (spread.get(metric.key) or {}).get("n")
        rows.append(first._replace(
            what=f"mean ± deviation over {seeds} seeds, {of}", first=_spread(spread.get(metric.key)),
            beside=_spread(spread.get(metric.beside))))
    return [row for row in rows if row.first]

  def departures(self) -> list[str]:
    """What keeps the paper's number from being set against this run's."""
    paper, out = self.paper, []
    inputs = self.summary.get("inputs") or {}
    ours = {key: self.summary.get(key) for key in ("data", "epochs", "batch_size")} | {
        f"{split}_examples": inputs.get(f"{split}_examples") for split in ("train", "eval", "test")}
    if str(ours["data"]).startswith("generated/"):
      numbers = "average precision says" if self.metric.larger else "errors mean"
      out.append(f"the images are made up: the run is a trial of the code, and its {numbers} nothing"
                 + (" about photographs" if self.metric.larger else ""))
    for key, value in ours.items():
      theirs = paper.get(key)
      if None not in (value, theirs) and value != theirs:
        out.append(f"{key.replace('_', ' ')}: {_plain(value)} here, {_plain(theirs)} in the paper")
    return out


def read_run(workdir: str | os.PathLike) -> Run:
  """Reads the workdir of a finished run; what is not there is empty.

  Raises:
    ValueError: a file of it is damaged.
  """
  workdir = os.path.realpath(workdir)
  folder = os.path.join(workdir, "evaluations")
  there = os.listdir(folder) if os.path.isdir(folder) else ()
  names = sorted(name for name in there if name.endswith(".json"))
  sweep: Mapping[str, Any] = {}
  if match := re.fullmatch(r"seed_(\d+)", os.path.basename(workdir)):
    sweep = _load(os.path.join(os.path.dirname(workdir), "summary.json"))
    seeds = sweep.get("seeds")
    if not isinstance(seeds, dict) or match[1] not in seeds or len(seeds) < 2:
      sweep = {}
  config = _load(os.path.join(workdir, "config.json"))
  config = config if "task" in config else {}  # another library's, or a model card's, has the same name
  summary = _load(os.path.join(workdir, "summary.json"))
  _check_objects(os.path.join(workdir, "config.json"), config, ("data", "teacher"))
  _check_objects(os.path.join(workdir, "summary.json"), summary, _SECTIONS)
  return Run(
      config, summary, sweep,
      tuple(_load(os.path.join(folder, name)) for name in names), tuple(read_caveats(workdir)))


def _check_objects(path: str, content: Mapping[str, Any], keys: Sequence[str]) -> None:
  for key in keys:
    if not isinstance(content.get(key), Mapping | None):
      raise ValueError(f"{path} is damaged: {key!r} is {content[key]!r:.60}, not an object")


def _evaluated(evaluation: Mapping[str, Any]) -> Iterator[Measured]:
  """Of `python -m bionets_jax.evaluate`, the error on undisturbed images."""
  data, clean = evaluation.get("data"), evaluation.get("clean")
  if not isinstance(data, dict) or not isinstance(clean, dict):
    return
  value = {key: clean[key] for key in ("top1_error", "top5_error") if _is_number(clean.get(key))}
  labels = ", reassessed labels" if evaluation.get("real_labels") else ""
  yield Measured(
      f"these weights, evaluated afterwards{labels}", data.get("name", ""), data.get("split", ""),
      data.get("transform", ""), evaluation.get("examples"), _text(value.get("top1_error")),
      _text(value.get("top5_error")), value)


def read_caveats(folder: str) -> Iterator[str]:
  """What the caveat.txt of a folder and of those above say, each as one line."""
  while True:
    path = os.path.join(folder, CAVEAT)
    if os.path.isfile(path):
      with open(path, encoding="utf-8", errors="replace") as file:
        if text := " ".join(file.read().split()):
          yield text
    above = os.path.dirname(folder)
    if above == folder:
      return
    folder = above


def read_json(path: str) -> dict[str, Any]:
  """The object in a file of a run; ValueError, naming the file, if it is damaged."""
  if not os.path.isfile(path):  # a device never ends, and a pipe never begins
    raise ValueError(f"{path} is damaged: it is no regular file")
  try:
    with open(path, encoding="utf-8") as file:
      content = json.load(file)
  except (ValueError, RecursionError) as error:
    reason = "nested too deeply" if isinstance(error, RecursionError) else error
    raise ValueError(f"{path} is damaged: {reason}") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} is damaged: it holds no object")
  return content


def _load(path: str) -> Mapping[str, Any]:
  return read_json(path) if os.path.isfile(path) else {}


def _spread(values: Any) -> str:
  if not isinstance(values, dict) or not _is_number(values.get("mean")):
    return ""
  return f"{values['mean']:.2f}" + (f" ± {values['std']:.2f}" if _is_number(values.get("std")) else "")


def _text(value: float | None) -> str:
  return "" if value is None else f"{value:.2f}"


def _plain(value: Any) -> str:
  return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and value == value
