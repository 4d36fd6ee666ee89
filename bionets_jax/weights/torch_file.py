"""Reads files written by `torch.save`, without torch and without running their code.

A torch file is a pickle plus raw storages. `torch_pickle` reads the first, in which tensors are described as
(storage, offset, size, stride): they become arrays only after the whole file has been read, with every
number checked against the storage, since NumPy's `as_strided` checks nothing.

Both layouts of torch are read: the zip archive (`PK...`, torch >= 1.6) and the older sequence of
pickles. Archive members are looked up in the archive alone, nothing is ever unpacked to disk.
"""

import io
import math
import os
import struct
import zipfile
from typing import Any

import numpy as np

from bionets_jax.weights.torch_pickle import (
  MAX_DIMS,
  SAVE_INSTEAD,
  Inert,
  Storage,
  Tensor,
  TorchFileError,
  Unpickler,
  brief,
  is_count,
)

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# Views may overlap and repeat: so many bytes in all of a file's tensors, and so many times the file's size.
_FREE, _RATIO = 1 << 26, 4


def read_torch_file(path):
  """Reads what `torch.save` wrote.

  Args:
    path: a file in torch's zip or legacy layout.

  Returns:
    The saved object: dicts, lists, tuples and plain values as they were, every tensor or Parameter
    as a read-only NumPy array of the same shape and dtype (bfloat16 as `ml_dtypes.bfloat16`).

  Raises:
    FileNotFoundError: there is no such file.
    TorchFileError: it is damaged, not a torch file, or names anything but tensors and containers.
  """
  path = os.fspath(path)
  if os.path.exists(path) and not os.path.isfile(path):  # to open a FIFO would wait for its writer
    raise TorchFileError(f"{path}: not a regular file")
  with open(path, "rb") as file:
    head = file.read(4)
    file.seek(0)
    try:
      read = _read_zip if head == _ZIP_MAGIC else _read_legacy
      tree, fetch = read(file)
      return _to_arrays(tree, fetch, max(_FREE, _RATIO * os.fstat(file.fileno()).st_size))
    except TorchFileError as error:
      raise TorchFileError(f"{path}: {error}") from None
    except RecursionError:
      raise TorchFileError(f"{path}: nested too deeply for a tensor file") from None
    except Exception as error:
      # The unpickler raises nearly anything on a damaged stream: IndexError, KeyError, EOFError...
      raise TorchFileError(
          f"{path}: damaged, cut short, or no file of torch.save"
          f" ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
      ) from error


# --- the two layouts ----------------------------------------------------------------------------


def _read_zip(file):
  """Returns (object with Tensor leaves, function from Storage to its bytes)."""
  file_size = os.fstat(file.fileno()).st_size
  archive = zipfile.ZipFile(file)
  members = {info.filename: info for info in archive.infolist()}
  pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
  folders = {name[: -len("data.pkl")] for name in pickles}
  if any(folder + "constants.pkl" in members for folder in folders):
    raise TorchFileError(f"a TorchScript archive (torch.jit.save) holds code; {SAVE_INSTEAD}")
  if len(pickles) != 1:
    raise TorchFileError(
        f"a zip file with {len(pickles)} members named data.pkl; torch.save writes exactly one"
    )
  (folder,) = folders

  def member(name):
    if name not in members:
      raise TorchFileError(f"the archive has no member {brief(name)}")
    # torch never compresses; a member that unpacks to more than the file's size is a trap.
    if members[name].compress_type != zipfile.ZIP_STORED:
      raise TorchFileError(f"member {brief(name)} is compressed, which torch.save never does")
    if members[name].file_size > file_size:
      raise TorchFileError(f"member {brief(name)} claims to be larger than the whole file")
    return archive.read(name)

  if folder + "byteorder" in members and member(folder + "byteorder").strip() != b"little":
    raise TorchFileError("written on a big-endian machine; re-save it on a little-endian one")
  unpickler = Unpickler(io.BytesIO(member(folder + "data.pkl")), file_size)
  return unpickler.load(), lambda storage: member(f"{folder}data/{storage.key}")


