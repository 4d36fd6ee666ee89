"""What the command line asks for: data and weights together, measured, printed and written."""

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax

import bionets_jax
from bionets_jax.evaluate import robustness
from bionets_jax.evaluate.confusion import ConfusionTask, confusion, in_words
from bionets_jax.evaluate.examples import Annotated, Examples, check_classes, file_stem
from bionets_jax.evaluate.network import Weights, make_task, read_weights
from bionets_jax.evaluate.real_labels import RealLabels, RealTask, read_real_labels, real_error
from bionets_jax.ops import compiler_options
from bionets_jax.training import evaluation
from bionets_jax.training.devices import describe_devices, make_mesh, replicated
from bionets_jax.training.side_by_side import over_runs
from bionets_jax.training.state import make_eval_step
from bionets_jax.training.summary import show, source_version
from bionets_jax.training.tasks import CROP_AVERAGES
from bionets_jax.weights.locate import is_remote
from bionets_jax.weights.native import LAYOUT
from bionets_jax.weights.whole import write_whole


def evaluate(
    options: argparse.Namespace, say: Callable[[str], None] = print, *, write: bool = True
) -> dict[str, Any]:
  """Evaluates, and writes NAME.json.

  Args:
    options: see `command_line.parse`.
    say: told of the progress and the result.
    write: False for nothing written, and no result said.

  Returns:
    What the file holds.

  Raises:
    ValueError, OSError, RuntimeError: saying what is wrong with which option.
  """
  levels = {kind: robustness.KINDS[kind].levels if given is None else given
            for kind, given in options.disturbances.items()}
  levels = {kind: given for kind, given in levels.items() if given}
  for kind, given in levels.items():
    robustness.check_levels(kind, given)
  found = read_weights(options.weights, options.model, options.model_options)
  loaded = found.loaded
  mesh = make_mesh()
  data = which_data(options, found)
  config = found.config
  batch_size = options.batch_size or config.get("eval_batch_size") or config.get("batch_size") or 256
  if not options.batch_size:
    batch_size = -(-batch_size // mesh.size) * mesh.size
  examples = Examples(
      data["name"], data["split"], data["dir"], data["transform"], limit=options.limit,
      batch_size=batch_size, workers=options.workers, mesh=mesh,
      max_bad_records=options.max_bad_records)
  check_classes(loaded.class_names, examples.source, loaded.path)
  if levels and examples.crops > 1:
    raise ValueError(f"--transform={data['transform']!r} makes {examples.crops} crops of an image; disturbed "
                     "images are for one: end in center_crop")
  crop_average = options.crop_average or config.get("crop_average") or CROP_AVERAGES[0]
  task, *variables, dtype = make_task(
      loaded, num_classes=examples.source.num_classes, image_shape=examples.image_shape,
      dtype=options.dtype or config.get("dtype") or "auto", crop_average=crop_average)
  where = (f"{loaded.name}, {data['name']} {data['split']}, {'the first ' * bool(options.limit)}"
           f"{len(examples):,} images" + (f" of {examples.crops} crops" if examples.crops > 1 else ""))
  say(f"{where}, on {describe_devices(mesh)}, {dtype}")

  variables = jax.device_put(tuple(variables), replicated(mesh))
  measure = _disturbed if levels else _clean
  results = measure(task, variables, examples, levels, options, say)
  # Of a run in its workdir; somebody else's file may lie in a cache, or where others read.
  beside = os.path.dirname(loaded.path) if loaded.layout == LAYOUT and not is_remote(options.weights) else ""
  folder = options.out or os.path.join(beside, "evaluations")
  name = options.name or default_name(options, data, levels)
  path = os.path.join(folder, f"{name}.json")
  content = {
      "model": loaded.name, "weights": os.path.abspath(loaded.path),
      **({"model_options": options.model_options} if options.model_options else {}),
      "data": {**data, "location": examples.source.location}, "limit": options.limit,
      "examples": len(examples), "crops": examples.crops,
      **({"crop_average": crop_average} if examples.crops > 1 else {}),
      **({"seed": options.seed} if "noise" in levels else {}),
      **({"real_labels": os.path.abspath(options.real_labels)} if options.real_labels else {}),
      **results, "batch_size": batch_size, "dtype": dtype, "devices": describe_devices(mesh),
      "versions": {"bionets_jax": bionets_jax.__version__, "jax": jax.__version__, "flax": flax.__version__},
      "commit": source_version()}
  if not write:
    return content
  os.makedirs(folder, exist_ok=True)
  write_whole({path: _as_json(content)})
  if levels:
    from bionets_jax.evaluate.figure import plot
    say(robustness.as_text(results))
    plot(results, f"{path.removesuffix('.json')}.png", where)
    say(f"written to {path} and .png")
  else:
    say(f"{where}: {_in_words(results['clean'])}")
    if options.confusion:
      say(in_words(results["confusion"]))
    say(f"written to {path}")
  return content


def which_data(options: argparse.Namespace, found: Weights) -> dict[str, str]:
  """The data set's name, dir, split and transform: the options', and what they leave out as in the run.

  Raises:
    ValueError: naming the option that is missing.
  """
  run = found.config.get("data", {})
  name = options.data or run.get("name", "")
  if not name:
    raise ValueError(f"{found.loaded.path} does not say which data it was trained on; give --data=NAME and --split")
  tested = "test" if run.get("test_split") else "eval"
  # Another set has its own names of splits; but the network's input stays what it was.
  split = options.split or (run.get(f"{tested}_split", "") if name == run.get("name") else "")
  if not split:
    raise ValueError(f"--data={name}: give its --split too")
  transform = options.transform
  if transform is None:
    transform = run.get(f"{tested}_transform", "") if run else found.transform()
  folder = options.data_dir
  if folder is None:
    folder = run.get("dir", "")
  return {"name": name, "dir": folder, "split": split, "transform": transform}


def default_name(options: argparse.Namespace, data: Mapping[str, str], levels: Mapping[str, Any]) -> str:
  """A name that tells evaluations apart: 'cifar10-test-jpeg' or 'imagenet_v2-matched-frequency-test'."""
  parts = [data["name"], data["split"]]
  if options.transform is not None:
    parts.append(data["transform"] or "as-it-is")
  if options.crop_average:
    parts.append(options.crop_average)
  if options.limit:
    parts.append(f"first {options.limit}")
  if options.real_labels:
    parts.append("real")
  if options.confusion:
    parts.append("confusion")
  if options.robustness:
    parts.append("robustness")
  elif levels:
    parts += levels
  return "-".join(map(file_stem, parts))


def _clean(task, variables, examples, levels, options, say) -> dict[str, Any]:
  del levels
  batches, measured, kept = None, task, {}
  if options.real_labels:
    labels = RealLabels(
        read_real_labels(options.real_labels, examples.source.num_classes), examples.source)
    labels.rows(examples.rows(0)[:1])  # whether these are its images, before anything is computed
    batches = Annotated(examples.batches(), lambda step: {"real": labels.rows(examples.rows(step))})
    measured = RealTask(task)
  elif options.confusion:
    batches, measured = _numbered(examples), ConfusionTask(task)
  eval_step = jax.jit(over_runs(make_eval_step(measured), (0, 0, 0)), compiler_options=compiler_options())
  # What is kept of the examples is no mean, and goes past those.
  (values,) = evaluation.evaluate(
      eval_step, variables, [batches or examples.batches()], len(examples), say,
      measure=lambda found: kept.update(found) or {})
  used = len(examples) - values.get("bad_records", 0)
  return {
      "clean": real_error(values, used) if options.real_labels else values,
      **({"confusion": confusion(kept, examples.source.class_names)}
         if options.confusion else {})}


def _numbered(examples: Examples) -> Annotated:
  return Annotated(examples.batches(), lambda step: {"index": examples.rows(step).astype("int32")})


def _disturbed(task, variables, examples, levels, options, say) -> dict[str, Any]:
  batches = _numbered(examples)
  step = robustness.RobustnessStep(task, levels, options.seed)
  (values,) = evaluation.evaluate(step, variables, [batches], len(examples), say)
  return robustness.by_kind(values, levels)


def _as_json(content: Mapping[str, Any]) -> str:
  """Indented, with lists of numbers in one line: the rows of a confusion matrix."""
  text = json.dumps(content, indent=2)
  # No string has a line break in it, so that this finds lists alone.
  return re.sub(r"\[\n([\s\d,-]+)\n *\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def _in_words(values: Mapping[str, float]) -> str:
  counted = {k: v for k, v in values.items() if k != "real_examples"}
  text = show(counted)
  if "real_examples" in values:
    text += f" of {values['real_examples']:,} images that have such labels"
  return text
