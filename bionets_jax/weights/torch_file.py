"""Reads files written by `torch.save`, without torch and without running their code.

A torch file is a pickle plus raw storages. A pickle may name any function and have it called,
so this reader answers only to the names that tensor files need, each with an inert stand-in of
its own; any other name is refused before it is looked up. Nor may a small file ask for much work: what
it shares it can multiply at every level, so nothing here hashes, compares or prints what the file built
without a bound. Tensors are described by the file as
(storage, offset, size, stride): they become arrays only after the whole file has been read, with
every number checked against the storage, since NumPy's `as_strided` checks nothing.

Both layouts of torch are read: the zip archive (`PK...`, torch >= 1.6) and the older sequence of
pickles. Archive members are looked up in the archive alone, nothing is ever unpacked to disk.
"""

import collections
import io
import math
import os
import pickle
import struct
import zipfile

import numpy as np

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_DIMS = 32  # NumPy 1's limit, and far beyond any network's
_MAX_ARGUMENTS = 16  # of a call, and of a tuple that is a key; torch's calls have up to 7
_MAX_PAIRS = 1_000_000  # of dicts that are made by a call, as Python 2 wrote them
# Views may overlap and repeat: so many bytes in all of a file's tensors, and so many times the file's size.
_FREE, _RATIO = 1 << 26, 4
# torch.save writes none of these. They make instances, take big integers, or allocate what the file declares.
_FOREIGN_OPCODES = "INST OBJ NEWOBJ NEWOBJ_EX EXT1 EXT2 EXT4 LONG4 BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER"

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_DTYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128"
).split()

_SAVE_INSTEAD = "save `model.state_dict()` with torch.save (or as .safetensors) and read that file"


class TorchFileError(ValueError):
  """The file is not a tensor file that can be read safely; the message says why."""


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
      return _to_arrays(*read(file), max(_FREE, _RATIO * os.fstat(file.fileno()).st_size))
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


# --- the pickle ---------------------------------------------------------------------------------


class _Inert:
  """What a pickle gets to hold."""

  __slots__ = ()


class _StorageType(_Inert):
  __slots__ = ("dtype",)

  def __init__(self, dtype):
    self.dtype = dtype


class _Storage(_Inert):
  """A named run of `numel` elements of `dtype`; its bytes are fetched later."""

  __slots__ = ("key", "dtype", "numel")

  def __init__(self, key, dtype, numel):
    self.key, self.dtype, self.numel = key, dtype, numel


class _Tensor(_Inert):
  """A view into a storage, unchecked."""

  __slots__ = ("storage", "offset", "size", "stride")

  def __init__(self, storage, offset, size, stride):
    self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


class _Function(_Inert):
  """The stand-in for one function that the file may call."""

  __slots__ = ("call",)

  def __init__(self, call):
    self.call = call

  def __call__(self, *args):
    return self.call(*args)


def _rebuild_tensor(storage, offset, size, stride, *unused):
  return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(data, *unused):
  return data


def _new_size(sizes=()):
  if len(sizes) > _MAX_DIMS:
    raise TorchFileError(f"a torch.Size of {len(sizes)} numbers")
  return tuple(sizes)


def _new_device(*args):
  if not all(isinstance(arg, (str, int)) for arg in args):
    raise TorchFileError("a torch.device that is made of neither text nor numbers")
  return ":".join(str(arg) for arg in args)


def _allowed_names():
  """(module, name) -> stand-in: everything that a tensor file may name."""
  names = {
      ("torch", "Size"): _Function(_new_size),
      ("torch", "device"): _Function(_new_device),
      ("torch._utils", "_rebuild_tensor"): _Function(_rebuild_tensor),
      ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
      ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
      ("torch._utils", "_rebuild_parameter_with_state"): _Function(_rebuild_parameter),
      # Parameters of torch < 0.4.
      ("torch.nn.parameter", "Parameter"): _Function(_rebuild_parameter),
  }
  for name, dtype in _STORAGES.items():
    names["torch", name] = names["torch.cuda", name] = _StorageType(_dtype(dtype))
  for dtype in _DTYPES:
    names["torch", dtype] = dtype
  return names


