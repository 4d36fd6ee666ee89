"""What a reader must know before a number of ours stands beside a paper's."""

import re
from typing import TYPE_CHECKING, Any

from bionets_jax.data.catalog import SETS
from bionets_jax.report.workdirs import is_number

if TYPE_CHECKING:
  from bionets_jax.report.ledger import Experiment

_SPLITS = ("train", "eval", "test")


def departures(experiment: "Experiment") -> list[str]:
  """Why these runs are not those of the paper; [] if nothing says so, or there is no paper's number.

  The paper's side is what the config says under `paper`: `data`, `epochs`, `batch_size`,
  `train_examples`, `eval_examples`, `test_examples`, where it says it. That a set is not whole is seen
  without that for the sets of `data.catalog`.
  """
  paper, summary = experiment.paper, experiment.first
  out = []
  if experiment.data.startswith("generated/"):
    form_of = experiment.data.removeprefix("generated/")
    out.append("made-up images" + (f", not {form_of}" if form_of != "shapes" else ""))
  elif paper.get("data", experiment.data) != experiment.data:
    out.append(f"data {experiment.data}; the paper has {paper['data']}")
  for key, digits in (("epochs", 0.01), ("batch_size", 0)):
    ours, theirs = summary.get(key), paper.get(key)
    if is_number(ours) and is_number(theirs) and abs(ours - theirs) > digits:
      out.append(f"{key.replace('_', ' ')} {ours:g}; the paper has {theirs:g}")
  out += _examples(experiment)
  if paper.get(experiment.metric.key) is not None and not is_number(paper.get("epochs")):
    out.append("the config does not say how long the paper trained (paper.epochs)")
  for run in experiment.runs:
    out += [text for text in run.caveats if text not in out]
  return out


def _examples(experiment: "Experiment") -> list[str]:
  paper, run = experiment.paper, experiment.runs[0]
  inputs, data = run.summary.get("inputs") or {}, run.config.get("data", {})
  out, used = [], {}
  for split in _SPLITS:
    ours, theirs = inputs.get(f"{split}_examples"), paper.get(f"{split}_examples")
    if not is_number(ours):
      continue
    if is_number(theirs):
      if ours != theirs:
        out.append(f"{ours:,} images in the {split} split; the paper has {theirs:,}")
    elif name := re.match(r"\w+", data.get(f"{split}_split") or ""):
      used[name[0]] = used.get(name[0], 0) + ours  # a part may be held out of the training set
  for name, size in _sizes(experiment.data).items():
    if used.get(name, size) < size:
      out.append(f"{used[name]:,} of the {size:,} images of {experiment.data}'s {name} split")
  return out


def _sizes(data: str) -> dict[str, int]:
  """Split -> examples of a published set, from 'train 50,000, test 10,000; 10 classes'."""
  text = SETS[data].sizes.split(";")[0] if data in SETS else ""
  return {name: int(size.replace(",", "")) for name, size in re.findall(r"(\w+) (\d[\d,]*\d|\d)", text)}


def remarks(experiment: "Experiment") -> list[str]:
  """What else a reader should know; nothing that keeps the numbers from being compared."""
  paper, runs = experiment.paper, experiment.runs
  out = []
  if waiting := len(experiment.unfinished):
    out.append(f"{waiting} of {waiting + len(runs)} seeds not finished and not in the mean")
  if paper.get(experiment.metric.key) is not None:
    if is_number(seeds := paper.get("seeds")) and len(runs) < seeds:
      out.append(f"{_count(len(runs), 'seed')}; the paper has {seeds}")
    if paper.get("statistic") != experiment.statistic:
      out.append(f"the config does not say which {experiment.metric.noun} the paper reports (paper.statistic); "
                 f"taken here: {experiment.statistic}")
    elif experiment.spread(experiment.statistic) is None:
      out.append(f"the paper reports {paper['statistic']!r}, which these runs do not have")
  if paper.get("note"):
    out.append(f"the paper's number: {paper['note']}")
  for key, what in (("dtype", "arithmetic"), ("commit", "commits")):
    if len(experiment.distinct(key)) > 1:
      out.append(f"seeds of different {what}: " + ", ".join(map(_or_unknown, experiment.distinct(key))))
  if any(str(commit).endswith("+") for commit in experiment.distinct("commit")):
    out.append("made from code that differs from its commit")
  if not all(run.config for run in runs):
    out.append("without a config.json; runs of one folder were taken to belong together")
  return out


def _count(number: int, what: str) -> str:
  return f"{number} {what}" + "s" * (number != 1)


def _or_unknown(value: Any) -> str:
  return str(value)[:12] or "unknown"
