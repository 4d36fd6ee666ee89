"""Reads .npz files, as `np.savez` writes them, that nobody vouches for.

`np.load(allow_pickle=False)` runs no code either, but it allocates what a header of some bytes declares, and
unpacks what a small archive unpacks to. Here every number is compared with the file's size first.
"""

import math
import os
import zipfile

import numpy as np

# An archive of this size may unpack to 100 times as much (trained weights compress by some per cent), and
# any to the first number: zeros, of which fresh networks have many, leave next to nothing.
_FREE, _RATIO = 1 << 28, 100
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MAX_HEADER = 10_000  # bytes, NumPy's own limit: its parser of Python literals is slow on hostile ones
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class NpzFileError(ValueError):
  """The file is not a set of arrays that can be read safely; the message says why."""


def read_npz_file(path):
  """Reads what `np.savez` or `np.savez_compressed` wrote.

  Args:
    path: a .npz file.

  Returns:
    dict of str to read-only array, in the file's order, with the shapes and dtypes of the file: numbers,
    booleans or text.

  Raises:
    FileNotFoundError: there is no such file.
    NpzFileError: it is damaged, holds Python objects, or unpacks to more than its size makes plausible.
  """
  path = os.fspath(path)
  with open(path, "rb") as file:
    size = os.fstat(file.fileno()).st_size
    try:
      with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _check_sizes(members, size)
        return {info.filename.removesuffix(".npy"): _read(archive, info) for info in members}
    except NpzFileError as error:
      raise NpzFileError(f"{path}: {error}") from None
    except Exception as error:
      # zipfile, zlib and NumPy's reader of headers raise nearly anything on damaged bytes.
      raise NpzFileError(
          f"{path}: damaged, cut short, or no .npz file"
          f" ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from error


def _check_sizes(members, size):
  names = [info.filename for info in members]
  if not names:
    raise NpzFileError("it holds no arrays")
  if strange := [name for name in names if not name.endswith(".npy")]:
    raise NpzFileError(f"member {strange[0]!r:.80} is no array (.npy), and np.savez writes nothing else")
  if len(set(names)) != len(names):
    raise NpzFileError("it has two members of one name")
  if strange := [info.filename for info in members if info.compress_type not in _METHODS]:
    raise NpzFileError(f"member {strange[0]!r:.80} is compressed in a way that np.savez does not use")
  if sum(info.compress_size for info in members) > size:
    raise NpzFileError("its members claim more bytes than the file has")
  total, most = sum(info.file_size for info in members), max(_FREE, _RATIO * size)
  if total > most:
    raise NpzFileError(f"its {size} bytes would unpack to {total}, more than weights ever do ({most})")


def _read(archive, info):
  name = info.filename.removesuffix(".npy")
  with archive.open(info) as member:
    version = np.lib.format.read_magic(member)
    if version not in _HEADERS:
      raise NpzFileError(f"{name!r:.80} has version {version} of the format, which no array of numbers has")
    digits = 2 if version == (1, 0) else 4
    length = int.from_bytes(member.read(digits), "little")
    if length > _MAX_HEADER:
      raise NpzFileError(f"{name!r:.80} has a header of {length} bytes; arrays of numbers need less than 200")
    member.seek(-digits, os.SEEK_CUR)
    shape, fortran, dtype = _HEADERS[version](member)
    if dtype.hasobject:
      raise NpzFileError(f"{name!r:.80} holds Python objects, and to unpickle them would run code")
    if dtype.kind not in "fiubcSU":
      raise NpzFileError(f"{name!r:.80} has the dtype {dtype}; save numbers, and bfloat16 as float32")
    wanted, left = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
    if wanted != left or min(shape, default=0) < 0:
      raise NpzFileError(
          f"{name!r:.80} of shape {shape}, {dtype}, takes {wanted} bytes; the file has {left} for it")
    data = np.frombuffer(member.read(), dtype)  # to the end, where zipfile compares the checksum
  return data.reshape(shape, order="F" if fortran else "C")
