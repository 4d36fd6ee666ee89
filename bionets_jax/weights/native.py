"""Our own weight file: variables by their path in one .safetensors, described by its metadata."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

_KEY = "bionets_jax"


def save_native(path: str | os.PathLike, variables: Mapping[str, Any], about: Mapping[str, Any]) -> None:
  """Writes variables so that a reader needs nothing else. Whole or not at all.

  Args:
    path: of the file.
    variables: {'params': ..., 'batch_stats': ...}, nested dicts of arrays.
    about: JSON-serialisable: 'model', 'options', 'num_classes', 'image_shape', 'preprocessing', ...
  """
  arrays = {k: np.ascontiguousarray(v) for k, v in _flatten(variables).items()}
  temporary = f"{os.fspath(path)}.tmp"
  # One metadata key only: the library writes several in random order, and equal runs should leave
  # equal bytes.
  save_file(arrays, temporary, metadata={_KEY: json.dumps(about)})
  os.replace(temporary, path)


def load_native(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
  """(variables, about) of a file that `save_native` wrote.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not one of ours, or damaged.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(f"{path}: no such weight file")
  try:
    with safetensors.safe_open(path, "np") as file:
      metadata = file.metadata() or {}
    if _KEY not in metadata:
      raise ValueError(f"{path}: not written by bionets_jax")
    about = json.loads(metadata[_KEY])
    arrays = load_file(path)
  except (safetensors.SafetensorError, json.JSONDecodeError) as error:
    raise ValueError(f"{path}: damaged weight file ({error})") from error
  variables: dict[str, Any] = {}
  for key, value in arrays.items():
    *parents, leaf = key.split("/")
    node = variables
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value
  return variables, about


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  out = {}
  for key, value in tree.items():
    name = f"{prefix}/{key}" if prefix else key
    out.update(_flatten(value, name) if isinstance(value, Mapping) else {name: value})
  return out
