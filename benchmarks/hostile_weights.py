"""Hostile weights files: .safetensors, our own descriptions in them, and .npz."""

import functools
import io
import json
import pathlib
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hostile_case import CANARY, Case

from bionets_jax import weights
from bionets_jax.counting import abstract_variables
from bionets_jax.models import create_model
from bionets_jax.weights.diverge import read_activations
from bionets_jax.weights.layouts import flatten
from bionets_jax.weights.native import native_bytes

OPTIONS = {"stage_sizes": [1, 1, 1], "width": 8}
ABOUT = {
  "model": "resnet20_cifar",
  "options": OPTIONS,
  "num_classes": 10,
  "class_names": [],
  "image_shape": [8, 8, 1],
  "preprocessing": {"mean": [0.5], "std": [0.5], "image_size": 8, "resize": 8},
}


def load_file(
  name: str, content: bytes | Callable[[], bytes], says: str, title: str, read: Callable = weights.load
) -> Case:
  """The case of one file that `read` takes; `says` is looked for behind its name.

  `content` is a function where it takes long to make.
  """

  def prepare(folder, random):
    (folder / name).write_bytes(content() if callable(content) else content)
    return functools.partial(read, folder / name)

  return Case(f"weights: {title}", prepare, f"{name}.*{says}")


# --- .safetensors -----------------------------------------------------------------------------------------


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
  """A file with any header: bytes, or what becomes JSON."""
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(text) if length is None else length) + text + data


