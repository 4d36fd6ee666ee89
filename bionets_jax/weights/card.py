"""The model card of a network: README.md for people and the Hugging Face hub, config.json for programs."""

import json
import os
from collections.abc import Mapping
from typing import Any

from bionets_jax.weights import markdown, timm_config
from bionets_jax.weights.detectors import backbone_of, is_detector
from bionets_jax.weights.native import WEIGHT_FILE
from bionets_jax.weights.papers import papers_of
from bionets_jax.weights.preprocessing import Preprocessing
from bionets_jax.weights.run_facts import Measured, Run, read_run
from bionets_jax.weights.whole import write_whole

LIBRARY = "bionets_jax"
CARD_FILE, CONFIG_FILE = "README.md", timm_config.CONFIG_FILE
_KINDS = {
    "ic_": ("IC network", "convolutions have inter-layer collision (IC) units in place"),
    "fp_": ("FP-net", "whole stages are FP-blocks, products of two depthwise filters"),
    "keffnet_": ("kEffNet", "1x1 convolutions are grouped and interleaved"),
}
# Our name of a data set -> the hub's of the same one, and what it is called.
_DATA = {
    "cifar10": ("uoft-cs/cifar10", "CIFAR-10"), "cifar100": ("uoft-cs/cifar100", "CIFAR-100"),
    "imagenet2012": ("ILSVRC/imagenet-1k", "ImageNet 2012"),
}  # fmt: skip
# Of a run's config: what says where things were, or how it was reported, and nothing of the weights.
_NOT_SHOWN = ("data.dir", "data.workers", "teacher.weights", "device", "keep_checkpoints", "keep_best",
              "keep_every", "log_every", "checkpoint_every", "eval_batch_size", "side_by_side", "seeds", "paper",
              "model")


def write_card(
    folder: str | os.PathLike, about: Mapping[str, Any], *, run: str | os.PathLike = "", source: str = "",
    repo: str = "",
) -> tuple[str, str]:
  """Writes README.md and config.json beside the weights in `folder`; returns their paths.

  What is not known is left out; a licence always is, which is for the owner of the weights to choose. Nothing
  of it says where things lay on this machine.

  Args:
    folder: with what is to be shared. What lies in it is described: model.py, model.onnx, ...
    about: what `native.save_native` wrote beside the variables: model, options, num_classes, ...
    run: workdir of the run that trained these weights; '' for none.
    source: the address that they are from, where they are another library's; '' for none.
    repo: 'OWNER/NAME' that the folder will have on the hub; '' if that is not known.

  Raises:
    ValueError: a file of the run is damaged.
  """
  folder = os.fspath(folder)
  facts = read_run(run) if run else Run({}, {}, {}, (), ())
  transform = (facts.config.get("data") or {}).get("eval_transform") or about.get("eval_transform") or ""
  config = _config(about)
  parameters, macs = _sizes(about, facts.summary)
  files = set(os.listdir(folder))
  sections = [
      _head(about, facts, source, parameters, macs), _results(facts), _training(facts),
      _input(about, transform), _loading(about, files, repo), _caveats(facts), _citation(about, facts)]
  card = _metadata(about, facts, repo, files) + "\n\n".join(filter(None, sections)) + "\n"
  paths = os.path.join(folder, CARD_FILE), os.path.join(folder, CONFIG_FILE)
  write_whole(dict(zip(paths, (card, json.dumps(config, indent=2, ensure_ascii=False) + "\n"), strict=True)))
  return paths


def _config(about: Mapping[str, Any]) -> dict[str, Any]:
  fields = ("model", "options", "num_classes", "class_names", "image_shape", "preprocessing")
  if is_detector(about):  # timm has none
    return {"library_name": LIBRARY, **{key: about[key] for key in ("task", *fields, "eval_transform") if key in about}}
  preprocessing = Preprocessing(**about["preprocessing"])
  return {
      "library_name": LIBRARY, **{key: about[key] for key in fields},
      **timm_config.write_fields(
          about["model"], about["options"], about["num_classes"], preprocessing, tuple(about["class_names"]),
          about["image_shape"][-1])}


def _sizes(about: Mapping[str, Any], summary: Mapping[str, Any]) -> tuple[int | None, int | None]:
  """Parameters, and multiply-adds of an image; of a detector None where its run does not say."""
  if isinstance(summary.get("parameters"), int) and isinstance(summary.get("macs"), int):
    return summary["parameters"], summary["macs"]
  if is_detector(about):
    return None, None
  # Late: these need JAX, and a run has counted already.
  from bionets_jax.counting import measure
  from bionets_jax.models import create_model

  model = create_model(about["model"], about["num_classes"], **about["options"])
  parameters, layers = measure(model, tuple(about["image_shape"]))
  return parameters, sum(layer.macs for layer in layers)