def _read_legacy(file):
  """Returns (object with Tensor leaves, function from Storage to its bytes)."""
  size = os.fstat(file.fileno()).st_size
  try:
    magic = Unpickler(file, size).load()
  except TorchFileError:
    raise
  except Exception:
    magic = None
  if magic != _LEGACY_MAGIC:
    raise TorchFileError(
        "not a file of torch.save: it begins neither as a zip archive nor with torch's legacy"
        " magic number"
    )
  protocol = Unpickler(file, size).load()
  if protocol != _LEGACY_PROTOCOL:
    raise TorchFileError(f"legacy protocol {brief(protocol)}; only {_LEGACY_PROTOCOL} is known")
  system = Unpickler(file, size).load()
  if isinstance(system, dict) and not system.get("little_endian", True):
    raise TorchFileError("written on a big-endian machine; re-save it on a little-endian one")
  unpickler = Unpickler(file, size)
  tree = unpickler.load()
  keys = Unpickler(file, size).load()
  if not isinstance(keys, list):
    raise TorchFileError("the list of storages is missing")
  contents = {}
  for key in keys:
    storage = unpickler.storages.get(key) if isinstance(key, str) else None
    if storage is None:
      raise TorchFileError(f"storage {brief(key)} is listed but no tensor names it")
    (numel,) = struct.unpack("<q", file.read(8))
    nbytes = storage.numel * storage.dtype.itemsize
    if numel != storage.numel or nbytes > size - file.tell():
      raise TorchFileError(
          f"storage {brief(key)} should hold {storage.numel} elements of {storage.dtype}, but the"
          f" file says {numel} and has {size - file.tell()} bytes left"
      )
    contents[key] = file.read(nbytes)

  def fetch(storage):
    if storage.key not in contents:
      raise TorchFileError(f"the file lacks the bytes of storage {brief(storage.key)}")
    return contents[storage.key]

  return tree, fetch


# --- tensors ------------------------------------------------------------------------------------


def _to_arrays(tree, fetch, most):
  """Copies `tree` with every Tensor as an array, of `most` bytes in all. Shared parts stay shared."""
  total = 0
  buffers = {}
  done: dict[int, tuple] = {}  # id -> (node, copy); the node is kept so that its id stays taken
  under_way = set()

  def buffer(storage):
    if storage.key not in buffers:
      raw = fetch(storage)
      if len(raw) != storage.numel * storage.dtype.itemsize:
        raise TorchFileError(
            f"storage {brief(storage.key)} should hold {storage.numel} elements of {storage.dtype}"
            f" but has {len(raw)} bytes"
        )
      buffers[storage.key] = np.frombuffer(raw, storage.dtype)
    return buffers[storage.key]

  def convert(node):
    nonlocal total
    if isinstance(node, Tensor):
      view = _view(node, buffer)
      # An expanded tensor's one number may stand for terabytes, which the first computation would allocate.
      total += view.nbytes
      if total > most:
        raise TorchFileError(
            f"a tensor of size {view.shape} declares more elements than are stored: {total} bytes with those"
            f" before it, and the file's size allows {most}; save contiguous copies"
        )
      return view
    if isinstance(node, Inert):
      return None  # a storage or function outside any tensor: nothing that a reader could use
    if not isinstance(node, (dict, list, tuple)):
      return node
    if id(node) in done:
      return done[id(node)][1]
    if id(node) in under_way:
      raise TorchFileError("a container that contains itself")
    under_way.add(id(node))
    if isinstance(node, dict):
      copy: Any = {key: convert(value) for key, value in node.items()}
    else:
      copy = type(node)(convert(value) for value in node)
    under_way.discard(id(node))
    done[id(node)] = (node, copy)
    return copy

  return convert(tree)


def _view(tensor, buffer):
  storage, offset, size, stride = tensor.storage, tensor.offset, tensor.size, tensor.stride
  if not isinstance(storage, Storage):
    raise TorchFileError("a tensor without a storage")
  valid = (
      is_count(offset)
      and isinstance(size, tuple)
      and isinstance(stride, tuple)
      and len(size) == len(stride) <= MAX_DIMS
      and all(is_count(value) for value in size + stride)
  )
  if not valid:
    raise TorchFileError(
        f"a tensor with offset {brief(offset)}, size {brief(size)}, stride {brief(stride)}; expected"
        " non-negative integers, as many strides as sizes"
    )
  data = buffer(storage)
  if math.prod(size) * storage.dtype.itemsize >= 2**60:  # NumPy counts bytes in 63 bits
    raise TorchFileError(f"a tensor of size {size} declares more elements than are stored")
  if math.prod(size) == 0:
    return np.zeros(size, storage.dtype)
  last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  if last >= data.size:
    raise TorchFileError(
        f"a tensor of size {size} and stride {stride} at offset {offset} reaches element {last} of"
        f" storage {brief(storage.key)}, which has {data.size}"
    )
  return np.lib.stride_tricks.as_strided(
      data[offset:],
      shape=size,
      strides=tuple(step * data.itemsize for step in stride),
      writeable=False,
  )