def _brief(value, nested=False):
  """A short text for a message. `repr` of what a file built may take for ever."""
  if isinstance(value, str):
    return repr(value[:40])
  if value is None or isinstance(value, (int, float)):
    return repr(value)[:40]
  if isinstance(value, tuple) and not nested:
    more = ", ..." if len(value) > 8 else ""
    return f"({', '.join(_brief(item, True) for item in value[:8])}{more})"
  return f"a {type(value).__name__.strip('_')}"


def _check_key(key):
  """Returns `key` if to hash it is little work: a hash of nested tuples follows every path through them."""
  for value in key if isinstance(key, tuple) and len(key) <= _MAX_ARGUMENTS else (key,):
    small = abs(value) < 2**64 if isinstance(value, int) else isinstance(value, (str, bytes, float))
    if not (small or value is None or isinstance(value, _Inert)):
      raise TorchFileError(f"a key {_brief(key)} in a dict or set; keys are names, numbers or short tuples")
  return key


class _Bounded:
  """What the unpickler reads: refuses lengths beyond the whole file before memory is taken for them."""

  def __init__(self, file, size):
    self.file, self.size, self.readline = file, size, file.readline

  def read(self, count):
    if count > self.size:
      raise TorchFileError(f"the file declares {count} bytes and has {self.size} in all")
    return self.file.read(count)


class _Unpickler(pickle._Unpickler):
  """Unpickles with the names above and nothing else; collects the storages it meets.

  Python's own unpickler in Python: that in C has no place for a check between the opcodes.
  """

  dispatch = dict(pickle._Unpickler.dispatch)  # opcode -> function of the unpickler

  def __init__(self, file, size):
    super().__init__(_Bounded(file, size), encoding="utf-8")
    self.storages = {}
    self._names = _allowed_names() | {("collections", "OrderedDict"): _Function(self._new_dict)}
    self._pairs = 0

  def _new_dict(self, pairs=()):
    self._pairs += len(pairs)
    if self._pairs > _MAX_PAIRS:
      raise TorchFileError(f"dicts of more than {_MAX_PAIRS} entries")
    return collections.OrderedDict((_check_key(key), value) for key, value in pairs)

  def _checked(opcode, keys_of):
    """The opcode of this name, after a check of the keys that `keys_of` finds on the stack."""
    code = getattr(pickle, opcode)[0]

    def load(self, act=pickle._Unpickler.dispatch[code]):
      for key in keys_of(self.stack):
        _check_key(key)
      act(self)

    return {code: load}

  # What follows the mark is all of the stack: the rest waits in `metastack`.
  dispatch |= _checked("SETITEM", lambda stack: stack[-2:-1])
  dispatch |= _checked("SETITEMS", lambda stack: stack[::2]) | _checked("DICT", lambda stack: stack[::2])
  dispatch |= _checked("ADDITEMS", lambda stack: stack) | _checked("FROZENSET", lambda stack: stack)

  def _reduce(self):
    arguments = self.stack[-1]
    if not isinstance(arguments, tuple) or len(arguments) > _MAX_ARGUMENTS:
      raise TorchFileError("a call with arguments that no torch file has")
    pickle._Unpickler.load_reduce(self)

  def _build(self):
    # A state dict carries `_metadata` as an attribute, which holds the versions of its modules.
    self.stack.pop()
    if not isinstance(self.stack[-1], collections.OrderedDict):
      raise TorchFileError("the file tries to change the state of a tensor, which no torch file does")

  def _refuse(self):
    raise TorchFileError(f"the pickle has an opcode that torch.save never writes ({_FOREIGN_OPCODES})")

  dispatch |= {pickle.REDUCE[0]: _reduce, pickle.BUILD[0]: _build}
  dispatch |= dict.fromkeys((getattr(pickle, opcode)[0] for opcode in _FOREIGN_OPCODES.split()), _refuse)

  def find_class(self, module, name):
    try:
      return self._names[module, name]
    except KeyError:
      module, name = module[:80], name[:80]
    whole_model = module.split(".")[0] in ("torchvision", "timm", "__main__", "models")
    if whole_model or module.startswith("torch.nn"):
      why = "it looks like a whole pickled model, which only the code that made it can load"
    else:
      why = "files of tensors do not need it, and loading it could run code"
    raise TorchFileError(f"refused to load {module}.{name}: {why}. Instead, {_SAVE_INSTEAD}")

  def persistent_load(self, pid):
    if isinstance(pid, tuple) and pid and pid[0] == "module":
      raise TorchFileError(f"a whole pickled model, which cannot be read; {_SAVE_INSTEAD}")
    if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
      raise TorchFileError(f"unknown kind of reference {_brief(pid)} in the file")
    _, kind, key, _, numel = pid[:5]
    if len(pid) == 6 and pid[5] is not None:
      raise TorchFileError("views of storages (written by torch < 0.4) cannot be read; re-save it")
    if not isinstance(kind, _StorageType):
      raise TorchFileError(f"storage {_brief(key)} has no known element type")
    if not isinstance(key, str) or not _is_count(numel):
      raise TorchFileError(f"storage {_brief(key)} has no valid name or length ({_brief(numel)})")
    storage = self.storages.setdefault(key, _Storage(key, kind.dtype, numel))
    if (storage.dtype, storage.numel) != (kind.dtype, numel):
      raise TorchFileError(f"storage {_brief(key)} is described in two ways that do not agree")
    return storage


