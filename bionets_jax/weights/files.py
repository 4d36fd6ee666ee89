"""Reads a checkpoint file into a flat dict of named NumPy arrays, whatever wrote it."""

import os
import re
import zipfile
from collections.abc import Mapping

import numpy as np

from bionets_jax.weights.keras_file import ARCHIVE_MEMBERS, HDF5_MAGIC, read_keras_file
from bionets_jax.weights.npz_file import read_npz_file
from bionets_jax.weights.torch_file import TorchFileError, read_torch_file

_KERAS = (".h5", ".hdf5", ".keras")
SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".bin", ".npz", *_KERAS)
# Training scripts save the network under one of these, beside the optimizer and the epoch.
_WRAPPERS = ("state_dict", "model", "model_state_dict")


def read_tensors(path):
  """Reads the named tensors of a checkpoint.

  A file of a whole training run is unwrapped (`{'state_dict': ...}`, `{'model': ...}`), and the
  `module.` that torch's DataParallel puts before every name is taken off. For Keras' names see
  `read_keras_file`.

  Args:
    path: a .safetensors, .pth, .pt, .th, .bin or .npz file, or one of Keras: .h5, .hdf5,
      .weights.h5, .keras.

  Returns:
    dict of str to array, in the file's order, each with the shape and dtype of the file.

  Raises:
    FileNotFoundError: there is no such file, or it is no regular file.
    ValueError: another suffix, a damaged file, or a file that is not a set of named tensors.
  """
  path = os.fspath(path)
  if not os.path.isfile(path):
    # FIFOs and devices are not opened: that may wait for ever, or never end.
    other = "not a regular file" if os.path.exists(path) else "no such file"
    what = "is a directory, not a file" if os.path.isdir(path) else other
    raise FileNotFoundError(f"checkpoint {path}: {what}")
  suffix = os.path.splitext(path)[1].lower()
  if suffix not in SUFFIXES:
    raise ValueError(
        f"checkpoint {path}: cannot read {suffix or 'a file without a suffix'}; these can be"
        f" read: {', '.join(SUFFIXES)}"
    )
  with open(path, "rb") as file:
    head = file.read(512)
  _refuse_stand_ins(path, head)
  # The suffix decides what is accepted, the content what it is: renamed files are common.
  kind = _kind(path, head, suffix)
  if kind == "keras":
    return read_keras_file(path)
  saved = {"safetensors": _read_safetensors, "npz": read_npz_file, "torch": read_torch_file}[kind](path)
  return _strip_module(_named_tensors(saved, path))


def _kind(path, head, suffix):
  """Whose file it is: 'safetensors', 'keras', 'npz' or 'torch'."""
  by_suffix = "keras" if suffix in _KERAS else suffix[1:] if suffix in (".npz", ".safetensors") else "torch"
  if head.startswith(HDF5_MAGIC):
    return "keras"
  if head[8:9] == b"{":
    return "safetensors"
  if head.startswith(b"\x80"):  # a pickle
    return "torch"
  if not head.startswith(b"PK"):
    return by_suffix
  try:
    with zipfile.ZipFile(path) as archive:
      names = archive.namelist()
  except Exception:  # damaged: its own reader will say
    return by_suffix
  if any(name in names for name in ARCHIVE_MEMBERS):
    return "keras"
  if any(name.endswith("data.pkl") for name in names):
    return "torch"
  return "npz" if names and all(name.endswith(".npy") for name in names) else by_suffix


def _refuse_stand_ins(path, head):
  """The things that a failed download leaves under the name of a checkpoint."""
  if not head:
    raise ValueError(f"checkpoint {path}: the file is empty")
  if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16
    head = head[2:].replace(b"\0", b"")
  start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
  if start.startswith(b"version https://git-lfs"):
    raise ValueError(
        f"checkpoint {path}: a Git LFS pointer, not the file itself; run `git lfs pull`"
    )
  if start.startswith((b"<!doctype", b"<!--", b"<html", b"<head", b"<body", b"<?xml")):
    raise ValueError(f"checkpoint {path}: a web page, not a checkpoint; download it again")
  # A .safetensors file begins with the length of its header, whose high bytes are zero.
  if b"\0" not in head[:8] and re.match(rb'[{[]\s*["{]', start):
    raise ValueError(
        f"checkpoint {path}: a JSON text, such as a server's answer, not a checkpoint; download it again"
    )


def _read_safetensors(path):
  from safetensors.numpy import load_file

  try:
    return load_file(path)
  except Exception as error:  # also AttributeError, for dtypes that NumPy lacks
    raise ValueError(
        f"checkpoint {path}: damaged .safetensors file, or one with a dtype that NumPy lacks"
        f" ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    ) from error


def _named_tensors(saved, path):
  for _ in _WRAPPERS:
    inner = _unwrap(saved)
    if inner is None:
      break
    saved = inner
  if not isinstance(saved, Mapping):
    raise TorchFileError(
        f"{path}: holds a {type(saved).__name__}, not named tensors; save `model.state_dict()`"
    )
  strange = [
      key
      for key, value in saved.items()
      if not (isinstance(key, str) and isinstance(value, np.ndarray))
  ]
  if strange or not saved:
    some = ", ".join(str(key)[:80] for key in strange[:6])
    found = f"{len(strange)} are not, such as {some}" if saved else "empty"
    raise TorchFileError(
        f"{path}: expected a dict of named tensors ({found}); the network may lie under any of"
        f" {', '.join(_WRAPPERS)}, or be saved by itself with `model.state_dict()`"
    )
  return dict(saved)


def _unwrap(saved):
  if isinstance(saved, Mapping):
    for name in _WRAPPERS:
      if isinstance(saved.get(name), Mapping):
        return saved[name]
  return None


def _strip_module(tensors):
  prefix = "module."
  if all(key.startswith(prefix) for key in tensors):
    return {key[len(prefix) :]: value for key, value in tensors.items()}
  return tensors
