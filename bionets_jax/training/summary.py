"""What a finished run says of itself."""

import json
import math
import os
import subprocess
from collections.abc import Mapping
from typing import Any

import flax
import jax
import ml_collections

import bionets_jax
from bionets_jax.counting import count_macs, count_parameters
from bionets_jax.data.grammar import parse_call, split_calls
from bionets_jax.data.transforms import CenterCrop, Resize, TenCrop
from bionets_jax.training import config as config_lib
from bionets_jax.training.checkpoint_record import FILES
from bionets_jax.training.clock import Clock
from bionets_jax.training.devices import describe_devices
from bionets_jax.training.learning import detector_options, model_options
from bionets_jax.training.setup import Setup
from bionets_jax.training.spread import Spread
from bionets_jax.training.state import TrainState
from bionets_jax.weights.native import WEIGHT_FILE
from bionets_jax.weights.run_facts import read_json
from bionets_jax.weights.run_metric import OF_CLASS, metric_of, network_of
from bionets_jax.weights.whole import write_whole


def finished(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any] | None:
  """The summary of the run in `workdir` if it is done, None if it is not or there is none.

  Raises:
    ValueError: if the workdir belongs to a run of another config, naming what differs.
  """
  if not begun(workdir):
    return None
  stored = read_json(os.path.join(workdir, "config.json"))
  if changed := config_lib.differences(config, stored):
    raise ValueError(f"{workdir} holds another run; choose another --workdir. It differs in\n  "
                     + "\n  ".join(changed))
  path = os.path.join(workdir, "summary.json")
  if not os.path.exists(path):
    return None
  summary = read_json(path)
  try:
    result_line(summary)
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise ValueError(f"{path} is damaged: it lacks what a finished run says ({type(error).__name__}: {error}); "
                     "remove it, and the same command writes it again") from error
  return summary


def begun(workdir: str) -> bool:
  """Whether `workdir` is a run's own. One that has saved nothing owns nothing."""
  return os.path.exists(os.path.join(workdir, "config.json")) and (
      any(os.path.exists(os.path.join(workdir, n)) for n in ("summary.json", WEIGHT_FILE))
      or any(map(_is_saved, _paths(os.path.join(workdir, "checkpoints")))))


def _paths(folder: str) -> list[str]:
  return [os.path.join(folder, name) for name in os.listdir(folder)] if os.path.isdir(folder) else []


def _is_saved(path: str) -> bool:
  """Whether it is a checkpoint, or one that was only not renamed yet when its process was killed."""
  name = os.path.basename(path)
  return name.isdigit() or (
      name.removesuffix(".saving").isdigit() and os.path.exists(os.path.join(path, FILES)))


