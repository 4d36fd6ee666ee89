"""Hostile files of Keras, what lies beside weights, addresses of weights, and files that are none."""

import functools
import io
import json
import os
from collections.abc import Callable

import numpy as np
from hostile_case import CANARY, Case, command
from hostile_weights import load_file, safetensors, zipped

from bionets_jax import weights
from bionets_jax.evaluate.real_labels import read_real_labels
from bionets_jax.weights.locate import check_source, locate

# --- Keras ------------------------------------------------------------------------------------------------


def _hdf5(fill: Callable, layer_names: tuple[str, ...] = ("conv",)) -> bytes:
  """A file as Keras writes it, with whatever `fill` puts into the group of its one layer."""
  import h5py

  file = io.BytesIO()
  with h5py.File(file, "w") as root:
    root.attrs["layer_names"] = [name.encode() for name in layer_names]
    group = root.create_group("conv")
    group.attrs["weight_names"] = [b"conv/kernel:0"]
    fill(h5py, group.create_group("conv"))
  return file.getvalue()


def _keras() -> list[Case]:
  virtual = "kernel:0"

  def of_another_file(h5py, group):
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (2,), "f4")
    group.create_virtual_dataset(virtual, layout)

  def loop(h5py, group):
    group["kernel:0"] = group.parent

  contents = {
    "a link to another file": lambda h, g: g.__setitem__(virtual, h.ExternalLink("/etc/passwd", "/x")),
    "a link to a name": lambda h, g: g.__setitem__(virtual, h.SoftLink("/conv")),
    "a virtual array": of_another_file,
    "bytes of /etc/passwd": lambda h, g: g.create_dataset(
      virtual, (2,), "f4", external=[("/etc/passwd", 0, 8)]
    ),
    "10^12 numbers": lambda h, g: g.create_dataset(virtual, (10**12,), "f4", chunks=(1024,)),
    "a compressed array": lambda h, g: g.create_dataset(virtual, data=np.zeros(10**6), compression="gzip"),
    "text": lambda h, g: g.create_dataset(virtual, data=[b"a"]),
    "pairs": lambda h, g: g.create_dataset(virtual, (2,), np.dtype([("a", "f4"), ("b", "f4")])),
    "references": lambda h, g: g.create_dataset(virtual, (2,), h.ref_dtype),
    "texts of any length": (lambda h, g: g.create_dataset(virtual, (2,), h.string_dtype())),
    "a group in its place": (lambda h, g: g.create_group(virtual)),
    "a circle": loop,
    "nothing": lambda h, g: None,
    "an array that was never written": lambda h, g: g.create_dataset(virtual, (10**7,), "f4"),
  }
  found = [load_file("w.h5", _hdf5(fill), "", f"HDF5, {title}") for title, fill in contents.items()]
  good = _hdf5(lambda h, g: g.create_dataset(virtual, data=np.ones((2, 2), np.float32)))
  random = np.random.default_rng(0)
  for number in range(8):
    damaged = bytearray(good)
    for at in random.integers(8, len(good), 20):
      damaged[at] = random.integers(256)
    found.append(load_file("w.h5", bytes(damaged), "", f"HDF5, 20 bytes damaged, {number}"))
  names = {
    "cut off": good[: len(good) // 2],
    "nothing but its magic": good[:8],
    "a layer that leads out": _hdf5(lambda h, g: None, ("../../etc",)),
    "a layer that is not there": _hdf5(lambda h, g: None, ("none",)),
  }
  found += [load_file("w.h5", content, "", f"HDF5, {title}") for title, content in names.items()]
  lambda_layer = {
    "class_name": "Functional",
    "config": {
      "layers": [
        {"class_name": "Lambda", "config": {"name": "l", "function": f"__import__('os').mkdir({CANARY!r})"}}
      ]
    },
  }
  archives = {
    "a Lambda layer": [("config.json", json.dumps(lambda_layer).encode()), ("model.weights.h5", good)],
    "a description 100,000 deep": [("config.json", b"[" * 100_000), ("model.weights.h5", good)],
    "no weights": [("config.json", b"{}")],
    "pickled weights": [("config.json", b"{}"), ("model.weights.npz", b"")],
    "weights outside": [("config.json", b"{}"), ("../../model.weights.h5", good)],
    "weights that are text": [("config.json", b"{}"), ("model.weights.h5", b"text")],
  }
  return found + [
    load_file("w.keras", zipped(members), "", f"Keras archive, {title}")
    for title, members in archives.items()
  ]


# --- what lies beside weights, and where they are from ----------------------------------------------------


def _beside() -> list[Case]:
  """timm's config.json, and lists of labels."""
  configs = {
    "a list of architectures": {"architecture": ["resnet50"]},
    "an unknown one": {"architecture": "\x1b[31mrm -rf"},
    "arguments of text": {"architecture": "resnet50", "model_args": "x"},
    "an unknown argument": {"architecture": "resnet50", "model_args": {"block": "os.system"}},
    "an image of text": {"architecture": "resnet50", "input_size": ["3", 224, 224]},
    "an image of 10^9 pixels": {"architecture": "resnet50", "input_size": [3, 10**9, 10**9]},
    "a crop of 0": {"architecture": "resnet50", "crop_pct": 0},
    "a mean of text": {"architecture": "resnet50", "mean": "x"},
    "a pool of code": {"architecture": "resnet50", "global_pool": "eval"},
  }
  texts = {title: json.dumps(config) for title, config in configs.items()}
  texts |= {
    "NaN": '{"architecture": "resnet50", "mean": [NaN, 0, 0]}',
    "JSON 100,000 deep": '{"a":' * 100_000,
    "9 MB": json.dumps({"a": "x" * 9_000_000}),
    "no JSON": "{",
  }

  def timm(text):
    def prepare(folder, random):
      (folder / "config.json").write_text(text)
      (folder / "model.safetensors").write_bytes(safetensors({}))
      return functools.partial(locate, folder / "model.safetensors", print)

    return prepare

  found = [Case(f"weights: config.json, {title}", timm(text), "config.json") for title, text in texts.items()]
  labels = {"no list": b"{}", "too short": b"[[1]]", "no JSON": b"[", "JSON 100,000 deep": b"[" * 100_000}
  return found + [
    load_file(
      "real.json", content, "", f"real labels, {title}", lambda path: read_real_labels(str(path), 1000)
    )
    for title, content in labels.items()
  ]


def _sources() -> list[Case]:
  addresses = (
    "hf://../../etc/passwd",
    "hf://a/b/../../c.safetensors",
    "hf://a/b@../x",
    "hf://a/b/c.exe",
    "hf://a;touch canary/b",
    "hf://",
    "torchvision://../../etc/passwd",
    "torchvision://$(touch canary)",
    "torchvision://",
    "http://x/w.pth",
    "file:///etc/passwd",
    "ftp://x/y.h5",
    "s3://x/y.npz",
    "/no/such/file.pth",
    "a\0b.pth",
    "x" * 1000 + ".pth",
    "hf://../../w.safetensors",
    "hf://a/b@../w.safetensors",
    "hf://../b",
  )
  found = [
    Case(
      f"weights: address {number}, {text[:30]!r}",
      lambda folder, random, text=text: functools.partial(check_source, text),
      "expected|cannot read|addresses are|no such file|torchvision",
    )
    for number, text in enumerate(addresses)
  ]

  def special(make):
    def prepare(folder, random):
      make(folder / "w.pth")
      return functools.partial(weights.load, folder / "w.pth")

    return prepare

  kinds = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("none"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to /etc/passwd": lambda path: path.symlink_to("/etc/passwd"),
  }
  found += [Case(f"weights: {title}", special(make), "w.pth") for title, make in kinds.items()]

  def on_the_command_line(folder, random):
    (folder / "w.safetensors").write_bytes(
      safetensors({"\x1b]0;x\x07" * 3: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8))
    )
    return functools.partial(command, "-m", "bionets_jax.weights", "inspect", str(folder / "w.safetensors"))

  return found + [
    Case("weights: a key that steers the terminal", on_the_command_line, r"^error: [^\x1b]*\\x1b\]0;x")
  ]


def cases() -> list[Case]:
  return _keras() + _beside() + _sources()
