"""read_tensors: what it accepts, and what it says about the rest."""

import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from bionets_jax.weights import Preprocessing, read_tensors

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


def test_missing_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="nothing.pth"):
    read_tensors(tmp_path / "nothing.pth")
  with pytest.raises(FileNotFoundError, match="directory"):
    read_tensors(tmp_path)


@pytest.mark.parametrize("name", ("model.h5", "model"))
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
        (b"x" * 100, "neither as a zip archive"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{" + b"x" * 63, "damaged .safetensors"),
    ),
    ids=("empty", "lfs", "html", "noise", "safetensors"),
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