def _metadata(about: Mapping[str, Any], facts: Run, repo: str, files: set[str]) -> str:
  """The YAML header."""
  from huggingface_hub import EvalResult, ModelCardData

  name, metric = about["model"], facts.metric
  task = "object-detection" if is_detector(about) else "image-classification"
  tags = ["jax", "flax"] + ["pytorch"] * ("model.py" in files)
  tags += [kind.lower().replace(" ", "-") for prefix, (kind, _) in _KINDS.items()
           if backbone_of(about)[0].startswith(prefix)]
  # Of a copy that differs from the published set nothing may stand under the published one's name.
  known = {} if facts.caveats else _DATA
  seed = facts.summary.get("seed")
  results = []
  for measured in facts.measured():
    hub, title = known.get(measured.data, (measured.data, measured.data))
    for key, value in measured.value.items():
      top = key.removesuffix("_error").replace("top", "top-")
      kind, called, number = "accuracy", f"{top} accuracy (%)", 100 - value
      if metric.larger:
        headings = {metric.key: metric.heading, metric.beside: metric.beside_heading}
        kind, called, number = "mAP", headings[key], value
      results.append(EvalResult(
          task_type=task, dataset_type=hub or "unknown", dataset_name=title or "unknown",
          dataset_split=measured.split or None, metric_type=kind, metric_name=called,
          metric_args=None if seed is None else {"seed": seed}, metric_value=round(number, 4)))
  data = [known[name][0] for name in [(facts.config.get("data") or {}).get("name")] if name in known]
  card = ModelCardData(
      library_name=LIBRARY, pipeline_tag=task, tags=tags, datasets=data or None,
      model_name=repo.rpartition("/")[2] or name if results else None, eval_results=results or None)
  return f"---\n{card.to_yaml()}\n---\n\n"


def _head(about, facts, source, parameters, macs) -> str:
  name, options = about["model"], about["options"]
  backbone = backbone_of(about)[0]
  kind = next((f", an {kind}" if kind[0] in "IF" else f", a {kind}", text) for prefix, (kind, text) in
              [*_KINDS.items(), ("", ("plain network", ""))] if backbone.startswith(prefix))
  data = (facts.config.get("data") or {}).get("name") or facts.summary.get("data")
  trained = f", trained on {markdown.cell(data)}" if data else ""
  what, its = f"`{name}` of bionets_jax{kind[0]}{trained}.", "Its"
  if is_detector(about):
    what = f"`{name}` of bionets_jax, a detector{trained}. Its backbone is `{backbone}`{kind[0]}."
    name, its = f"{name} with {backbone}", "The backbone's"
  if kind[1]:
    what += f" {its} {kind[1]}."
  if source:
    what += f" The weights are those of `{markdown.cell(source)}`, with their values unchanged."
  height, width, channels = about["image_shape"]
  rows = [("options", ", ".join(f"`{key}={json.dumps(value)}`" for key, value in options.items())),
          ("classes", f"{about['num_classes']:,}"), ("parameters", f"{parameters:,}" if parameters else ""),
          (f"multiply-adds for {height} x {width} x {channels}", f"{macs:,}" if macs else "")]
  return f"# {name}\n\n{what}\n\n" + markdown.table(("", ""), [row for row in rows if row[1]])


def _results(facts: Run) -> str:
  rows = [(m.what, _on(m), m.first, m.beside) for m in facts.measured()]
  paper, metric = facts.paper, facts.metric
  if rows and isinstance(paper.get(metric.key), int | float):
    deviation = f" ± {paper[f'{metric.key}_std']}" if paper.get(f"{metric.key}_std") else ""
    where = ", ".join(str(paper[key]) for key in ("table", "row") if paper.get(key))
    of = {"best": f"the {metric.extreme} over the training", "last": "after the last step", "test": "on a test set"}
    seeds = f"{paper['seeds']} seeds" if (paper.get("seeds") or 0) > 1 else ""
    means = ", ".join(filter(None, (of.get(paper.get("statistic", "")), seeds)))
    rows.append((f"the paper's: {where}" + (f" ({means})" if means else ""), str(paper.get("data", "")),
                 f"{paper[metric.key]}{deviation}", str(paper.get(metric.beside, ""))))
  columns = "", "measured on", metric.heading, metric.beside_heading
  title = "Average precision" if metric.larger else "Errors"
  return f"## {title}\n\n{markdown.table(columns, rows)}" if rows else ""


def _on(measured: Measured) -> str:
  number = f"{measured.images:,} images" if isinstance(measured.images, int) else ""
  return ", ".join(filter(None, (measured.data, measured.split, number, measured.transform)))


