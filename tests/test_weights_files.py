"""read_tensors: what it accepts, and what it says about the rest."""

import io
import os
import pathlib
import pickle
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import bionets_jax as bn
from bionets_jax.counting import abstract_variables
from bionets_jax.weights import Preprocessing, load_pretrained, read_tensors, to_layout
from bionets_jax.weights.files import SUFFIXES
from bionets_jax.weights.keras_file import KerasFileError

TORCH_FILES = pathlib.Path(__file__).parent / "fixtures" / "torch_files"


def test_safetensors(tmp_path):
  tensors = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((), np.int64)}
  save_file(tensors, tmp_path / "file.safetensors")
  found = read_tensors(tmp_path / "file.safetensors")
  assert found.keys() == tensors.keys()
  for key, value in tensors.items():
    np.testing.assert_array_equal(found[key], value)
    assert found[key].dtype == value.dtype and found[key].shape == value.shape


def test_module_prefix_goes_only_if_all_have_it(tmp_path):
  path = tmp_path / "file.safetensors"
  one = np.ones(1, np.float32)
  save_file({"module.a": one, "module.b": one}, path)
  assert set(read_tensors(path)) == {"a", "b"}
  save_file({"module.a": one, "b": one}, path)
  assert set(read_tensors(path)) == {"module.a", "b"}


def test_content_counts_where_a_file_was_renamed(tmp_path):
  path = tmp_path / "file.pth"
  save_file({"a": np.ones(1, np.float32)}, path)
  assert set(read_tensors(path)) == {"a"}
  renamed = tmp_path / "file.safetensors"
  renamed.write_bytes((TORCH_FILES / "tensors_zip.pth").read_bytes())
  assert "bfloat16" in read_tensors(renamed)


OURS = {"a": np.arange(4, dtype=np.float32)}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ("safetensors", "npz", "torch_zip", "torch_legacy", "hdf5", "keras"))
def test_any_kind_under_any_suffix(tmp_path, kind, suffix):
  path = tmp_path / f"file{suffix}"
  if kind == "safetensors":
    save_file(OURS, path)
  elif kind == "npz":
    with open(path, "wb") as file:
      np.savez(file, **OURS)
  elif kind.startswith("torch"):
    path.write_bytes((TORCH_FILES / f"tensors{kind[5:]}.pth").read_bytes())
    assert "bfloat16" in read_tensors(path)
    return
  else:
    if kind == "keras":
      zipped(path, ("config.json", b"{}"), ("model.weights.h5", b""))
    else:
      path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(KerasFileError):
      read_tensors(path)
    return
  np.testing.assert_array_equal(read_tensors(path)["a"], OURS["a"])


def test_what_is_no_regular_file_is_not_opened(tmp_path):
  os.mkfifo(tmp_path / "fifo.pth")
  (tmp_path / "link.pth").symlink_to(tmp_path / "fifo.pth")
  (tmp_path / "zero.npz").symlink_to("/dev/zero")
  for name in ("fifo.pth", "link.pth", "zero.npz"):
    with pytest.raises(FileNotFoundError, match=f"{name}: not a regular file"):
      read_tensors(tmp_path / name)


def test_dtypes_that_numpy_lacks_are_refused(tmp_path):
  header = b'{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
  path = tmp_path / "file.safetensors"
  path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
  with pytest.raises(ValueError, match=r"file\.safetensors.*float8_e4m3"):
    read_tensors(path)


@pytest.mark.parametrize("length", (0x227B, 0x683C))
def test_lengths_that_look_like_text_are_lengths(tmp_path, length):
  """A header of 0x227b bytes makes a file that begins with '{"', and one of 0x683c with '<h'."""
  header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
  path = tmp_path / "file.safetensors"
  path.write_bytes(length.to_bytes(8, "little") + header + bytes(4))
  assert list(read_tensors(path)) == ["a"]


def test_an_empty_set_of_tensors_is_refused(tmp_path):
  save_file({}, tmp_path / "file.safetensors")
  with pytest.raises(ValueError, match=r"file\.safetensors.*\(empty\)"):
    read_tensors(tmp_path / "file.safetensors")


def test_missing_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="nothing.pth"):
    read_tensors(tmp_path / "nothing.pth")
  with pytest.raises(FileNotFoundError, match="directory"):
    read_tensors(tmp_path)


@pytest.mark.parametrize("name", ("model.ckpt", "model"))
def test_unknown_suffix_names_those_that_work(tmp_path, name):
  (tmp_path / name).write_bytes(b"x")
  with pytest.raises(ValueError, match=r"\.safetensors, \.pth, \.pt, \.th"):
    read_tensors(tmp_path / name)


@pytest.mark.parametrize(
    "content, message",
    (
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\xef\xbb\xbf<!DOCTYPE html>", "web page"),
        ("\ufeff<html>404</html>".encode("utf-16-le"), "web page"),
        (b"<!-- " + b"x" * 100 + b" --><html>", "web page"),
        (b'{"error": "Entry not found"}', "JSON text"),
        (b'\n{\n  "error": 404}', "JSON text"),
        (b"x" * 100, "neither as a zip archive"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{" + b"x" * 63, "damaged .safetensors"),
    ),
)
def test_failed_downloads_are_recognised(tmp_path, content, message):
  (tmp_path / "file.pth").write_bytes(content)
  with pytest.raises(ValueError, match=message) as error:
    read_tensors(tmp_path / "file.pth")
  assert "file.pth" in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    (
        (dict(mean=(123.7, 116.3, 103.5)), "0..1"),
        (dict(mean=()), "0..1"),
        (dict(std=(0.0, 0.2, 0.2)), "positive"),
        (dict(image_size=300), "image_size <= resize"),
        (dict(interpolation="cubic"), "bicubic"),
    ),
)
def test_preprocessing_is_checked(change, message):
  good = dict(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), image_size=224, resize=256)
  assert Preprocessing(**good).interpolation == "bilinear"
  with pytest.raises(ValueError, match=message):
    Preprocessing(**(good | change))


