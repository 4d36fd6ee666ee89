"""Runs what a config file describes: one run, the same run with several seeds, or a study of several."""

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections

from bionets_jax.report.table import run_table
from bionets_jax.training.config import nearest
from bionets_jax.training.evaluation import evaluate_workdir
from bionets_jax.training.largest_batch import find_largest_batch
from bionets_jax.training.loop import NotTogether, silent, train, train_together
from bionets_jax.training.setup import check_values
from bionets_jax.training.summary import begun, finished, sweep_summary, write_json
from bionets_jax.training.teacher import check_weights_path

_STUDY_KEYS = ("title", "runs")
_RUN_NAME = re.compile(r"\w[\w+,.-]{0,127}")

Run = tuple[ml_collections.ConfigDict, str]


class _Experiment(NamedTuple):
  """The runs of one config: of itself, or of each of its seeds."""

  runs: list[Run]
  several_seeds: bool


def run(
    config: ml_collections.ConfigDict, workdir: str, *, mode: str = "train",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Runs a config to its end and reports.

  With `config.seeds` = (0, 1) it is run twice, in workdir/seed_0 and workdir/seed_1, each as if it were
  alone with that seed. A study is a config of `title` and `runs`, a name -> config; its runs are made one
  after the other in workdir/NAME. `teacher.weights = 'run:NAME'` takes the teacher from an earlier one, of
  the same seed.

  Args:
    config: of a run (see `training.config`) or of a study.
    workdir: where everything goes.
    mode: 'train', 'eval', or 'largest_batch' to find out which batch fits, without a step.
    say: where progress goes.

  Returns:
    The summary: of a run; of the seeds (`training.summary.sweep_summary`); or name -> either of a study. As
    written to workdir/summary.json. In the other modes what was measured or found, in the same places.

  Raises:
    As `training.loop.train`.
  """
  lead = jax.process_index() == 0
  if not lead:
    say = silent
  if os.path.isfile(workdir):
    raise ValueError(f"--workdir={workdir} is a file; give a directory")
  study = "runs" in config
  experiments = _study(config, workdir) if study else {"": _seeds(config, workdir, {})}
  if mode != "train":
    other = {"eval": _evaluate, "largest_batch": _find_largest_batch}[mode]
    found = {name: other(experiment, say) for name, experiment in experiments.items()}
    return found if study else found[""]

  folders = study or experiments[""].several_seeds
  _check_workdir(workdir, folders)
  for name, experiment in experiments.items() if study else ():
    _check_workdir(os.path.join(workdir, name), experiment.several_seeds)
  # A folder that holds another run is an error before the first run starts, not when its turn comes.
  done = [finished(*run) for experiment in experiments.values() for run in experiment.runs]
  summaries = {}
  for number, (name, experiment) in enumerate(experiments.items(), start=1):
    if study:
      say(f"\n=== {config.title}: {name} ({number} of {len(experiments)}) ===")
    summaries[name] = _train(experiment, say)
    if lead and experiment.several_seeds:
      write_json(os.path.join(workdir, name, "summary.json"), summaries[name])
  names = {name: name or os.path.basename(os.path.abspath(workdir)) for name in experiments}
  title = config.title if study else ""
  if lead:
    # Imported late: Matplotlib takes a third of what a start takes to import.
    from bionets_jax.report.curves import plot_runs

    if study:
      write_json(os.path.join(workdir, "summary.json"), summaries)
    plot_runs({names[name]: [folder for _, folder in experiment.runs]
               for name, experiment in experiments.items()}, _plot_path(workdir), title=title)
  if folders:
    say(f"\n{title}\n{run_table({names[name]: summary for name, summary in summaries.items()})}\n")
  say(f"{'This work was done already. ' if all(done) else ''}Results in {workdir}: summary.json, "
      f"{_plot_path('.')[2:]}, " + ("and a folder for each run" if folders else "metrics.jsonl"))
  return summaries if study else summaries[""]


def _train(experiment: _Experiment, say: Callable[[str], None]) -> dict[str, Any]:
  """Makes the runs of all seeds, as many at once as the config says or the device can hold."""
  runs = experiment.runs
  config = runs[0][0]
  automatic = not config.side_by_side
  # On a CPU runs take longer together than apart (benchmarks/seeds_side_by_side.py).
  size = config.side_by_side or (1 if jax.default_backend() == "cpu" else len(runs))
  results, left = [], list(runs)
  while left:
    group = left[:size]
    try:
      results += ([train(*group[0], say=say)] if len(group) == 1 else
                  train_together(group, say=say, must_fit=automatic))
    except NotTogether as reason:
      size = len(group) // 2
      say(f"{reason}; now {size} at a time")
      continue
    left = left[size:]
  if not experiment.several_seeds:
    return results[0].summary
  return sweep_summary({c.seed: result.summary for (c, _), result in zip(runs, results, strict=True)})


def _evaluate(experiment: _Experiment, say: Callable[[str], None]) -> dict[str, Any]:
  found = {str(config.seed): evaluate_workdir(config, folder, say=say)
           for config, folder in experiment.runs}
  return found if experiment.several_seeds else next(iter(found.values()))


def _find_largest_batch(experiment: _Experiment, say: Callable[[str], None]) -> dict[str, Any]:
  return find_largest_batch(experiment.runs[0][0], say=say)  # the seed changes nothing about it


def _study(config: ml_collections.ConfigDict, workdir: str) -> dict[str, _Experiment]:
  """The runs of a study by name, all checked before the first one starts."""
  for key in config:
    if key not in _STUDY_KEYS:
      raise ValueError(f"config.{key}: nothing reads this key of a study{nearest(key, _STUDY_KEYS)}")
  out = {}
  for name, run_config in config.runs.items():
    if not _RUN_NAME.fullmatch(name):
      raise ValueError(f"config.runs.{name!r}: a run's name is that of its folder; give letters, digits, '_', "
                       "'-', '+', ',' and '.', the first one a letter, digit or '_'")
    try:
      out[name] = _seeds(run_config, os.path.join(workdir, name), out)
    except ValueError as error:
      raise ValueError(f"in config.runs.{name}: {error}") from error
  return out


def _seeds(
    config: ml_collections.ConfigDict, workdir: str, earlier: dict[str, _Experiment]
) -> _Experiment:
  """One run for each seed, with 'run:NAME' replaced by the folder of the earlier run."""
  check_values(config)
  weights = config.get("teacher", {}).get("weights", "")
  out = []
  for seed in config.seeds or [config.seed]:
    one = config.copy_and_resolve_references()
    one.seed, one.seeds = seed, ()
    if weights.startswith("run:"):
      one.teacher.weights = _teacher(weights, seed, earlier)
    out.append((one, os.path.join(workdir, f"seed_{seed}") if config.seeds else workdir))
  if any(finished(one, folder) is None for one, folder in out):
    # Not only when the runs before it in a study are made.
    if config.task == "wld" and not weights.startswith("run:"):
      check_weights_path(weights)
    elif start := config.get("model", {}).get("weights", ""):
      check_weights_path(start, "config.model.weights")
  return _Experiment(out, several_seeds=bool(config.seeds))


def _teacher(weights: str, seed: int, earlier: dict[str, _Experiment]) -> str:
  source = weights[len("run:"):]
  if source not in earlier:
    raise ValueError(f"config.teacher.weights={weights!r}: {source!r} is not a run before it; those are "
                     f"{', '.join(earlier) or 'none'}")
  folders = {config.seed: folder for config, folder in earlier[source].runs}
  if not earlier[source].several_seeds:
    return next(iter(folders.values()))
  if seed not in folders:
    raise ValueError(f"config.teacher.weights={weights!r} has no run of seed {seed}; it has those of "
                     f"{', '.join(map(str, folders))}")
  return folders[seed]


def _check_workdir(workdir: str, folders: bool) -> None:
  """Refuses to put the summary of several runs over that of one, or the reverse."""
  if folders and begun(workdir):
    raise ValueError(f"{workdir} holds a single run, and this config makes several; choose another --workdir")
  there = [os.path.exists(os.path.join(workdir, name)) for name in ("summary.json", "config.json")]
  if not folders and there == [True, False]:
    raise ValueError(f"{workdir} holds several runs in folders of their own, and this config makes a single "
                     "one; choose another --workdir")


def _plot_path(workdir: str) -> str:
  return os.path.join(workdir, "plots", "curves.png")
