"""Hostile files of torch.save: pickles that call functions, tensors outside their storages, archives."""

import io
import pickle
import struct
import zipfile

import numpy as np
from hostile_case import CANARY, Case
from hostile_weights import load_file, zipped

_LAYOUTS = ("zip", "legacy")


def opcodes(value: object) -> bytes:
  """A value in a pickle, without its frame."""
  return pickle.dumps(value, 2)[2:-1]


def tensor(
  offset: object = 0,
  size: object = (2,),
  stride: object = (1,),
  key: object = "0",
  numel: object = 4,
  kind: str = "FloatStorage",
) -> bytes:
  """The opcodes by which torch describes a tensor, with any numbers in it."""
  storage = (
    b"("
    + opcodes("storage")
    + f"ctorch\n{kind}\n".encode()
    + opcodes(key)
    + opcodes("cpu")
    + opcodes(numel)
    + b"tQ"
  )
  rest = opcodes(offset) + opcodes(size) + opcodes(stride) + opcodes(False) + opcodes({})
  return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def torch_file(layout: str, body: bytes, folder: str = "archive") -> bytes:
  """A file of torch.save around the opcodes of what was saved."""
  program, raw = b"\x80\x02" + body + b".", np.arange(4, dtype=np.float32).tobytes()
  if layout == "zip":
    return zipped([(f"{folder}/data.pkl", program), (f"{folder}/data/0", raw)])
  head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
  return head + program + pickle.dumps(["0"], 2) + struct.pack("<q", 4) + raw


def _named(one: bytes) -> bytes:
  return b"}(" + opcodes("weight") + one + b"u"


def cases() -> list[Case]:
  """As the reader of weights meets them, in both of torch's layouts."""
  command_text = opcodes(f"touch {CANARY}")
  calls = {  # a global, and its arguments
    "os.system": (b"cos\nsystem\n", command_text),
    "posix.system": (b"cposix\nsystem\n", command_text),
    "builtins.eval": (b"cbuiltins\neval\n", opcodes(f"__import__('os').mkdir({CANARY!r})")),
    "builtins.exec": (b"c__builtin__\nexec\n", opcodes("import os")),
    "subprocess.Popen": (b"csubprocess\nPopen\n", command_text),
    "os.mkdir": (b"cos\nmkdir\n", opcodes(CANARY)),
    "builtins.getattr": (b"cbuiltins\ngetattr\n", opcodes("torch")),
    "open": (b"cio\nopen\n", opcodes("/etc/passwd")),
    "a name with dots": (b"ctorch\nserialization.os.system\n", command_text),
    "NumPy's arrays": (b"cnumpy.core.multiarray\n_reconstruct\n", opcodes("x")),
    "a module of their own": (b"cmodels.net\nNet\n", opcodes("x")),
    "torch.nn.Linear": (b"ctorch.nn.modules.linear\nLinear\n", opcodes("x")),
  }
  found = [
    load_file(
      "w.pth",
      torch_file(layout, _named(function + b"(" + argument + b"tR")),
      "refused to load",
      f"torch {layout}, calls {title}",
    )
    for title, (function, argument) in calls.items()
    for layout in _LAYOUTS
  ]
  numbers = {
    "an offset outside": dict(offset=4),
    "a negative offset": dict(offset=-1),
    "an offset of 2^70": dict(offset=2**70),
    "a size beyond its storage": dict(size=(5,)),
    "a negative stride": dict(stride=(-1,)),
    "terabytes from one number": dict(size=(2**40, 2**40), stride=(0, 0)),
    "10^9 from one number": dict(size=(10**9,), stride=(0,)),
    "a storage larger than said": dict(numel=2**50),
    "a storage that is a path": dict(key="../../etc/passwd"),
    "an absolute storage": dict(key="/etc/passwd"),
    "a size of text": dict(size=("2",)),
    "fewer strides than sizes": dict(size=(2, 2)),
    "an unknown storage": dict(kind="VoidStorage"),
  }
  found += [
    load_file("w.pth", torch_file(layout, _named(tensor(**values))), "", f"torch {layout}, {title}")
    for number, (title, values) in enumerate(numbers.items())
    for layout in _LAYOUTS[number % 2 :][:1]
  ]
  twice = b")q\x000" + b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(100)) + b"hd"
  loop: list = []
  loop.append(loop)
  bodies = {
    "a tuple of 2^100 paths as a key": b"}(" + twice + b"K\x01u",
    "a list in itself": opcodes(loop),
    "100,000 lists deep": b"]" * 100_000 + b"a" * 99_999,
    "BUILD on a tensor": tensor() + opcodes({"x": 1}) + b"b",
    "a string of 2^40 bytes": b"\x8d" + struct.pack("<Q", 2**40),
    "EXT1": b"\x82\x01",
    "text": opcodes("weights"),
    "an empty dict": b"}",
    "a tensor without a name": tensor(),
    "persistent text": b"Pfile:///etc/passwd\n",
  }
  found += [
    load_file("w.pth", torch_file(layout, body), "", f"torch {layout}, {title}")
    for number, (title, body) in enumerate(bodies.items())
    for layout in _LAYOUTS[number % 2 :][:1]
  ]
  good = torch_file("zip", _named(tensor()))
  program = zipfile.ZipFile(io.BytesIO(good)).read("archive/data.pkl")
  archives = {
    "two pickles": zipped([("a/data.pkl", program), ("b/data.pkl", program)]),
    "TorchScript": zipped([("a/data.pkl", program), ("a/constants.pkl", program)]),
    "compressed": zipped([("a/data.pkl", program), ("a/data/0", bytes(16))], zipfile.ZIP_DEFLATED),
    "a bomb of 200 MB": lambda: zipped(
      [("a/data.pkl", program), ("a/data/0", bytes(2 * 10**8))], zipfile.ZIP_DEFLATED
    ),
    "members outside": zipped(
      [("../../a/data.pkl", program), ("../../a/data/0", bytes(16)), ("../../x", b"x")]
    ),
    "no storage": zipped([("a/data.pkl", program)]),
    "big-endian": zipped([("a/data.pkl", program), ("a/byteorder", b"big")]),
    "cut off": good[:-30],
    "a bare pickle": pickle.dumps({"a": 1}),
    "a legacy file cut off": torch_file("legacy", _named(tensor()))[:-20],
    "a web page": b"<!DOCTYPE html><html>",
    "an answer in JSON": b'{"error": "not found"}',
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
  }
  return found + [load_file("w.pth", content, "", f"torch, {title}") for title, content in archives.items()]