def make_summary(
    config: ml_collections.ConfigDict, setup: Setup, state: TrainState, clock: Clock,
    memory: dict[str, Any], commit: str, *, side_by_side: int = 1,
    start_seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
  """What summary.json of a run holds.

  Args:
    config, setup, state, clock: of the run.
    memory: its evaluations, as in its checkpoints.
    commit: see `source_version`.
    side_by_side: how many runs the clock's time is shared by.
    start_seconds: of the last start, phase by phase up to the end of the first step (`StartUp.seconds`).
  """
  pipeline = setup.pipeline
  return {
      "model": config.model.name,
      "task": config.task,
      **({"detector": config.detector.kind} if config.task == "detection" else {}),
      "data": config.data.name,
      "seed": config.seed,
      "parameters": count_parameters({"params": state.params}),
      "macs": count_macs(setup.task.model, pipeline.image_shape),
      "steps": setup.total_steps,
      "skipped_steps": int(state.nonfinite["skipped"]),
      "epochs": round(setup.total_steps / pipeline.steps_per_epoch, 3),
      "batch_size": config.batch_size,
      "last": memory["last"],
      "best": memory["best"],
      **({"test": memory["test"]} if "test" in memory else {}),
      "select": config.select,
      "train_seconds": round(clock.train / side_by_side, 1),
      "total_seconds": round(clock.total / side_by_side, 1),
      "start_seconds": dict(start_seconds or {}),
      "side_by_side": side_by_side,
      "devices": describe_devices(setup.mesh),
      "dtype": setup.dtype,
      "versions": {"bionets_jax": bionets_jax.__version__, "jax": jax.__version__,
                   "flax": flax.__version__},
      "commit": commit,
      "inputs": memory["inputs"],
      **({"bad_records": bad} if (bad := pipeline.bad_records.counts) else {}),
      "paper": config_lib.to_json(config.paper),
  }


def source_version() -> str:
  """The commit that the package runs from, '+' where files differ from it; '' outside a repository."""
  def git(*arguments):
    folder = os.path.dirname(bionets_jax.__file__)
    command = ["git", "-C", folder, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
  try:
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if changed.strip() else "")
  except (OSError, subprocess.CalledProcessError):
    return ""


def sweep_summary(summaries: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
  """What summary.json of runs that differ in their seed holds: each of them, and their means.

  Args:
    summaries: seed -> what `make_summary` returned.

  Returns:
    Under 'last', 'best' and 'test' name -> {'mean', 'std', 'n'} for each metric (`Spread`).
  """
  first = next(iter(summaries.values()))
  out = {key: first[key] for key in ("model", "task", "data", "parameters", "macs", "epochs", "paper")}
  for part in ("last", "best", "test"):
    if part not in first:
      continue
    out[part] = {
        name: Spread.of([summary[part][name] for summary in summaries.values()])._asdict()
        for name in first[part] if name != "step" and all(name in s[part] for s in summaries.values())}
  out["train_seconds"] = sum(summary["train_seconds"] for summary in summaries.values())
  out["total_seconds"] = sum(summary["total_seconds"] for summary in summaries.values())
  out["seeds"] = {str(seed): summary for seed, summary in summaries.items()}
  return out


def about_weights(config: ml_collections.ConfigDict, setup: Setup) -> dict[str, Any]:
  """What the weight file says of itself, enough to build the model and feed it."""
  network = {"model": config.model.name, "options": model_options(config)}
  if config.task == "detection":
    network = {"task": config.task, "model": config.detector.kind, "options": {
        "backbone": config.model.name, "backbone_options": model_options(config),
        **detector_options(config)}}
  return {
      **network,
      "num_classes": setup.pipeline.num_classes,
      "class_names": list(setup.pipeline.class_names),
      "image_shape": list(setup.pipeline.image_shape),
      "preprocessing": {
          "mean": list(setup.task.mean), "std": list(setup.task.std),
          **resizing(config.data.eval_transform, setup.pipeline.image_shape[0])},
      "eval_transform": config.data.eval_transform,
  }


def resizing(transform: str, side: int) -> dict[str, Any]:
  """How the images of an evaluation come to their size, as `Preprocessing` has it."""
  known = {"resize": Resize, "center_crop": CenterCrop, "ten_crop": TenCrop}
  steps = [parse_call(call, known) for call in split_calls(transform)[:2] if call.split("(")[0].strip() in known]
  if len(steps) == 2 and isinstance(steps[0], Resize) and not isinstance(steps[1], Resize):
    resize, crop = steps
    return {"image_size": crop.size, "resize": resize.size, "interpolation": resize.interpolation}
  return {"image_size": side, "resize": side, "interpolation": "bilinear"}


def result_line(summary: dict[str, Any]) -> str:
  """The outcome of a run in a line, beside the paper's where there is one."""
  last, best, test = summary["last"], summary["best"], summary.get("test")
  metric = metric_of(summary)
  paper = summary["paper"].get(metric.key)
  def percent(values):
    # Without an object that counts there is no average precision.
    return f"{values.get(metric.key, math.nan) if metric.larger else values[metric.key]:.2f} %"
  return (f"{network_of(summary)}, {metric.name} {percent(last)} at step {last['step']} "
          f"({metric.extreme} {percent(best)} at step {best['step']}"
          + (f"; {percent(test)} on the test set with the weights of step {test['step']}" if test else "")
          + (f"; the paper has {paper} %)" if paper else ")"))


def show(values: dict[str, float]) -> str:
  def one(key, value):
    if key.startswith("ap"):
      return f"{'AP' + key[2:]} {value:.2f} %"
    if key.endswith("_error"):
      return f"{key[:-6].replace('top', 'top-')} error {value:.2f} %"
    if key == "bad_records":
      return f"bad records {value:g}"
    return f"{key} {value:.4f}"
  return "  ".join(one(k, v) for k, v in values.items() if not k.startswith(OF_CLASS))


def write_json(path: str, content: Any) -> None:
  """Writes a JSON file, whole or not at all."""
  write_whole({path: json.dumps(content, indent=2) + "\n"})