def _training(facts: Run) -> str:
  config, summary, paper = facts.config, facts.summary, facts.paper
  if not (config or summary):
    return ""
  inputs = summary.get("inputs") or {}
  versions = summary.get("versions") or {}
  commit, teacher = str(summary.get("commit") or ""), str((config.get("teacher") or {}).get("weights") or "")
  rows = [
      ("data", summary.get("data"), paper.get("data")),
      ("training images", inputs.get("train_examples"), paper.get("train_examples")),
      ("epochs", summary.get("epochs"), paper.get("epochs")),
      ("batch size", summary.get("batch_size"), paper.get("batch_size")),
      ("steps", summary.get("steps"), None),
      ("task", {"wld": "weak logit distillation"}.get(summary.get("task", ""), summary.get("task")), None),
      ("teacher", teacher if "://" in teacher else None, None),  # a path says something of this machine only
      ("seed", summary.get("seed"), None),
      ("devices", summary.get("devices"), None),
      ("arithmetic", summary.get("dtype"), None),
      ("hours", round(summary["train_seconds"] / 3600, 2) if summary.get("train_seconds") else None, None),
      ("commit", commit.removesuffix("+") + (", with changes" if commit.endswith("+") else ""), None),
      ("versions", ", ".join(f"{key} {value}" for key, value in versions.items()), None)]
  rows = [(key, ours, theirs) for key, ours, theirs in rows if ours not in (None, "")]
  compared = any(theirs is not None for *_, theirs in rows)
  columns = ("", "this run", "the paper")[: 3 if compared else 2]
  parts = ["## Training"]
  if rows:
    parts.append(markdown.table(columns, [row[: len(columns)] for row in rows]))
  if config:
    shown = {key: value for key, value in _flat(config).items()
             if not any(key == no or key.startswith(no + ".") for no in _NOT_SHOWN)}
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in shown.items())
    parts.append(f"The whole config:\n\n{markdown.fenced(lines)}")
  return "\n\n".join(parts)


def _input(about: Mapping[str, Any], transform: str) -> str:
  prep = Preprocessing(**about["preprocessing"])
  mean, std = (", ".join(f"{x:g}" for x in values) for values in (prep.mean, prep.std))
  text = (f"Images are divided by 255, less the mean ({mean}), divided by the deviation ({std}), channel by "
          "channel.")
  if "ten_crop" not in transform and (prep.resize > prep.image_size or transform.startswith("resize(")):
    text += (f" The shorter side is resized to {prep.resize} pixels ({prep.interpolation}), and the central "
             f"{prep.image_size} x {prep.image_size} are taken.")
  elif transform:
    text += f" For the evaluation they were prepared by `{markdown.cell(transform)}`."
  return f"## Input\n\n{text}"


def _loading(about: Mapping[str, Any], files: set[str], repo: str) -> str:
  if is_detector(about):
    return "\n\n".join(["## Loading", "With `bionets_jax`, in JAX:", markdown.fenced(f"""\
from bionets_jax.detection import Finder, load

find = Finder(load({WEIGHT_FILE!r}))
found = find(image)  # uint8 (h, w, 3) of any size; found.boxes, found.scores, found.labels""", "python")])
  where = f"hf://{repo}" if repo else WEIGHT_FILE
  height, width, channels = about["image_shape"]
  code = f"""\
import bionets_jax as bn

loaded = bn.weights.load({where!r})
# images: float32 (N, {height}, {width}, {channels}), as above
logits = loaded.model.apply(loaded.variables, images)"""
  parts = ["## Loading", "With `bionets_jax`, in JAX:", markdown.fenced(code, "python")]
  if "model.py" in files:
    code = """\
from model import load, preprocess

model = load()
logits = model(preprocess(images))  # uint8 (N, H, W, C), or PIL images"""
    parts += [f"In PyTorch, without `bionets_jax`, with `model.py` and `{WEIGHT_FILE}` in one folder:",
              markdown.fenced(code, "python")]
  return "\n\n".join(parts)


def _caveats(facts: Run) -> str:
  departures = facts.departures()
  lines = [f"- {markdown.line(text)}" for text in (*departures, *facts.caveats)]
  if departures and isinstance(facts.paper.get(facts.metric.key), int | float):
    lines.append(f"- so the {facts.metric.noun}s above cannot be set against the paper's")
  if str(facts.summary.get("commit") or "").endswith("+"):
    lines.append("- made from code that differs from its commit")
  return "\n".join(["## What to know\n", *lines]) if lines else ""


def _citation(about: Mapping[str, Any], facts: Run) -> str:
  papers = papers_of(*backbone_of(about), facts.summary.get("task", ""))
  if is_detector(about):
    papers += papers_of(about["model"], {})
  entries = "\n\n".join(paper.bibtex() for paper in papers)
  return f"## Papers\n\n{markdown.fenced(entries, 'bibtex')}" if papers else ""


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  out: dict[str, Any] = {}
  for key, value in tree.items():
    out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
  return out
