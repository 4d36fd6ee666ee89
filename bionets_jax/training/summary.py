"""What a finished run says of itself."""

import json
import os
from typing import Any

import flax
import jax
import ml_collections

import bionets_jax
from bionets_jax.counting import count_macs, count_parameters
from bionets_jax.training import config as config_lib
from bionets_jax.training.clock import Clock
from bionets_jax.training.devices import describe_devices
from bionets_jax.training.setup import Setup, model_options
from bionets_jax.training.state import TrainState
from bionets_jax.training.teacher import WEIGHT_FILE


def finished(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any] | None:
  """The summary of the run in `workdir` if it is done, None if it is not or there is none.

  Raises:
    ValueError: if the workdir belongs to a run of another config, naming what differs.
  """
  path = os.path.join(workdir, "config.json")
  begun = any(os.path.exists(os.path.join(workdir, n)) for n in ("summary.json", WEIGHT_FILE)) or any(
      name.isdigit() for name in _names(os.path.join(workdir, "checkpoints")))
  if not begun or not os.path.exists(path):
    return None  # a run that has saved nothing owns nothing
  with open(path, encoding="utf-8") as file:
    stored = json.load(file)
  if changed := config_lib.differences(config, stored):
    raise ValueError(f"{workdir} holds another run; choose another --workdir. It differs in\n  "
                     + "\n  ".join(changed))
  path = os.path.join(workdir, "summary.json")
  if not os.path.exists(path):
    return None
  with open(path, encoding="utf-8") as file:
    return json.load(file)


def _names(folder: str) -> list[str]:
  return os.listdir(folder) if os.path.isdir(folder) else []


def make_summary(
    config: ml_collections.ConfigDict, setup: Setup, state: TrainState, clock: Clock,
    memory: dict[str, Any],
) -> dict[str, Any]:
  """What summary.json holds."""
  pipeline = setup.pipeline
  return {
      "model": config.model.name,
      "task": config.task,
      "data": config.data.name,
      "parameters": count_parameters({"params": state.params}),
      "macs": count_macs(setup.task.model, pipeline.image_shape),
      "steps": setup.total_steps,
      "epochs": round(setup.total_steps / pipeline.steps_per_epoch, 3),
      "batch_size": config.batch_size,
      "last": memory["last"],
      "best": memory["best"],
      "train_seconds": round(clock.train, 1),
      "total_seconds": round(clock.total, 1),
      "devices": describe_devices(setup.mesh),
      "dtype": setup.dtype,
      "versions": {"bionets_jax": bionets_jax.__version__, "jax": jax.__version__,
                   "flax": flax.__version__},
      "inputs": memory["inputs"],
      "paper": config_lib.to_json(config.paper),
  }


def about_weights(config: ml_collections.ConfigDict, setup: Setup) -> dict[str, Any]:
  """What the weight file says of itself, enough to build the model and feed it."""
  height = setup.pipeline.image_shape[0]
  return {
      "model": config.model.name,
      "options": model_options(config),
      "num_classes": setup.pipeline.num_classes,
      "class_names": list(setup.pipeline.class_names),
      "image_shape": list(setup.pipeline.image_shape),
      "preprocessing": {
          "mean": list(setup.task.mean), "std": list(setup.task.std), "image_size": height,
          "resize": height, "interpolation": "bilinear"},
      "eval_transform": config.data.eval_transform,
  }


def result_line(summary: dict[str, Any]) -> str:
  """The outcome of a run in a line, beside the paper's where there is one."""
  last, best = summary["last"], summary["best"]
  paper = summary["paper"].get("top1_error")
  return (f"{summary['model']}, top-1 error {last['top1_error']:.2f} % at step {last['step']} "
          f"(lowest {best['top1_error']:.2f} % at step {best['step']}"
          + (f"; the paper has {paper} %)" if paper else ")"))


def show(values: dict[str, float]) -> str:
  def one(key, value):
    if key.endswith("_error"):
      return f"{key[:-6].replace('top', 'top-')} error {value:.2f} %"
    return f"{key} {value:.4f}"
  return "  ".join(one(k, v) for k, v in values.items())


def write_json(path: str, content: Any) -> None:
  temporary = f"{path}.tmp"
  with open(temporary, "w", encoding="utf-8") as file:
    json.dump(content, file, indent=2)
    file.write("\n")
  os.replace(temporary, path)
