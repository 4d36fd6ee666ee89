"""Runs what a config file describes: one run, or a study of several, and reports on it."""

import os
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from bionets_jax.report.curves import plot_runs
from bionets_jax.report.table import run_table
from bionets_jax.training.config import nearest
from bionets_jax.training.evaluation import evaluate_workdir
from bionets_jax.training.loop import silent, train
from bionets_jax.training.setup import check_values
from bionets_jax.training.summary import write_json

_STUDY_KEYS = ("title", "runs")


def run(
    config: ml_collections.ConfigDict, workdir: str, *, mode: str = "train",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Runs a config to its end and reports.

  A study is a config of `title` and `runs`, a name -> config; its runs are made one after the other
  in workdir/NAME. `teacher.weights = 'run:NAME'` takes the teacher from an earlier one.

  Args:
    config: of a run (see `training.config`) or of a study.
    workdir: where everything goes.
    mode: 'train' or 'eval'.
    say: where progress goes.

  Returns:
    The summary: of a run, or name -> summary of a study, as written to workdir/summary.json.

  Raises:
    As `training.loop.train`.
  """
  lead = jax.process_index() == 0
  if not lead:
    say = silent
  if os.path.isfile(workdir):
    raise ValueError(f"--workdir={workdir} is a file; give a directory")
  if "runs" not in config:
    if mode == "eval":
      return evaluate_workdir(config, workdir, say=say)
    summary = train(config, workdir, say=say).summary
    if lead:
      plot_runs({os.path.basename(os.path.abspath(workdir)): workdir}, _plot_path(workdir))
    say(f"results in {workdir}: summary.json, metrics.jsonl, {_plot_path('.')[2:]}")
    return summary

  runs = _resolve(config, workdir)
  folders = {name: os.path.join(workdir, name) for name in runs}
  if mode == "eval":
    return {name: evaluate_workdir(c, folders[name], say=say) for name, c in runs.items()}
  summaries, worked = {}, False
  for number, (name, run_config) in enumerate(runs.items(), start=1):
    say(f"\n=== {config.title}: {name} ({number} of {len(runs)}) ===")
    result = train(run_config, folders[name], say=say)
    summaries[name] = result.summary
    worked = worked or result.state is not None
  if lead:
    write_json(os.path.join(workdir, "summary.json"), summaries)
    plot_runs(folders, _plot_path(workdir), title=config.title)
  say(f"\n{config.title}\n{run_table(summaries)}\n")
  say(f"{'' if worked else 'This work was done already. '}Results in {workdir}: "
      f"summary.json, {_plot_path('.')[2:]}, and a folder for each run")
  return summaries


def _resolve(
    config: ml_collections.ConfigDict, workdir: str
) -> dict[str, ml_collections.ConfigDict]:
  """The runs of a study with 'run:NAME' replaced, all checked before the first one starts."""
  for key in config:
    if key not in _STUDY_KEYS:
      raise ValueError(f"config.{key}: nothing reads this key of a study{nearest(key, _STUDY_KEYS)}")
  out = {}
  for name, run_config in config.runs.items():
    run_config = run_config.copy_and_resolve_references()
    try:
      check_values(run_config)
    except ValueError as error:
      raise ValueError(f"in config.runs.{name}: {error}") from error
    weights = run_config.get("teacher", {}).get("weights", "")
    if weights.startswith("run:"):
      source = weights[len("run:"):]
      if source not in out:
        raise ValueError(f"config.runs.{name}.teacher.weights={weights!r}: {source!r} is not a run "
                         f"before it; those are {', '.join(out) or 'none'}")
      run_config.teacher.weights = os.path.join(workdir, source)
    out[name] = run_config
  return out


def _plot_path(workdir: str) -> str:
  return os.path.join(workdir, "plots", "curves.png")
