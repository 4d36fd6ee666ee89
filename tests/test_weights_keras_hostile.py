"""Files that are not what Keras' would be: nothing else is opened, nothing is run, and the error names the file."""

import json
import os
import sys
import zipfile

import h5py
import numpy as np
import pytest
from keras_files import error_of, unpacker

from bionets_jax.weights import read_tensors


@pytest.fixture(scope="module")
def path_of(tmp_path_factory):
  return unpacker(tmp_path_factory.mktemp("keras"))


@pytest.fixture
def openings():
  """path -> function that says whether the file has been opened since, by any library."""
  if not sys.platform.startswith("linux"):
    pytest.skip("asks Linux which files are opened")
  import ctypes

  libc, descriptors = ctypes.CDLL(None, use_errno=True), []

  def watch(path):
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    descriptors.append(descriptor)
    assert descriptor >= 0 and libc.inotify_add_watch(descriptor, os.fsencode(path), 0x20) >= 0  # IN_OPEN

    def opened():
      try:
        return bool(os.read(descriptor, 4096))
      except BlockingIOError:
        return False

    return opened

  yield watch
  for descriptor in descriptors:
    os.close(descriptor)


def test_no_other_file_is_opened(tmp_path, openings):
  """HDF5 itself would open them all: the check of the check."""
  other, raw = tmp_path / "other.h5", tmp_path / "raw.bin"
  value = np.ones((3, 4), np.float32)
  with h5py.File(other, "w") as file:
    file["layers/dense/vars/0"] = value
    file["0"] = value
  raw.write_bytes(value.tobytes())
  opened = {path: openings(path) for path in (other, raw)}
  virtual = h5py.VirtualLayout((3, 4), np.float32)
  virtual[:] = h5py.VirtualSource(str(other), "0", (3, 4))
  # As long as the other file's: HDF5 looks there for the shape.
  unlimited, source = h5py.VirtualLayout((3, 4), np.float32, maxshape=(None, 4)), h5py.VirtualSource(
      str(other), "0", (3, 4), maxshape=(None, 4))
  unlimited[:h5py.h5s.UNLIMITED, :] = source[:h5py.h5s.UNLIMITED, :]

  def external(group):
    group.create_dataset("0", (3, 4), np.float32, external=[(str(raw), 0, h5py.h5f.UNLIMITED)])

  traps = {
      "a link to another file": (other, lambda file: file.__setitem__(
          "layers/dense", h5py.ExternalLink(str(other), "layers/dense"))),
      "/layers is a link to another file": (other, lambda file: file.__setitem__(
          "layers", h5py.ExternalLink(str(other), "layers"))),
      "0 is a link to another file": (other, lambda file: file.require_group("layers/dense/vars").__setitem__(
          "0", h5py.ExternalLink(str(other), "0"))),
      "virtual array": (other, lambda file: file.require_group("layers/dense/vars").create_virtual_dataset(
          "0", virtual)),
      "0 is a virtual array": (other, lambda file: file.require_group(
          "layers/dense/vars").create_virtual_dataset("0", unlimited)),
      "in another file": (raw, lambda file: external(file.require_group("layers/dense/vars"))),
  }  # fmt: skip
  for message, (target, trap) in traps.items():
    path = tmp_path / "trap.weights.h5"
    with h5py.File(path, "w") as file:
      trap(file)
    opened[target]()
    text = error_of(read_tensors, path)
    assert message in text and str(path) in text
    assert not opened[target]()
    with h5py.File(path) as file:
      file["layers/dense/vars/0"][()]
    assert opened[target]()


def legacy(path, **datasets):
  """A file of the layer 'dense', whose weights are made by functions of (group, name)."""
  with h5py.File(path, "w") as file:
    file.attrs["layer_names"] = [b"dense"]
    group = file.create_group("dense")
    group.attrs["weight_names"] = [name.encode() for name in datasets]
    for name, make in datasets.items():
      make(group, name)
  return path


def bomb(group, name):
  """40 TB that nobody has written: HDF5 would make them of the fill value."""
  group.create_dataset(name, (10_000_000, 1_000_000), np.float32)


def twice(group, name):
  """Two names for one array: as many bytes as one likes from a small file."""
  group["data"] = np.ones(300, np.float64)
  group[name] = group["data"]


TRAPS = {
    "declares 40000000000000 bytes and stores 0": bomb,
    "is compressed or in chunks": lambda group, name: group.create_dataset(
        name, data=np.zeros((1000, 1000), np.float32), compression="gzip"),
    "holds object": lambda group, name: group.create_dataset(
        name, data=["a", "b"], dtype=h5py.string_dtype()),
    "not an array of numbers": lambda group, name: group.create_dataset(
        name, data=np.zeros(3, [("a", "f4"), ("b", "i4")])),
    "link to another name": lambda group, name: group.__setitem__(name, h5py.SoftLink("/dense")),
    "should be an array": lambda group, name: group.create_group(name),
    "it has no /dense/kernel": lambda group, name: None,
}  # fmt: skip


@pytest.mark.parametrize("message", TRAPS)
def test_arrays_that_are_not_read(tmp_path, message):
  text = error_of(read_tensors, legacy(tmp_path / "trap.h5", kernel=TRAPS[message]))
  assert message in text and "trap.h5" in text