def _dtype(name):
  if name == "bfloat16":
    import ml_dtypes  # NumPy itself has no bfloat16; jax depends on this package.

    return np.dtype(ml_dtypes.bfloat16)
  return np.dtype(name)


def _is_count(value):
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**60


# --- the two layouts ----------------------------------------------------------------------------


def _read_zip(file):
  """Returns (object with _Tensor leaves, function from _Storage to its bytes)."""
  file_size = os.fstat(file.fileno()).st_size
  archive = zipfile.ZipFile(file)
  members = {info.filename: info for info in archive.infolist()}
  pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
  folders = {name[: -len("data.pkl")] for name in pickles}
  if any(folder + "constants.pkl" in members for folder in folders):
    raise TorchFileError(f"a TorchScript archive (torch.jit.save) holds code; {_SAVE_INSTEAD}")
  if len(pickles) != 1:
    raise TorchFileError(
        f"a zip file with {len(pickles)} members named data.pkl; torch.save writes exactly one"
    )
  (folder,) = folders

  def member(name):
    if name not in members:
      raise TorchFileError(f"the archive has no member {_brief(name)}")
    # torch never compresses; a member that unpacks to more than the file's size is a trap.
    if members[name].compress_type != zipfile.ZIP_STORED:
      raise TorchFileError(f"member {_brief(name)} is compressed, which torch.save never does")
    if members[name].file_size > file_size:
      raise TorchFileError(f"member {_brief(name)} claims to be larger than the whole file")
    return archive.read(name)

  if folder + "byteorder" in members and member(folder + "byteorder").strip() != b"little":
    raise TorchFileError("written on a big-endian machine; re-save it on a little-endian one")
  unpickler = _Unpickler(io.BytesIO(member(folder + "data.pkl")), file_size)
  return unpickler.load(), lambda storage: member(f"{folder}data/{storage.key}")


