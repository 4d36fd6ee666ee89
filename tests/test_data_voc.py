"""PASCAL VOC in TFDS's form, from made-up files in the form of the real archives."""

import io
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_tools import take
from PIL import Image

from bionets_jax.data import make_pipeline, make_voc, open_source, prepare
from bionets_jax.data.faults import Fault
from bionets_jax.data.stream import read_prepared
from bionets_jax.data.voc import _pixels
from bionets_jax.data.voc_files import read_objects

TRAIN = "2007/train+2007/validation+2012/train+2012/validation"


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
  """A folder with VOCdevkit and both prepared sets."""
  root = tmp_path_factory.mktemp("voc")
  assert make_voc.main([str(root)]) == 0
  return root


def by_name(source):
  return {key.split()[-1]: (image, annotation) for image, annotation, key in source.read_many(range(len(source)))}


def test_the_features_are_tfds_s(voc, tmp_path):
  for year in ("2007", "2012"):
    ours = tfds.builder_from_directory(voc / "voc" / year / "5.0.0").info
    theirs = tfds.builder(f"voc/{year}", data_dir=tmp_path).info
    assert ours.full_name == theirs.full_name
    assert ours.features.to_json() == theirs.features.to_json()
    for name in ("label", "pose"):
      assert ours.features["objects"].feature[name].names == theirs.features["objects"].feature[name].names


