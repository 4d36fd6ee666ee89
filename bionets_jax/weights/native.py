"""Our own weight files: variables by their path in one .safetensors or .npz, with what describes them."""

import glob
import io
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from bionets_jax.weights.files import read_tensors
from bionets_jax.weights.layouts import flatten, unflatten
from bionets_jax.weights.whole import write_whole

WEIGHT_FILE = "weights.safetensors"  # in the workdir of a finished run
LAYOUT = "bionets_jax"  # what `Loaded.layout` says of such a file
_KEY = "bionets_jax"  # of the description: metadata of a .safetensors, UTF-8 bytes among the arrays of an .npz
_SHOWN = 20
_LARGEST_SIDE = 1 << 16
_REQUIRED = {
    "model": str, "options": dict, "num_classes": int, "image_shape": list, "preprocessing": dict,
    "class_names": list}  # fmt: skip


def save_native(path: str | os.PathLike, variables: Mapping[str, Any], about: Mapping[str, Any]) -> None:
  """Writes variables so that a reader needs nothing else. Whole or not at all.

  Args:
    path: of the file: .safetensors, or .npz for readers that have NumPy only.
    variables: {'params': ..., 'batch_stats': ...}, nested dicts of arrays; keys in the file are their
      paths, 'params/stem_conv/kernel'.
    about: JSON-serialisable: 'model', 'options', 'num_classes', 'image_shape', 'preprocessing', ...
  """
  write_whole({path: native_bytes(variables, about, os.path.splitext(path)[1])})


def native_bytes(variables: Mapping[str, Any], about: Mapping[str, Any], suffix: str) -> bytes:
  """What is in a file of `save_native`; equal variables give equal bytes."""
  # Contiguous, which safetensors takes for granted; np.ascontiguousarray would make (1,) of a scalar.
  arrays = {"/".join(k): np.asarray(v, order="C") for k, v in flatten(variables).items()}
  text = json.dumps(about)
  if suffix == ".npz":
    file = io.BytesIO()
    entries: dict[str, Any] = {_KEY: np.frombuffer(text.encode(), np.uint8), **arrays}
    np.savez(file, **entries)
    return file.getvalue()
  # To bytes, and not by the library's `save_file`, which leaves a file that nobody else may read. One
  # metadata key only: the library writes several in random order.
  from safetensors.numpy import save

  return save(arrays, metadata={_KEY: text})


def load_native(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
  """(variables, about) of a file that `save_native` wrote.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not one of ours, or damaged.
  """
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(f"{path}: no such weight file")
  arrays = read_tensors(path)
  text = arrays.pop(_KEY).tobytes() if _KEY in arrays else _metadata(path)
  if text is None:
    raise ValueError(f"{path}: not written by bionets_jax")
  try:
    about = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path}: damaged weight file (its description is not JSON: {error})") from error
  _check(path, about)
  paths = [tuple(key.split("/")) for key in arrays]
  inner = {path[:i] for path in paths for i in range(1, len(path))}
  if strange := [key for key, one in zip(arrays, paths, strict=True) if len(one) < 2 or one in inner]:
    raise ValueError(f"{path}: damaged weight file ({strange[0]!r} is no path of a variable)")
  return unflatten(dict(zip(paths, arrays.values(), strict=True))), about


def is_native(path: str | os.PathLike) -> bool:
  """Whether a file is one of ours, whole or not; False for anything that cannot be read."""
  path = os.fspath(path)
  if not os.path.isfile(path):  # to open a pipe would be to wait for who writes to it
    return False
  try:
    with open(path, "rb") as file:
      if file.read(2) != b"PK":
        return _metadata(path) is not None
    with np.load(path, allow_pickle=False) as file:
      return _KEY in file
  except Exception:  # whatever a foreign or damaged file makes its reader raise: its own reader will say
    return False


def find_weights(folder: str | os.PathLike) -> str:
  """The weight file of a finished run.

  Raises:
    FileNotFoundError: there is none, saying what the folder is instead.
  """
  folder = os.fspath(folder)
  path = os.path.join(folder, WEIGHT_FILE)
  if os.path.isfile(path):
    return path
  # A seed or a run of a study is a workdir below.
  inside = sorted(os.path.relpath(os.path.dirname(file), folder) for depth in ("*", "*/*")
                  for file in glob.glob(os.path.join(glob.escape(folder), depth, WEIGHT_FILE)))
  if inside:
    more = f", ... ({len(inside)})" if len(inside) > _SHOWN else ""
    raise FileNotFoundError(f"{folder} holds several runs; give one of them: {', '.join(inside[:_SHOWN])}{more}")
  if os.path.isfile(os.path.join(folder, "config.json")):
    raise FileNotFoundError(
        f"{folder} holds a run that is not finished: it has no {WEIGHT_FILE}, which a run writes when it is "
        "done. --mode=eval of launch.py evaluates its newest checkpoint")
  raise FileNotFoundError(f"{folder} is not the workdir of a run: it has no {WEIGHT_FILE}")


def _metadata(path: str) -> str | None:
  from safetensors import SafetensorError, safe_open

  try:
    with safe_open(path, "np") as file:
      return (file.metadata() or {}).get(_KEY)
  except SafetensorError:
    return None


def _check(path: str, about: Any) -> None:
  if not isinstance(about, dict):
    raise ValueError(f"{path}: damaged weight file (its description is a {type(about).__name__})")
  for key, kind in _REQUIRED.items():
    if not isinstance(about.get(key), kind):
      raise ValueError(f"{path}: damaged weight file (its description has no {key!r} of type {kind.__name__})")
  shape, names = about["image_shape"], about["class_names"]
  if len(shape) != 3 or not all(type(n) is int and 0 < n <= _LARGEST_SIDE for n in shape):
    raise ValueError(f"{path}: damaged weight file (image_shape {shape!r:.60} is none of an image)")
  if names and len(names) != about["num_classes"] or not all(isinstance(name, str) for name in names):
    raise ValueError(f"{path}: damaged weight file (its class_names are not {about['num_classes']} names)")
