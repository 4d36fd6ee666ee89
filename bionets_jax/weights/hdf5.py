"""Steps through an HDF5 file that nobody vouches for.

HDF5 is more than a container of arrays. A link or a dataset may stand for another file, which the library
would open in silence; a filter may be a plug-in, which it would load and run; and a few bytes may declare
an array of any size. So every step down is taken here: along plain (hard) links only, to arrays that lie as
they are, in one piece, in this very file, and that have together no more bytes than the file.
"""

import io
import math
import mmap
import struct

import numpy as np

_MAX_NAMES = 1 << 20  # in one attribute; the largest networks have some thousands of layers


class Hdf5Error(ValueError):
  """The file holds something that is not followed or read; the message says what and where."""


class Hdf5File:
  """An HDF5 file, opened for reading only. A context manager.

  Attributes:
    root: the group that everything lies in.
  """

  def __init__(self, source):
    """Opens a file.

    Args:
      source: path of the file, or its bytes.

    Raises:
      OSError: no HDF5 file, or it ends too early.
    """
    import h5py  # takes a while, and most weights come in other files

    if isinstance(source, bytes):
      _check_heaps(source)
    else:
      with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _check_heaps(content)
    self._h5py = h5py
    self._file = h5py.File(io.BytesIO(source) if isinstance(source, bytes) else source, "r")
    self._left = len(source) if isinstance(source, bytes) else self._file.id.get_filesize()
    self._seen = set()
    self.root = self._file["/"]
    if self._file.id.get_create_plist().get_sizes() != (8, 8):
      raise Hdf5Error("its addresses do not have 8 bytes, as those of all files of Keras")

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._file.close()

  def names(self, group):
    """Names of what lies in a group."""
    return list(group.keys())

  def has(self, group, name):
    """Whether something of this name lies in a group."""
    return group.id.links.exists(name.encode())

  def group(self, parent, path):
    """The group at `path` ('a/b/c') below another one.

    Raises:
      Hdf5Error: there is none, or the way leads along a link of another kind than plain ones.
    """
    for name in path.split("/"):
      parent = self._step(parent, name)
      if not isinstance(parent, self._h5py.Group):
        raise Hdf5Error(f"{parent.name} should be a group")
    return parent

  def enter(self, parent, name):
    """As `group`, for a way through everything: a group that is met twice would make it endless.

    Raises:
      Hdf5Error: as `group`, or it has been entered before.
    """
    group = self.group(parent, name)
    address = self._h5py.h5o.get_info(group.id).addr
    if address in self._seen:
      raise Hdf5Error(f"{group.name} lies at a second place in the same file")
    self._seen.add(address)
    return group

  def array(self, parent, path):
    """The array at `path` below a group: numbers or booleans, with the shape and dtype of the file.

    Raises:
      Hdf5Error: there is none, or it is not one that a file of weights has.
    """
    *groups, name = path.split("/")
    data = self._step(self.group(parent, "/".join(groups)) if groups else parent, name)
    if not isinstance(data, self._h5py.Dataset):
      raise Hdf5Error(f"{data.name} should be an array")
    self._check_storage(data)
    dtype, kind = data.dtype, data.dtype.kind
    # h5py knows no bfloat16, and Keras lets it write pairs of bytes.
    if dtype.str == "|V2":
      import ml_dtypes

      dtype, kind = np.dtype(ml_dtypes.bfloat16), "f"
    if kind not in "fiub" or data.shape is None:
      raise Hdf5Error(f"{data.name} holds {data.dtype} of shape {data.shape}, not an array of numbers")
    size = math.prod(data.shape) * dtype.itemsize
    if data.id.get_storage_size() != size:
      raise Hdf5Error(f"{data.name} declares {size} bytes and stores {data.id.get_storage_size()}")
    self._left -= size
    if self._left < 0:
      raise Hdf5Error(f"the arrays up to {data.name} declare more bytes than the file has")
    return np.asarray(data[()]).view(dtype)

  def strings(self, group, name):
    """The strings of a group's attribute `name`; None if it has no such attribute.

    Raises:
      Hdf5Error: it holds something else.
    """
    if name not in group.attrs:
      return None
    attribute = group.attrs.get_id(name)
    count = math.prod(attribute.shape)
    if count == 0:
      return []
    if (attribute.dtype.kind not in "SO" or self._h5py.check_string_dtype(attribute.dtype) is None
        or count > _MAX_NAMES):
      raise Hdf5Error(f"the attribute {name!r} of {group.name} should hold names")
    values = np.asarray(group.attrs[name], object).reshape(-1)
    return [value.decode() if isinstance(value, bytes) else value for value in values]

  def _step(self, parent, name):
    """What lies under one name in a group."""
    where = f"{parent.name.rstrip('/')}/{name}"
    if name in ("", ".") or not self.has(parent, name):
      raise Hdf5Error(f"it has no {where}")
    links = self._h5py.h5l
    kind = parent.id.links.get_info(name.encode()).type
    if kind == links.TYPE_EXTERNAL:
      raise Hdf5Error(f"{where} is a link to another file, which is not followed")
    if kind != links.TYPE_HARD:
      raise Hdf5Error(f"{where} is a link to another name, which is not followed")
    return parent[name]

  def _check_storage(self, data):
    plist = data.id.get_create_plist()
    layout, kinds = plist.get_layout(), self._h5py.h5d
    if layout == kinds.VIRTUAL:
      raise Hdf5Error(f"{data.name} is a virtual array, put together from other files; these are not opened")
    if plist.get_external_count():
      raise Hdf5Error(f"the bytes of {data.name} are in another file, which is not opened")
    if layout not in (kinds.CONTIGUOUS, kinds.COMPACT):
      raise Hdf5Error(
          f"{data.name} is compressed or in chunks, which Keras never writes; save it with Keras again")


def _check_heaps(content):
  """Walks the heaps of strings before the library does: an entry of no length keeps it there for ever.

  Args:
    content: bytes of the file, or a map of it.
  """
  start = content.find(b"GCOL\x01")
  while start >= 0:
    (size,) = struct.unpack("<Q", content[start + 8:start + 16].ljust(8, b"\0"))
    at = 16
    while at + 16 <= size:
      if start + at + 16 > len(content):
        raise Hdf5Error("it is damaged or cut short: a heap of strings reaches beyond its end")
      index, length = struct.unpack("<H6xQ", content[start + at:start + at + 16])
      step = 16 + -(-length // 8) * 8 if index else length  # free space, at the index 0, counts its head
      if step < 16 or at + step > size:
        raise Hdf5Error("it is damaged: a heap of strings has an entry of a length that cannot be")
      at += step
    start = content.find(b"GCOL\x01", start + 5)