def test_boxes_are_those_that_were_painted(voc):
  for split in ("2007/train", "2012/validation"):
    painted, stored = open_source("generated/voc", split), by_name(open_source("voc", split, str(voc)))
    assert len(stored) == len(painted)
    for index in range(len(painted)):
      image, annotation, _ = painted.read(index)
      found, there = stored[f"{split.replace('/', '_')}_{index:03d}.jpg"]
      for a, b in zip(annotation, there, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
      pixels = np.asarray(Image.open(io.BytesIO(found))).astype(float)
      assert np.abs(pixels - image).mean() < 12  # a JPEG of it


def test_what_tfds_decodes_is_the_same(voc):
  """TFDS's own reading of a record: parts of the sides, y before x."""
  records = tfds.builder_from_directory(voc / "voc" / "2007" / "5.0.0").as_data_source("test")
  source = open_source("voc", "2007/test", str(voc))
  for index, record in enumerate(records):
    height, width = source.sizes[index]
    assert record["image"].shape == (height, width, 3)
    _, annotation, key = source.read(index)
    assert key == f"voc/2007 test[{index}] {record['image/filename'].decode()}"
    x1, y1, x2, y2 = annotation.boxes.T
    expected = np.stack([(y1 + 1) / height, (x1 + 1) / width, y2 / height, x2 / width], -1)
    np.testing.assert_allclose(record["objects"]["bbox"], expected, atol=1e-6)
    np.testing.assert_array_equal(record["objects"]["label"], annotation.labels)
    np.testing.assert_array_equal(record["objects"]["is_difficult"], annotation.difficult)


def test_every_whole_pixel_survives_float32():
  for side in (1, 3, 333, 375, 500, 1000, 4000):
    low, high = np.arange(1, side + 1), np.full(side, side)
    stored = np.stack([low / side, low / side, high / side, high / side], -1).astype(np.float32).astype(float)
    found = _pixels(stored, side, side)
    np.testing.assert_array_equal(found[:, 0], low - 1)
    np.testing.assert_array_equal(found[:, 1], low - 1)
    assert (found[:, 2:] == side).all()
  # Some files of 2012 have fractions of pixels, which stay.
  box = np.float32([[20.25 / 100, 45.7 / 300, 1, 0.5]]).astype(float)
  np.testing.assert_allclose(_pixels(box, 100, 300), [[44.7, 19.25, 150, 100]], rtol=1e-6)


def test_sums_and_slices_of_years(voc):
  source = open_source("voc", "2007/train[:10]+2012/validation[-3:]+2007/test[50%:]", str(voc))
  assert len(source) == 10 + 3 + 12 and source.most_objects <= 6
  assert [source.key(index) for index in (9, 10, 13)] == [
      "voc/2007 train[:10][9]", "voc/2012 validation[-3:][0]", "voc/2007 test[50%:][0]"]
  whole = by_name(open_source("voc", TRAIN, str(voc)))
  assert len(whole) == 80
  for index in range(13):
    image, annotation, key = source.read(index)
    np.testing.assert_array_equal(annotation.boxes, whole[key.split()[-1]][1].boxes)
    assert tuple(source.sizes[index]) == Image.open(io.BytesIO(image)).size[::-1]
  prints = {open_source("voc", split, str(voc)).fingerprint() for split in (TRAIN, "2007/train", "2007/test")}
  assert len(prints) == 3


@pytest.mark.parametrize("name, split, message", [
    ("voc", "2012/test", "no published annotations; 2007/test has"),
    ("voc", "2012/all[:50%]", "no published annotations"),
    ("voc", "train", "'train'. Did you mean '2012/train' or '2007/train'"),
    ("voc", "2007/trian", "split of voc/2007 'trian'. Did you mean 'train'"),
    ("voc/2007", "train", "opened as 'voc', with the year in the split"),
    ("generated/voc", "2012/test", "Known: train, validation"),
])
def test_refusals(voc, name, split, message):
  with pytest.raises(ValueError, match=message):
    open_source(name, split, str(voc))


def test_a_year_that_is_missing_is_explained(tmp_path, capsys):
  with pytest.raises(FileNotFoundError, match=r"(?s)'voc/2007' is not prepared.*VOCtest_06-Nov-2007.tar.*prepare voc"):
    open_source("voc", "2007/test", str(tmp_path))
  assert prepare.main(["voc/2012", f"--data-dir={tmp_path}"]) == 1
  assert "VOCdevkit/VOC2012/ImageSets/Main/train.txt" in capsys.readouterr().err
  assert prepare.main(["voc", f"--data-dir={tmp_path}"]) == 1
  assert "voc/2007 and voc/2012" in capsys.readouterr().err


def test_batches_of_voc(voc, mesh):
  pipeline = make_pipeline(
      name="voc", dir=str(voc), train_split=TRAIN, eval_split="2007/validation", test_split="2007/test",
      train_transform="flip|letterbox(64, 96)", eval_transform="letterbox(64, 96)", test_transform="letterbox(64, 96)",
      workers=0, drop_remainder=True, batch_size=4, eval_batch_size=8, seed=0, mesh=mesh)
  assert (pipeline.num_train, pipeline.num_eval, pipeline.num_test, pipeline.num_classes) == (80, 16, 24, 20)
  assert sum(batch["mask"].sum() for batch in take(pipeline.test_batches(), 99)) == 24
  batch, = take(pipeline.train_batches(), 1)
  assert batch["present"].any(1).all() and batch["image"].any((1, 2, 3)).all()
  keys = pipeline.train_keys(0)
  assert len(keys) == 4 and all(key.startswith("voc/20") for key in keys)


def test_damaged_records_are_found_when_they_are_read(voc, tmp_path):
  shutil.copytree(voc / "voc", tmp_path / "voc")
  source = open_source("voc", "2007/validation", str(tmp_path))
  path, = (tmp_path / "voc" / "2007" / "5.0.0").glob("*validation.array_record*")
  path.unlink()
  damaged = open_source("voc", "2007/train+2007/validation", str(tmp_path))
  assert damaged.sizes.all(1).tolist() == [True] * 24 + [False] * len(source)
  found, = read_prepared(damaged, [30], lambda *example: example)
  assert isinstance(found, Fault) and "voc/2007 validation[6]" in found.key
  with pytest.raises(ValueError, match="no image of '2007/validation' has an object, or none can be read"):
    open_source("voc", "2007/validation", str(tmp_path))
  info = tmp_path / "voc" / "2012" / "5.0.0" / "features.json"
  features = json.loads(info.read_text())
  del features["featuresDict"]["features"]["objects"]
  info.write_text(json.dumps(features))
  with pytest.raises(ValueError, match="is not PASCAL VOC as TFDS has it"):
    open_source("voc", "2012/train", str(tmp_path))


XML = """<annotation><size><width>50</width><height>40</height></size><object><name>{name}</name><pose>{pose}</pose>
<truncated>1</truncated><difficult>1</difficult><bndbox><xmin>{xmin}</xmin><ymin>2</ymin><xmax>50</xmax><ymax>40</ymax>
</bndbox></object></annotation>"""


def test_annotation_files(tmp_path):
  path = tmp_path / "1.xml"
  path.write_text(XML.format(name="Dog", pose="Left", xmin=5))
  found, = read_objects(str(path))
  assert found == {"label": "dog", "pose": "left", "bbox": tfds.features.BBox(0.05, 0.1, 1.0, 1.0),
                   "is_truncated": True, "is_difficult": True}
  path.write_text(XML.format(name="dog", pose="", xmin=50))  # a column of pixels: the corners are those of pixels
  column, = read_objects(str(path))
  assert _pixels(np.array([column["bbox"]]), 40, 50).tolist() == [[49, 1, 50, 40]]
  # Each entity is ten of the one before: a kilobyte that stands for 100 MB.
  entities = "<!DOCTYPE a [<!ENTITY e0 'ten bytes.'>" + "".join(
      f"<!ENTITY e{i} '{f'&e{i - 1};' * 10}'>" for i in range(1, 8)) + "]><annotation>&e7;</annotation>"
  for content, message in (
      ("<annotation>", "no element found"), (entities, "amplification"), ("<annotation></annotation>", "cannot be read"),
      (XML.format(name="dgo", pose="", xmin=5), "class 'dgo'. Did you mean 'dog'"),
      (XML.format(name="dog", pose="", xmin="five"), "five"), (XML.format(name="dog", pose="", xmin=51), "is empty"),
      (XML.format(name="dog", pose="", xmin="nan"), "is empty or outside")):
    path.write_text(content)
    with pytest.raises(ValueError, match=f"1.xml cannot be read: .*{message}" if message[0] != "c" else message):
      read_objects(str(path))


def test_what_cannot_be_used_is_left_out_and_said(voc, tmp_path, capsys):
  shutil.copytree(voc / "VOCdevkit", tmp_path / "VOCdevkit")
  folder = tmp_path / "VOCdevkit" / "VOC2012"
  (folder / "JPEGImages" / "2012_train_003.jpg").write_bytes(b"none")
  (folder / "Annotations" / "2012_train_004.xml").unlink()
  assert prepare.main(["voc/2012", f"--data-dir={tmp_path}", f"--manual-dir={tmp_path}"]) == 0
  said = capsys.readouterr().out
  assert "train has 22 examples, published are 5,717" in said and "Left out: 2." in said
  assert "train 2012_train_003: 2012_train_003.jpg: not a readable image" in said
  assert len(open_source("voc", "2012/train", str(tmp_path))) == 22