def test_groups_that_are_not_entered(tmp_path):
  path = tmp_path / "trap.weights.h5"
  with h5py.File(path, "w") as file:
    file["layers/functional/layers/dense/vars/0"] = np.zeros(3)
    file["layers/functional/layers/again"] = file["layers"]
  assert "at a second place" in error_of(read_tensors, path)
  text = error_of(read_tensors, legacy(tmp_path / "trap.h5", **{f"kernel{i}": twice for i in range(1)} | {
      f"other{i}": lambda group, name: group.__setitem__(name, group["data"]) for i in range(9)}))
  assert "declare more bytes than the file has" in text
  for names in ("numbers", "/dense", "a//b", "."):
    with h5py.File(legacy(tmp_path / "trap.h5"), "a") as file:
      file.attrs["layer_names"] = np.arange(3) if names == "numbers" else [names.encode()]
    assert ("should hold names" if names == "numbers" else "it has no /") in error_of(
        read_tensors, tmp_path / "trap.h5")
  with h5py.File(tmp_path / "else.h5", "w") as file:
    file["images"] = np.zeros((2, 3))
  assert "not of a Keras model's weights; it holds ['images']" in error_of(read_tensors, tmp_path / "else.h5")
  assert "it holds no weights" in error_of(read_tensors, legacy(tmp_path / "empty.h5"))


def test_nested_models_and_strange_names(tmp_path):
  """The names are Keras': a whole model as one layer, and one whose scope Keras 2 numbered."""
  def write(group, name):
    group[name] = np.zeros(2, np.float32)

  for names, expected in (
      (("stem/kernel:0", "stem/bias:0", "top/kernel:0"), {
          "dense/stem/kernel", "dense/stem/bias", "dense/top/kernel"}),
      (("model/dense/kernel", "model/dense/bias"), {"dense/kernel", "dense/bias"}),
      (("dense_1/kernel:0", "dense_1/bias:0"), {"dense/kernel", "dense/bias"}),
      (("dense/depthwise_kernel:0", "dense/pointwise_kernel:0"), {
          "dense/depthwise_kernel", "dense/pointwise_kernel"}),
  ):  # fmt: skip
    assert set(read_tensors(legacy(tmp_path / "a.h5", **dict.fromkeys(names, write)))) == expected
  with h5py.File(tmp_path / "d.weights.h5", "w") as file:
    for path in ("layers/functional/layers/dense/vars/0", "layers/dense/cell/vars/0", "_metrics/vars/0",
                 "layers/dense/vars/0", "optimizer/vars/0", "layers/dropout/seed_generator/vars/0", "vars/0"):
      write(file, path)
    file.create_group("layers/functional/vars").attrs["name"] = "base"
    file["layers/functional/layers/dense/vars"].attrs["name"] = "hidden"
  tensors = read_tensors(tmp_path / "d.weights.h5")
  assert set(tensors) == {"base/hidden/kernel", "dense/kernel", "dense/cell/0", "vars/0"}


def test_a_heap_that_keeps_hdf5_for_ever_is_refused(path_of, tmp_path):
  """The library walks a heap of strings entry by entry; one of no length it never leaves."""
  content = bytearray(path_of("keras2.h5").read_bytes())
  start = content.index(b"GCOL")
  content[start + 16:start + 32] = bytes(16)
  (tmp_path / "file.h5").write_bytes(content)
  assert "a length that cannot be" in error_of(read_tensors, tmp_path / "file.h5")
  (tmp_path / "file.h5").write_bytes(content[:start + 20])
  assert "file.h5: it is damaged or cut short" in error_of(read_tensors, tmp_path / "file.h5")


@pytest.mark.parametrize("name", ("keras2.h5", "keras3.weights.h5", "keras3.keras"))
def test_damaged_files_are_named(path_of, tmp_path, name):
  content, path = path_of(name).read_bytes(), tmp_path / name
  for length in (1, 7, 8, 100, 2048, len(content) // 2, len(content) - 1):
    path.write_bytes(content[:length])
    assert str(path) in error_of(read_tensors, path)
  random = np.random.default_rng(0)
  path.write_bytes(random.bytes(5000))
  assert str(path) in error_of(read_tensors, path)
  path.write_bytes(content[:8] + random.bytes(5000))
  assert str(path) in error_of(read_tensors, path)


def archive(path, members, **options):
  with zipfile.ZipFile(path, "w", **options) as file:
    for name, data in members:
      file.writestr(name, data)
  return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_are_not_kerass(path_of, tmp_path):
  with zipfile.ZipFile(path_of("keras2.keras")) as file:
    config, weights = file.read("config.json"), file.read("model.weights.h5")
  whole = [("config.json", config), ("model.weights.h5", weights)]
  path = tmp_path / "file.keras"
  assert len(read_tensors(archive(path, whole))) == 162
  for members, options, message in (
      (whole, {"compression": zipfile.ZIP_DEFLATED}, "compressed"),
      (whole[:1], {}, "0 members model.weights.h5"),
      (whole + whole[1:], {}, "2 members model.weights.h5"),
      ([("config.json", config), ("model.weights.npz", b"")], {}, "pickles"),
      ([("config.json", b"{"), whole[1]], {}, "damaged"),
      ([("config.json", config), ("model.weights.h5", b"x" * 99)], {}, "damaged"),
      ([("config.json", b"[" * 100_000), whole[1]], {}, "damaged"),
  ):
    text = error_of(read_tensors, archive(path, members, **options))
    assert message in text and "file.keras" in text
  # A description of another model names nothing; and none of it is run.
  other = json.loads(config)
  other["config"]["layers"] = [{"class_name": "Lambda", "config": {"name": "x", "function": ["gASV", None]}}]
  tensors = read_tensors(archive(path, [("config.json", json.dumps(other)), whole[1]]))
  assert len(tensors) == 162 and "stem_conv/kernel" in tensors  # by their order
