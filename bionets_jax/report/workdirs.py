"""Finds and reads the runs below some folders, whoever put them there.

A run is a folder with a summary.json of `training.summary`; of a sweep or a study whose own folders are
not there, the summaries inside its summary.json count instead. A folder with a config.json alone is a run
that has not finished. Nothing is written, and no lock is taken: a run that goes on is not disturbed.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from bionets_jax.training.config import duration_in_steps
from bionets_jax.training.writer import read_metrics
from bionets_jax.weights.run_facts import read_caveats
from bionets_jax.weights.run_metric import metric_of

_SEED = re.compile(r"seed_(\d+)")
# Hold nothing that a run says of itself, and checkpoints hold thousands of files.
_SKIPPED = ("checkpoints", "checkpoints-damaged", "plots", "evaluations")


@dataclasses.dataclass(frozen=True)
class Run:
  """A run as its folder tells it.

  Attributes:
    workdir: its real path; of a run that only a sweep's or study's summary holds, where it would be.
    seed: None if neither summary, config nor folder names one.
    summary: what summary.json holds; {} if it has not finished.
    config: what config.json holds; {} if there is none.
    evaluations: of `python -m bionets_jax.evaluate`, in the order of their names; see `_evaluation`.
    caveats: texts of the caveat.txt in its folder and those above.
  """

  workdir: str
  seed: int | None
  summary: dict[str, Any]
  config: dict[str, Any]
  evaluations: tuple[dict[str, Any], ...] = ()
  caveats: tuple[str, ...] = ()

  @property
  def label(self) -> str:
    """The path of what the run belongs to: its own, or the sweep's."""
    folder, name = os.path.split(self.workdir)
    return folder if _SEED.fullmatch(name) else self.workdir

  @property
  def metrics(self) -> str:
    return os.path.join(self.workdir, "metrics.jsonl")

  def progress(self) -> tuple[int, int | None, int | None]:
    """(last step that metrics.jsonl has, newest checkpoint if any, all steps if they can be told)."""
    lines = [line for line in read_metrics(self.metrics) if is_number(line.get("step")) and line.get("epoch")]
    step = max((line["step"] for line in lines), default=0)
    saved = [int(name) for name in _names(os.path.join(self.workdir, "checkpoints")) if name.isdecimal()]
    duration = self.config.get("duration", "")
    try:
      per_epoch = round(lines[-1]["step"] / lines[-1]["epoch"]) if lines else 0
      total = duration_in_steps(duration, per_epoch, "duration") or None
    except (TypeError, ValueError):
      total = None
    return step, max(saved, default=None), total


@dataclasses.dataclass
class Found:
  """What lies below some folders: finished runs, unfinished ones, and (path, what is wrong with it)."""

  runs: list[Run] = dataclasses.field(default_factory=list)
  unfinished: list[Run] = dataclasses.field(default_factory=list)
  warnings: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def find(folders: Iterable[str]) -> Found:
  """Reads every run in `folders` and below, each once however often it is named or linked to.

  Raises:
    FileNotFoundError: if one of the folders is not there.
  """
  found = Found()
  seen: set[str] = set()
  inside: dict[str, tuple[Any, str]] = {}  # workdir -> summary, and where that is, in a sweep's or study's
  for top in folders:
    if not os.path.isdir(top):
      raise FileNotFoundError(f"there is no folder {top}")
    for path, below, files in os.walk(top, followlinks=True):
      folder = os.path.realpath(path)
      if folder in seen:
        below.clear()  # what is below has been read too, or is being read: links may lead in circles
        continue
      seen.add(folder)
      below[:] = sorted((n for n in below if n not in _SKIPPED and not n.startswith(".")), key=_natural)
      if "summary.json" in files:
        _read_summary(folder, found, inside)
      elif "config.json" in files:
        config = _load(os.path.join(folder, "config.json"), found)
        if _is_config(config):
          found.unfinished.append(_make_run(folder, {}, config, found))
        elif config is not None:
          found.warnings.append((os.path.join(folder, "config.json"), "not the config of a run"))
  for workdir, (summary, where) in inside.items():
    # Its own folder tells more, also that it was begun again.
    if not any(os.path.exists(os.path.join(workdir, n)) for n in ("summary.json", "config.json")):
      _add(workdir, summary, where, found)
  return found


def _read_summary(folder: str, found: Found, inside: dict[str, tuple[Any, str]]) -> None:
  path = os.path.join(folder, "summary.json")
  content = _load(path, found)
  if content is None:
    return
  if nested := dict(_nested(folder, content)):
    for workdir, summary in nested.items():
      inside.setdefault(workdir, (summary, f"{path}, {os.path.relpath(workdir, folder)}"))
    return
  _add(folder, content, path, found)