def _one(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict:
  return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _safetensors() -> list[Case]:
  good, eight = safetensors({"a": _one()}, bytes(8)), bytes(8)
  files = {
    "no bytes": b"",
    "a header of 2^63 bytes": safetensors({}, length=2**63),
    "a header longer than the file": safetensors({"a": _one()}, eight, length=10**6),
    "a header of 100 MB": safetensors({"a": _one()}, eight, length=10**8),
    "no header": safetensors(b"", eight),
    "a header that is no JSON": safetensors(b'{"a": ', eight),
    "a header that is no text": safetensors(b'{"\xff": 1}'),
    "a header that is a list": safetensors(b"{[1]}"),
    "data outside the file": safetensors({"a": _one(offsets=(0, 2**40), shape=(2**38,))}, eight),
    "overlapping data": safetensors({"a": _one(), "b": _one()}, eight),
    "a gap in the data": safetensors({"a": _one(), "b": _one(offsets=(12, 20))}, bytes(20)),
    "negative offsets": safetensors({"a": _one(offsets=(-8, 0))}, eight),
    "offsets in the wrong order": safetensors({"a": _one(offsets=(8, 0))}, eight),
    "a shape larger than its data": safetensors({"a": _one(shape=(10**12,))}, eight),
    "a shape that overflows": safetensors({"a": _one(shape=(2**40, 2**40))}, eight),
    "a negative shape": safetensors({"a": _one(shape=(-2,))}, eight),
    "an unknown dtype": safetensors({"a": _one(dtype="F7")}, eight),
    "a dtype that is a number": safetensors({"a": _one(dtype=32)}, eight),
    "a shape of text": safetensors({"a": _one(shape=("2",))}, eight),
    "JSON 100,000 deep": safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "metadata of numbers": safetensors({"__metadata__": {"a": 1}, "a": _one()}, eight),
    "bytes behind the data": good + bytes(100),
    "data cut off": good[:-3],
    "no tensors": safetensors({}),
    "a dtype that NumPy lacks": safetensors({"a": _one("F8_E4M3", (8,))}, eight),
  }
  return [
    load_file("w.safetensors", content, "", f"safetensors, {title}") for title, content in files.items()
  ]


# --- what our own files say of themselves -----------------------------------------------------------------


@functools.cache
def variables() -> dict[str, Any]:
  """Of a network of three blocks that `ABOUT` describes."""
  template = abstract_variables(create_model("resnet20_cifar", 10, **OPTIONS), (8, 8, 1))
  random = np.random.default_rng(0)
  return {
    key: {path: random.random(leaf.shape, np.float32) for path, leaf in flatten(tree).items()}
    for key, tree in template.items()
  }


def native(
  about: Mapping[str, Any] | None = None, change: Mapping[str, np.ndarray | None] | None = None
) -> bytes:
  """One of our files with parts of its description, or arrays, replaced; None leaves an array out."""
  arrays = {
    "/".join((key, *path)): value for key, tree in variables().items() for path, value in tree.items()
  }
  arrays = {key: value for key, value in (arrays | dict(change or {})).items() if value is not None}
  return native_bytes(arrays, ABOUT | dict(about or {}), ".safetensors")


def _described() -> list[Case]:
  head, kernel = "params/head/kernel", variables()["params"][("head", "kernel")]
  abouts = {
    "a model that is a path": {"model": "../../etc/passwd"},
    "a model that is code": {"model": "__import__('os')"},
    "a model that is a number": {"model": 5},
    "options that are a list": {"options": [1]},
    "a billion blocks": {"options": OPTIONS | {"stage_sizes": [10**9, 1, 1]}},
    "negative blocks": {"options": OPTIONS | {"stage_sizes": [-1, 1, 1]}},
    "blocks that are text": {"options": OPTIONS | {"stage_sizes": "111"}},
    "blocks that are one number": {"options": OPTIONS | {"stage_sizes": 3}},
    "a width below 0": {"options": OPTIONS | {"width": -1}},
    "a width of 0": {"options": OPTIONS | {"width": 0}},
    "a width of 2^70": {"options": OPTIONS | {"width": 2**70}},
    "a width that is text": {"options": OPTIONS | {"width": "8"}},
    "a unit that is code": {"options": OPTIONS | {"conv": "os.system"}},
    "an initialiser that is text": {"options": OPTIONS | {"kernel_init": "os.system"}},
    "a dtype that is text": {"options": OPTIONS | {"dtype": "object"}},
    "an option of Flax": {"options": OPTIONS | {"parent": 1}},
    "an option twice": {"options": {"num_classes": 3}},
    "0 groups": {"options": OPTIONS | {"groups": 0}},
    "10^30 classes": {"num_classes": 10**30},
    "-1 classes": {"num_classes": -1},
    "3 names of 10 classes": {"class_names": ["a", "b", "c"]},
    "names that are numbers": {"class_names": list(range(10))},
    "an image of 0 pixels": {"image_shape": [0, 8, 1]},
    "an image of 2^40 pixels": {"image_shape": [2**20, 2**20, 1]},
    "an image of text": {"image_shape": ["8", 8, 1]},
    "a mean of text": {"preprocessing": {"mean": ["x"], "std": [1], "image_size": 8, "resize": 8}},
    "a deviation of 0": {"preprocessing": {"mean": [0], "std": [0], "image_size": 8, "resize": 8}},
    "an unknown preprocessing": {"preprocessing": {"command": "ls"}},
    "no preprocessing": {"preprocessing": None},
  }
  changes = {
    "NaN": {head: np.full_like(kernel, np.nan)},
    "whole numbers": {head: np.ones(kernel.shape, np.int32)},
    "a transposed array": {head: kernel.T},
    "an array less": {head: None},
    "an array more": {"params/x/y": kernel},
    "a path with ..": {"params/../head/kernel": kernel},
    "a name without a path": {"kernel": kernel},
    "a path through an array": {"params/head/kernel/x": kernel},
    "an escape sequence": {"\x1b]0;x\x07/\x1b[2J": kernel},
  }
  texts = {
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"1",
    "nothing of ours": b"{}",
    "NaN": b"NaN",
    "JSON 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
  }
  found = [
    load_file("w.safetensors", native(about=about), "", f"description, {title}")
    for title, about in abouts.items()
  ]
  found += [
    load_file("w.safetensors", native(change=change), "", f"arrays, {title}")
    for title, change in changes.items()
  ]
  return found + [
    load_file(
      "w.safetensors",
      safetensors({"__metadata__": {"bionets_jax": text.decode()}, "params/a": _one()}, bytes(8)),
      "",
      f"description, text is {title}",
    )
    for title, text in texts.items()
  ]


# --- .npz -------------------------------------------------------------------------------------------------


class Payload:
  """Makes the canary of its case when it is unpickled."""

  def __init__(self, folder: pathlib.Path):
    self.path = str(folder / CANARY)

  def __reduce__(self):
    import os

    return os.mkdir, (self.path,)


def npy(header: str | bytes, data: bytes = bytes(8), version: int = 1) -> bytes:
  text = header if isinstance(header, bytes) else header.encode()
  return (
    b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data
  )


def zipped(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
    for name, data in members:
      archive.writestr(name, data)
  return file.getvalue()


def _header(descr: str = "'<f4'", shape: str = "(2,)", order: str = "False") -> str:
  return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def _npz() -> list[Case]:
  good, code = npy(_header()), f"__import__('os').mkdir({CANARY!r})"
  whole = zipped([("a.npy", good)])
  directory = bytearray(whole)
  at = directory.index(b"PK\x01\x02")
  directory[at + 20 : at + 28] = b"\xf0\xff\xff\xff" * 2
  secret = bytearray(whole)
  secret[6] |= 1
  secret[at + 8] |= 1
  files = {
    "objects declared": zipped([("a.npy", npy(_header("'|O'")))]),
    "code as its shape": zipped([("a.npy", npy(_header(shape=code)))]),
    "code as its dtype": zipped([("a.npy", npy(_header(code)))]),
    "10^12 numbers": zipped([("a.npy", npy(_header(shape="(10**12,)")))]),
    "a shape of 10^12": zipped([("a.npy", npy(_header(shape="(1000000000000,)")))]),
    "a negative shape": zipped([("a.npy", npy(_header(shape="(-1, -2)")))]),
    "a shape of text": zipped([("a.npy", npy(_header(shape="'x'")))]),
    "pairs of numbers": zipped([("a.npy", npy(_header("[('a', '<f4'), ('b', '<f4')]", "(1,)")))]),
    "dates": zipped([("a.npy", npy(_header("'<M8[s]'", "(1,)")))]),
    "a header of brackets": zipped([("a.npy", npy(_header(shape="(" * 9000 + ")" * 9000)))]),
    "a header of 4 GB": zipped([("a.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(50))]),
    "an unknown version": zipped([("a.npy", npy(_header(), version=9))]),
    "no array": zipped([("a.npy", b"x" * 50)]),
    "a bomb of 300 MB": lambda: zipped(
      [("a.npy", npy(_header(shape="(75000000,)"), bytes(3 * 10**8)))], zipfile.ZIP_DEFLATED
    ),
    "bzip2": zipped([("a.npy", good)], zipfile.ZIP_BZIP2),
    "a member that is no array": zipped([("a.npy", good), ("run.sh", b"rm -rf /")]),
    "a member outside": zipped([("../../x.npy", good)]),
    "an absolute member": zipped([("/tmp/x.npy", good)]),
    "an empty archive": zipped([]),
    "lying sizes": bytes(directory),
    "an encrypted member": bytes(secret),
    "cut off": whole[:-20],
    "nothing but its magic": b"PK\x03\x04",
  }
  found = [load_file("w.npz", content, "", f"npz, {title}") for title, content in files.items()]
  found += [
    load_file("w.npz", content, "", f"activations, {title}", read_activations)
    for title, content in list(files.items())[::4]
  ]

  def pickled(folder, random):
    trap = np.empty(1, object)
    trap[0] = Payload(folder)
    np.savez(folder / "w.npz", a=np.ones(2, np.float32), trap=trap)
    return functools.partial(weights.load, folder / "w.npz")

  return found + [Case("weights: npz, pickled code", pickled, "'trap' holds Python objects.*run code")]


def cases() -> list[Case]:
  return _safetensors() + _described() + _npz()
