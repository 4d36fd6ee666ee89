"""The pickle in a torch file, unpickled without running its code.

A pickle may name any function and have it called, so this reader answers only to the names that tensor files
need, each with an inert stand-in of its own; any other name is refused before it is looked up. Nor may a small
file ask for much work: what it shares it can multiply at every level, so nothing here hashes, compares or
prints what the file built without a bound.
"""

import collections
import pickle
from typing import Any

import numpy as np

MAX_DIMS = 32  # NumPy 1's limit, and far beyond any network's
_MAX_ARGUMENTS = 16  # of a call, and of a tuple that is a key; torch's calls have up to 7
_MAX_PAIRS = 1_000_000  # of dicts that are made by a call, as Python 2 wrote them
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

SAVE_INSTEAD = "save `model.state_dict()` with torch.save (or as .safetensors) and read that file"


class TorchFileError(ValueError):
  """The file is not a tensor file that can be read safely; the message says why."""


class Inert:
  """What a pickle gets to hold."""

  __slots__ = ()


class StorageType(Inert):
  """What torch.FloatStorage and its like stand for: a dtype."""

  __slots__ = ("dtype",)

  def __init__(self, dtype):
    self.dtype = dtype


class Storage(Inert):
  """A named run of `numel` elements of `dtype`; its bytes are fetched later."""

  __slots__ = ("key", "dtype", "numel")

  def __init__(self, key, dtype, numel):
    self.key, self.dtype, self.numel = key, dtype, numel


class Tensor(Inert):
  """A view into a storage, unchecked."""

  __slots__ = ("storage", "offset", "size", "stride")

  def __init__(self, storage, offset, size, stride):
    self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


class _Function(Inert):
  """The stand-in for one function that the file may call."""

  __slots__ = ("call",)

  def __init__(self, call):
    self.call = call

  def __call__(self, *args):
    return self.call(*args)


def _rebuild_tensor(storage, offset, size, stride, *unused):
  return Tensor(storage, offset, size, stride)


def _rebuild_parameter(data, *unused):
  return data


def _new_size(sizes=()):
  if len(sizes) > MAX_DIMS:
    raise TorchFileError(f"a torch.Size of {len(sizes)} numbers")
  return tuple(sizes)


def _new_device(*args):
  if not all(isinstance(arg, (str, int)) for arg in args):
    raise TorchFileError("a torch.device that is made of neither text nor numbers")
  return ":".join(str(arg) for arg in args)


def _allowed_names():
  """(module, name) -> stand-in: everything that a tensor file may name."""
  names: dict[tuple[str, str], Any] = {
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
    names["torch", name] = names["torch.cuda", name] = StorageType(_dtype(dtype))
  for dtype in _DTYPES:
    names["torch", dtype] = dtype
  return names


def brief(value, nested=False):
  """A short text for a message. `repr` of what a file built may take for ever."""
  if isinstance(value, str):
    return repr(value[:40])
  if value is None or isinstance(value, (int, float)):
    return repr(value)[:40]
  if isinstance(value, tuple) and not nested:
    more = ", ..." if len(value) > 8 else ""
    return f"({', '.join(brief(item, True) for item in value[:8])}{more})"
  return f"a {type(value).__name__.strip('_')}"


def _check_key(key):
  """Returns `key` if to hash it is little work: a hash of nested tuples follows every path through them."""
  for value in key if isinstance(key, tuple) and len(key) <= _MAX_ARGUMENTS else (key,):
    small = abs(value) < 2**64 if isinstance(value, int) else isinstance(value, (str, bytes, float))
    if not (small or value is None or isinstance(value, Inert)):
      raise TorchFileError(f"a key {brief(key)} in a dict or set; keys are names, numbers or short tuples")
  return key


class _Bounded:
  """What the unpickler reads: refuses lengths beyond the whole file before memory is taken for them."""

  def __init__(self, file, size):
    self.file, self.size, self.readline = file, size, file.readline

  def read(self, count):
    if count > self.size:
      raise TorchFileError(f"the file declares {count} bytes and has {self.size} in all")
    return self.file.read(count)


_InPython: Any = pickle._Unpickler  # type checkers know the one in C alone


def _checked(opcode, keys_of):
  """The opcode of this name, after a check of the keys that `keys_of` finds on the stack."""
  code = getattr(pickle, opcode)[0]

  def load(unpickler, act=_InPython.dispatch[code]):
    for key in keys_of(unpickler.stack):
      _check_key(key)
    act(unpickler)

  return {code: load}


class Unpickler(_InPython):
  """Unpickles with the names above and nothing else; collects the storages it meets.

  Python's own unpickler in Python: that in C has no place for a check between the opcodes.
  """

  dispatch = dict(_InPython.dispatch)  # opcode -> function of the unpickler

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

  # What follows the mark is all of the stack: the rest waits in `metastack`.
  dispatch |= _checked("SETITEM", lambda stack: stack[-2:-1])
  dispatch |= _checked("SETITEMS", lambda stack: stack[::2]) | _checked("DICT", lambda stack: stack[::2])
  dispatch |= _checked("ADDITEMS", lambda stack: stack) | _checked("FROZENSET", lambda stack: stack)

  def _reduce(self):
    arguments = self.stack[-1]
    if not isinstance(arguments, tuple) or len(arguments) > _MAX_ARGUMENTS:
      raise TorchFileError("a call with arguments that no torch file has")
    super().load_reduce()

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
    raise TorchFileError(f"refused to load {module}.{name}: {why}. Instead, {SAVE_INSTEAD}")

  def persistent_load(self, pid):
    if isinstance(pid, tuple) and pid and pid[0] == "module":
      raise TorchFileError(f"a whole pickled model, which cannot be read; {SAVE_INSTEAD}")
    if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
      raise TorchFileError(f"unknown kind of reference {brief(pid)} in the file")
    _, kind, key, _, numel = pid[:5]
    if len(pid) == 6 and pid[5] is not None:
      raise TorchFileError("views of storages (written by torch < 0.4) cannot be read; re-save it")
    if not isinstance(kind, StorageType):
      raise TorchFileError(f"storage {brief(key)} has no known element type")
    if not isinstance(key, str) or not is_count(numel):
      raise TorchFileError(f"storage {brief(key)} has no valid name or length ({brief(numel)})")
    storage = self.storages.setdefault(key, Storage(key, kind.dtype, numel))
    if (storage.dtype, storage.numel) != (kind.dtype, numel):
      raise TorchFileError(f"storage {brief(key)} is described in two ways that do not agree")
    return storage


def _dtype(name):
  if name == "bfloat16":
    import ml_dtypes  # NumPy itself has no bfloat16; jax depends on this package.

    return np.dtype(ml_dtypes.bfloat16)
  return np.dtype(name)


def is_count(value):
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**60