def _nested(folder: str, content: Any) -> Iterator[tuple[str, Any]]:
  """(workdir, summary) of each run inside the summary of a sweep or a study."""
  if not isinstance(content, dict):
    return
  if isinstance(content.get("seeds"), dict):
    for seed, summary in content["seeds"].items():
      yield os.path.join(folder, f"seed_{seed}"), summary
  elif content and "last" not in content and all(
      isinstance(v, dict) and "model" in v for v in content.values()):
    for name, summary in content.items():
      workdir = os.path.join(folder, name)
      inner = dict(_nested(workdir, summary)) if "seeds" in summary else {workdir: summary}
      yield from inner.items()


def _add(workdir: str, summary: Any, where: str, found: Found) -> None:
  if problem := _problem(summary):
    found.warnings.append((where, problem))
    return
  path = os.path.join(workdir, "config.json")
  config = _load(path, found) if os.path.exists(path) else {}
  if config and not _is_config(config):
    found.warnings.append((path, "not the config of a run"))
    config = {}
  found.runs.append(_make_run(workdir, summary, config or {}, found))


def _problem(summary: Any) -> str:
  """What keeps a JSON value from being the summary of a run; '' if nothing does."""
  if not isinstance(summary, dict) or "model" not in summary or "last" not in summary:
    return "not the summary of a run"
  key = metric_of(summary).key
  for part in ("last", "best", "test"):
    if part != "test" or part in summary:
      values = summary.get(part)
      value = values.get(key) if isinstance(values, dict) else None
      if not is_number(value):
        return f"{part}.{key} is {value!r}, not a number"
  for key in ("parameters", "macs", "epochs"):
    if not is_number(summary.get(key)):
      return f"{key} is {summary.get(key)!r}, not a number"
  texts = dict.fromkeys(("model", "detector", "data", "devices", "dtype", "commit"), (str, "a text"))
  objects = dict.fromkeys(("paper", "inputs"), (dict, "an object"))
  kinds = texts | objects | {"seed": (int, "a whole number")}
  for key, (kind, what) in kinds.items():
    if not isinstance(summary.get(key), kind | None):
      return f"{key} is {summary[key]!r}, not {what}"
  return ""


def _make_run(workdir: str, summary: dict, config: dict, found: Found) -> Run:
  in_name = _SEED.fullmatch(os.path.basename(workdir))
  seed = summary.get("seed", config.get("seed", int(in_name[1]) if in_name else None))
  folder = os.path.join(workdir, "evaluations")
  evaluations = []
  for name in sorted(n for n in _names(folder) if n.endswith(".json")):
    content = _load(os.path.join(folder, name), found)
    if evaluation := _evaluation(content):
      evaluations.append(evaluation | {"file": os.path.join(folder, name)})
    elif content is not None:
      found.warnings.append((os.path.join(folder, name), "not an evaluation: it has no top1_error"))
  return Run(workdir, seed, summary, config, tuple(evaluations), tuple(read_caveats(workdir)))


def _evaluation(content: Any) -> dict[str, Any] | None:
  """With `data`, `split` and `transform` as text and the errors of clean images, all beside each other."""
  if not isinstance(content, dict):
    return None
  data, clean = content.get("data"), content.get("clean")
  flat = dict(content)
  if isinstance(data, dict):
    flat |= {k: data.get(k) for k in ("dir", "split", "transform", "location")} | {"data": data.get("name")}
  if isinstance(clean, dict):
    flat |= clean
  return flat if is_number(flat.get("top1_error")) else None


def _is_config(content: Any) -> bool:
  if not isinstance(content, dict) or "task" not in content:
    return False
  model, data = content.get("model"), content.get("data", {})
  if not (isinstance(model, dict) and isinstance(data, dict) and isinstance(content.get("seed", 0), int)):
    return False
  return all(isinstance(data.get(f"{split}_split", ""), str) for split in ("train", "eval", "test"))


def is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _load(path: str, found: Found) -> Any:
  """The JSON value in a file; None, and a warning, if it cannot be read."""
  try:
    with open(path, encoding="utf-8") as file:
      return json.load(file)
  except (OSError, ValueError) as error:
    found.warnings.append((path, f"cannot be read: {error}"))
    return None


def _names(folder: str) -> list[str]:
  return os.listdir(folder) if os.path.isdir(folder) else []


def _natural(name: str) -> list[tuple[int, str]]:
  """So that seed_10 comes after seed_9."""
  return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
