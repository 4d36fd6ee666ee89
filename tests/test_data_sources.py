import pickle

import numpy as np
import pytest
from PIL import Image

from bionets_jax.data import open_source
from bionets_jax.data.digits import split_indices


def write_image(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  kind = {"jpeg": "JPEG", "jpg": "JPEG", "png": "PNG"}[path.suffix[1:].lower()]
  Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(path, format=kind)


@pytest.fixture
def folder(tmp_path):
  for i, name in enumerate(["b/2.jpg", "b/10.JPEG", "a/x.png", "c/y.jpg", "c/a b.jpg"]):
    write_image(tmp_path / "train" / name, 10 * i)
    write_image(tmp_path / "val" / name, 10 * i)
  (tmp_path / "train" / "b" / "notes.txt").write_text("no image")
  (tmp_path / "train" / "b" / ".hidden.jpg").write_text("no image")
  (tmp_path / "train" / ".cache").mkdir()
  return tmp_path


def test_digits_are_scikit_learns():
  datasets = pytest.importorskip("sklearn.datasets")
  reference = datasets.load_digits()
  for split in ("train", "test"):
    source = open_source("digits", split)
    stored = split_indices(split)
    for i in range(len(source)):
      image, label, key = source.read(i)
      assert image.dtype == np.uint8 and image.shape == source.image_shape == (8, 8, 1)
      grey = np.round(reference.images[stored[i]] * 255 / 16)
      np.testing.assert_array_equal(image[..., 0], grey)
      assert label == reference.target[stored[i]]
      assert key == f"digits[{stored[i]}]"


def test_digits_split_is_disjoint_complete_and_stratified():
  train, test = split_indices("train"), split_indices("test")
  assert (len(train), len(test)) == (1442, 355)
  assert sorted([*train, *test]) == list(range(1797))
  source = open_source("digits", "test")
  labels = [source.read(i)[1] for i in range(len(source))]
  assert np.bincount(labels).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
  assert source.num_classes == 10


def test_digits_unknown_split():
  with pytest.raises(ValueError, match="Unknown split of digits 'tests'. Did you mean 'test'"):
    open_source("digits", "tests")


def test_folder_is_sorted_and_skips_what_is_no_image(folder):
  source = open_source("folder", "train", str(folder))
  assert source.class_names == ("a", "b", "c")
  assert source.image_shape == (None, None, 3)
  found = [source.read(i) for i in range(len(source))]
  names = [key.split("/train/")[1] for _, _, key in found]
  assert names == ["a/x.png", "b/10.JPEG", "b/2.jpg", "c/a b.jpg", "c/y.jpg"]
  assert [label for _, label, _ in found] == [0, 1, 1, 2, 2]
  assert found[0][0] == (folder / "train/a/x.png").read_bytes()


def test_parts_of_a_folder(folder, tmp_path):
  """They have nothing in common, are all of it together, and are of each class; 'all' needs no folder for a split."""
  photos = tmp_path / "photos"
  for i in range(10):
    for name in ("cat", "dog"):
      write_image(photos / name / f"2026-01-0{i}.jpg", i)

  def files(split):
    source = open_source("folder", split, str(photos))
    assert source.class_names == ("cat", "dog")
    return [source.key(i).removeprefix(f"{photos}/") for i in range(len(source))]

  whole, train, held_out = files("all"), files("all[:80%]"), files("all[80%:]")
  assert (len(whole), len(train), len(held_out)) == (20, 16, 4)
  assert sorted(train + held_out) == whole and train == sorted(train)
  assert [sum(name.startswith(c) for name in held_out) for c in ("cat", "dog")] == [2, 2]
  assert held_out != [f"{c}/2026-01-0{i}.jpg" for c in ("cat", "dog") for i in (8, 9)]  # not the newest
  before = set(train)
  write_image(photos / "cat" / "zebra.jpg", 0)  # one more moves at most what lies at the border
  assert len(before - set(files("all[:80%]"))) <= 1
  assert len(open_source("folder", "train[:1]", str(folder))) == 3  # one of each class

  for part in ("many", "12", "1shard"):
    with pytest.raises(ValueError, match=rf"cat: \[:{part}\] is no part of 11 examples; write '\[:90%\]'"):
      files(f"all[:{part}]")
  with pytest.raises(ValueError, match="is empty"):
    files("all[:0]")
  with pytest.raises(FileNotFoundError, match="'al'.*that holds the classes themselves is 'all'"):
    files("al[:80%]")
  with pytest.raises(ValueError, match="no images in 3 of 3.*holds folders: is it a split"):
    open_source("folder", "all", str(folder))


def test_a_folder_of_many_classes_names_some(tmp_path):
  for i in range(1000):
    (tmp_path / f"n{i:08}").mkdir()
  with pytest.raises(FileNotFoundError, match=r"Known: n00000000, .*, n00000011 and 988 more\."):
    open_source("folder", "train", str(tmp_path))


def test_folder_survives_pickling(folder):
  source = open_source("folder", "val", str(folder))
  copy = pickle.loads(pickle.dumps(source))
  assert list(copy.read_many([4, 0])) == list(source.read_many([4, 0]))
  assert (len(copy), copy.class_names) == (len(source), source.class_names)


def test_a_folder_in_the_home_directory(folder, monkeypatch):
  monkeypatch.setenv("HOME", str(folder.parent))
  assert open_source("folder", "train", f"~/{folder.name}").location == str(folder / "train")


def test_folder_errors(folder, tmp_path):
  with pytest.raises(ValueError, match="needs a directory"):
    open_source("folder", "train", "")
  with pytest.raises(FileNotFoundError, match="nowhere is not one"):
    open_source("folder", "train", str(tmp_path / "nowhere"))
  with pytest.raises(FileNotFoundError, match="'valid'. Did you mean 'val'.*Known: train, val"):
    open_source("folder", "valid", str(folder))
  (folder / "train" / "d").mkdir()
  with pytest.raises(ValueError, match="no images in 1 of 4 class directories, e.g. 'd'"):
    open_source("folder", "train", str(folder))
  (folder / "empty").mkdir()
  with pytest.raises(ValueError, match="has no sub-directories"):
    open_source("folder", "empty", str(folder))
