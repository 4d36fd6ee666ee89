"""What the command line of the weights does."""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

from bionets_jax.weights.detectors import StoredDetector, is_detector, stored_detector
from bionets_jax.weights.foreign import LIBRARIES, describe, write_library
from bionets_jax.weights.loading import Loaded, load_located, load_read, weight_file
from bionets_jax.weights.locate import locate
from bionets_jax.weights.native import LAYOUT, WEIGHT_FILE, is_native, load_native, native_bytes
from bionets_jax.weights.whole import write_whole

Say = Callable[[str], None]
_OWN = ("safetensors", "npz")  # formats of files that are ours


def run(options: argparse.Namespace, say: Say) -> int:
  """Runs a subcommand; returns the exit status.

  Args:
    options: as `command_line.parse` gives them.
    say: takes what is printed.

  Raises:
    ValueError, OSError: saying what is wrong.
  """
  located = locate(options.source, say)
  path = weight_file(located)
  if not is_native(path):
    loaded: Any = load_located(located, options.model, **options.model_options)
  elif is_detector((read := load_native(path))[1]):
    loaded = stored_detector(*read, located.source, path)
    _check_takes_detectors(options, loaded)
  else:
    loaded = load_read(located, path, *read, options.model, None, None, options.model_options)
  return {"inspect": _inspect, "check": _check, "export": _export, "card": _card,
          "push-to-hub": _push}[options.command](options, loaded, say)


def _check_takes_detectors(options: argparse.Namespace, detector: StoredDetector) -> None:
  """Raises ValueError where a subcommand or its options have no use for a detector, saying what does."""
  wanted = options.command + (f" --to={options.to}" if options.command == "export" else "")
  own = options.command in ("inspect", "card") or (options.command == "export" and options.to in _OWN)
  if own and not (options.model or options.model_options):
    return
  given = "--model and --model-option are" if own else f"`{wanted}` is"
  raise ValueError(
      f"{detector.path} holds a detector ({detector}); {given} not for detectors. What is: inspect, card, export "
      "--to=safetensors or --to=npz; bionets_jax.detection.load in Python, and python -m "
      "bionets_jax.detection.predict")


def _inspect(options: argparse.Namespace, loaded: Loaded | StoredDetector, say: Say) -> int:
  about = describe(loaded)
  if options.json:
    say(json.dumps(about, indent=2))
    return 0
  width = max(map(len, about))
  for key, value in about.items():
    say(f"{key:{width}}  {_in_words(value)}")
  return 0


def _check(options: argparse.Namespace, loaded: Loaded, say: Say) -> int:
  say(f"{loaded.path} ({loaded.layout} layout) fits {loaded.name}, every tensor has its place")
  if not options.report:
    return 0
  from bionets_jax.weights.diverge import compare_activations, read_activations

  result = compare_activations(
      loaded.model, loaded.variables, read_activations(options.report), loaded.layout,
      tolerance=options.tolerance)
  say(str(result))
  return 1 if result.first else 0


def _export(options: argparse.Namespace, loaded: Loaded, say: Say) -> int:
  folder = options.out or os.path.join(options.source, "export", options.to)
  if options.to in LIBRARIES:
    written = write_library(folder, loaded, options.to)
  elif options.to in _OWN:
    written = _write_own(folder, loaded, options.to, say)
  else:
    written = _write_graph(folder, loaded)
  _tell(written, say)
  return 0


def _card(options: argparse.Namespace, loaded: Loaded, say: Say) -> int:
  _tell(_write_hub(loaded, options.out or os.path.join(options.source, "export", "hub"), "", say), say)
  return 0


def _push(options: argparse.Namespace, loaded: Loaded, say: Say) -> int:
  from bionets_jax.weights.hub import push

  # A folder of its own, made anew: what is uploaded is what these weights are now.
  with tempfile.TemporaryDirectory() as folder:
    _write_hub(loaded, folder, options.repo, say)
    push(folder, options.repo, private=options.private, dry_run=options.dry_run, say=say)
  return 0


def _write_own(folder: str, loaded: Loaded | StoredDetector, suffix: str, say: Say) -> list[str]:
  """The weights, and model.py for PyTorch where that can have the network."""
  try:
    source = _pytorch_source(loaded)
  except ValueError as error:
    say(f"no model.py: {error}")
    source = ""
  os.makedirs(folder, exist_ok=True)
  name = WEIGHT_FILE if suffix == "safetensors" else "weights.npz"
  contents: dict[str, bytes | str] = {os.path.join(folder, name): native_bytes(loaded.variables, loaded.about(), f".{suffix}")}
  if source:
    contents[os.path.join(folder, "model.py")] = source
  write_whole(contents)
  return list(contents)


def _pytorch_source(loaded: Loaded | StoredDetector) -> str:
  from bionets_jax.weights.pytorch import pytorch_source

  if isinstance(loaded, StoredDetector):
    raise ValueError("there is none of detectors")
  return pytorch_source(
      loaded.name, loaded.options, loaded.num_classes, loaded.image_shape, loaded.preprocessing,
      loaded.class_names)


def _write_graph(folder: str, loaded: Loaded) -> list[str]:
  """The network as a graph of operations that needs nothing of ours."""
  from bionets_jax.weights.stablehlo import export_stablehlo

  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, "model.stablehlo")
  export_stablehlo(
      path, loaded.model, loaded.variables, loaded.preprocessing, loaded.image_shape, about=loaded.about())
  return [path, f"{path}.json"]


def _write_hub(loaded: Loaded | StoredDetector, folder: str, repo: str, say: Say) -> list[str]:
  from bionets_jax.weights.card import write_card

  workdir = os.path.dirname(os.path.abspath(loaded.path)) if loaded.layout == LAYOUT else ""
  written = _write_own(folder, loaded, "safetensors", say)
  source = "" if loaded.layout == LAYOUT else loaded.source
  return written + list(write_card(folder, loaded.about(), run=workdir, source=source, repo=repo))


def _tell(paths: list[str], say: Say) -> None:
  for path in paths:
    say(f"{path}  {os.path.getsize(path):,} bytes")


def _in_words(value: Any) -> str:
  if isinstance(value, dict):
    return ", ".join(f"{key} {_in_words(v)}" for key, v in value.items()) or "none"
  if isinstance(value, (list, tuple)):
    shown = ", ".join(map(str, value[:10]))
    return (shown + (f", ... ({len(value)})" if len(value) > 10 else "")) or "none"
  return f"{value:,}" if isinstance(value, int) else str(value)