def _read_legacy(file):
  """Returns (object with _Tensor leaves, function from _Storage to its bytes)."""
  size = os.fstat(file.fileno()).st_size
  try:
    magic = _Unpickler(file, size).load()
  except TorchFileError:
    raise
  except Exception:
    magic = None
  if magic != _LEGACY_MAGIC:
    raise TorchFileError(
        "not a file of torch.save: it begins neither as a zip archive nor with torch's legacy"
        " magic number"
    )
  protocol = _Unpickler(file, size).load()
  if protocol != _LEGACY_PROTOCOL:
    raise TorchFileError(f"legacy protocol {_brief(protocol)}; only {_LEGACY_PROTOCOL} is known")
  system = _Unpickler(file, size).load()
  if isinstance(system, dict) and not system.get("little_endian", True):
    raise TorchFileError("written on a big-endian machine; re-save it on a little-endian one")
  unpickler = _Unpickler(file, size)
  tree = unpickler.load()
  keys = _Unpickler(file, size).load()
  if not isinstance(keys, list):
    raise TorchFileError("the list of storages is missing")
  contents = {}
  for key in keys:
    storage = unpickler.storages.get(key) if isinstance(key, str) else None
    if storage is None:
      raise TorchFileError(f"storage {_brief(key)} is listed but no tensor names it")
    (numel,) = struct.unpack("<q", file.read(8))
    nbytes = storage.numel * storage.dtype.itemsize
    if numel != storage.numel or nbytes > size - file.tell():
      raise TorchFileError(
          f"storage {_brief(key)} should hold {storage.numel} elements of {storage.dtype}, but the"
          f" file says {numel} and has {size - file.tell()} bytes left"
      )
    contents[key] = file.read(nbytes)

  def fetch(storage):
    if storage.key not in contents:
      raise TorchFileError(f"the file lacks the bytes of storage {_brief(storage.key)}")
    return contents[storage.key]

  return tree, fetch


# --- tensors ------------------------------------------------------------------------------------


def _to_arrays(tree, fetch, most):
  """Copies `tree` with every _Tensor as an array, of `most` bytes in all. Shared parts stay shared."""
  total = 0
  buffers = {}
  done = {}  # id -> (node, copy); the node is kept so that its id stays taken
  under_way = set()

  def buffer(storage):
    if storage.key not in buffers:
      raw = fetch(storage)
      if len(raw) != storage.numel * storage.dtype.itemsize:
        raise TorchFileError(
            f"storage {_brief(storage.key)} should hold {storage.numel} elements of {storage.dtype}"
            f" but has {len(raw)} bytes"
        )
      buffers[storage.key] = np.frombuffer(raw, storage.dtype)
    return buffers[storage.key]

  def convert(node):
    nonlocal total
    if isinstance(node, _Tensor):
      view = _view(node, buffer)
      # An expanded tensor's one number may stand for terabytes, which the first computation would allocate.
      total += view.nbytes
      if total > most:
        raise TorchFileError(
            f"a tensor of size {view.shape} declares more elements than are stored: {total} bytes with those"
            f" before it, and the file's size allows {most}; save contiguous copies"
        )
      return view
    if isinstance(node, _Inert):
      return None  # a storage or function outside any tensor: nothing that a reader could use
    if not isinstance(node, (dict, list, tuple)):
      return node
    if id(node) in done:
      return done[id(node)][1]
    if id(node) in under_way:
      raise TorchFileError("a container that contains itself")
    under_way.add(id(node))
    if isinstance(node, dict):
      copy = {key: convert(value) for key, value in node.items()}
    else:
      copy = type(node)(convert(value) for value in node)
    under_way.discard(id(node))
    done[id(node)] = (node, copy)
    return copy

  return convert(tree)


def _view(tensor, buffer):
  storage, offset, size, stride = tensor.storage, tensor.offset, tensor.size, tensor.stride
  if not isinstance(storage, _Storage):
    raise TorchFileError("a tensor without a storage")
  valid = (
      _is_count(offset)
      and isinstance(size, tuple)
      and isinstance(stride, tuple)
      and len(size) == len(stride) <= _MAX_DIMS
      and all(_is_count(value) for value in size + stride)
  )
  if not valid:
    raise TorchFileError(
        f"a tensor with offset {_brief(offset)}, size {_brief(size)}, stride {_brief(stride)}; expected"
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
        f" storage {_brief(storage.key)}, which has {data.size}"
    )
  return np.lib.stride_tricks.as_strided(
      data[offset:],
      shape=size,
      strides=tuple(step * data.itemsize for step in stride),
      writeable=False,
  )