# --- .npz -----------------------------------------------------------------------------------------------


def npz_error(path):
  with pytest.raises(ValueError) as error:
    read_tensors(path)
  assert str(path) in str(error.value)
  return str(error.value)


@pytest.mark.parametrize("save", (np.savez, np.savez_compressed))
def test_npz(tmp_path, save):
  tensors = {
      "layer1.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "params/a/kernel": np.eye(3)[:, :2],
      "turned": np.asfortranarray(np.arange(12.0).reshape(3, 4)), "count": np.zeros((), np.int64),
      "none": np.zeros((0, 3), np.float16), "flags": np.array([True, False]),
      "big": np.arange(3, dtype=">f4"),
      "zeros": np.zeros(1_000_000, np.float32)}  # compresses to a thousandth, as fresh weights do
  save(tmp_path / "file.npz", **tensors)
  found = read_tensors(tmp_path / "file.npz")
  assert list(found) == list(tensors)
  for key, value in tensors.items():
    np.testing.assert_array_equal(found[key], value, strict=True)
  # By its content, whatever it is called, as for the other kinds.
  os.rename(tmp_path / "file.npz", tmp_path / "file.pth")
  assert list(read_tensors(tmp_path / "file.pth")) == list(tensors)


def test_torchs_keys_in_an_npz(tmp_path):
  model = bn.create_model("resnet20_cifar")
  template = abstract_variables(model, (32, 32, 3))
  random = np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: random.random(leaf.shape, np.float32), template)
  tensors = to_layout(variables, "pytorch_resnet_cifar10")
  np.savez(tmp_path / "file.npz", **{f"module.{key}": value for key, value in tensors.items()})
  loaded = load_pretrained(tmp_path / "file.npz", template)
  assert loaded.layout == "pytorch_resnet_cifar10"
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


class Payload:
  """Makes a folder when it is unpickled."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return os.mkdir, (self.path,)


def test_objects_in_an_npz_are_refused_by_name(tmp_path):
  trap = np.empty(1, object)
  trap[0] = Payload(tmp_path / "trapped")
  np.savez(tmp_path / "file.npz", a=np.ones(2), trap=trap)
  assert "'trap' holds Python objects" in npz_error(tmp_path / "file.npz")
  (tmp_path / "bare.npz").write_bytes(pickle.dumps(trap[0]))
  npz_error(tmp_path / "bare.npz")
  assert not (tmp_path / "trapped").exists()
  np.savez(tmp_path / "file.npz", pairs=np.zeros(3, [("a", "f4"), ("b", "f4")]))
  assert "'pairs' has the dtype" in npz_error(tmp_path / "file.npz")


def npy(shape, data=bytes(8), descr="<f4"):
  """The bytes of a .npy file whose header says this shape."""
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
  return file.getvalue() + data


def zipped(path, *members, method=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", method) as file:
    for name, data in members:
      file.writestr(name, data)
  return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_npz_files_that_declare_too_much(tmp_path):
  path = tmp_path / "file.npz"
  for shape in ((10**12,), (3,), (1,), (10**6, 10**6, 10**6), (-1, -2)):
    assert "takes" in npz_error(zipped(path, ("a.npy", npy(shape))))
  content = bytearray(zipped(path, ("a.npy", npy((2,)))).read_bytes())
  at = content.index(b"PK\x01\x02")
  content[at + 24:at + 28] = b"\xf0\xff\xff\xff"  # the length that the directory says
  path.write_bytes(content)
  assert "would unpack to 4294967280" in npz_error(path)
  content[at + 20:at + 24] = b"\xf0\xff\xff\xff"  # and the compressed one
  path.write_bytes(content)
  assert "more bytes than the file has" in npz_error(path)
  assert "two members" in npz_error(zipped(path, ("a.npy", npy((2,))), ("a.npy", npy((2,)))))
  assert "compressed in a way" in npz_error(zipped(path, ("a.npy", npy((2,))), method=zipfile.ZIP_BZIP2))
  assert "'b.txt' is no array" in npz_error(zipped(path, ("a.npy", npy((2,))), ("b.txt", b"")))
  assert "no arrays" in npz_error(zipped(path))
  deep = npy((2,)).replace(b"(2,)", b"(" * 5000 + b")" * 5000)
  deep = deep[:8] + (len(deep) - 18).to_bytes(2, "little") + deep[10:]
  message = npz_error(zipped(path, ("a.npy", deep)))
  assert "has a header of 1" in message and "\n" not in message
  assert "damaged" in npz_error(zipped(path, ("a.npy", b"no header")))
  assert "damaged" in npz_error(zipped(path, ("a.npy", npy((2,), descr="<f4', 'a': ["))))


@pytest.mark.parametrize("save", (np.savez, np.savez_compressed))
def test_damaged_npz_files_are_named(tmp_path, save):
  path, random = tmp_path / "file.npz", np.random.default_rng(0)
  save(path, **{f"layer{i}": random.standard_normal(50) for i in range(8)})
  content = path.read_bytes()
  for length in (1, 3, 4, 40, len(content) // 2, len(content) - 30, len(content) - 1):
    path.write_bytes(content[:length])
    npz_error(path)
  other = bytearray(content)
  other[300] ^= 1
  path.write_bytes(other)
  assert "damaged" in npz_error(path)
