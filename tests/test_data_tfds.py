"""TFDS sets without TensorFlow: reading, preparing, converting from TFRecord."""

import json
import os
import pathlib
import pickle
import re
import shutil
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from bionets_jax.data import convert as conversion
from bionets_jax.data import decode_rgb, open_source, prepare, tfrecord
from bionets_jax.data.stream import read_examples

SIZES = {"train": 7, "test": 3}


def pixels(split, i):
  return np.random.RandomState([len(split), i]).randint(0, 256, (5, 6, 3)).astype(np.uint8)


class BionetsTiny(tfds.core.GeneratorBasedBuilder):
  """PNGs of noise, in three classes."""

  VERSION = tfds.core.Version("1.2.0")

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(5, 6, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["ant", "bee", "cat"]),
        "file_name": tfds.features.Text(),
    }))

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in SIZES}

  def _generate_examples(self, split):
    for i in range(SIZES[split]):
      yield i, {
          "image": Image.fromarray(pixels(split, i)), "label": i % 3, "file_name": f"{split}{i}",
      }


class BionetsText(tfds.core.GeneratorBasedBuilder):
  """No images."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()})
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    yield 0, {"text": "hello"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("tfds")
  prepare.prepare("bionets_tiny", str(path))
  prepare.prepare("bionets_text", str(path))
  return path


def frame(record):
  """A TFRecord frame, written from its definition."""
  length = struct.pack("<Q", len(record))
  return (
      length + struct.pack("<I", tfrecord.masked_crc32c(length))
      + record + struct.pack("<I", tfrecord.masked_crc32c(record))
  )


@pytest.fixture
def tfrecord_dir(data_dir, tmp_path):
  """The tiny set as TFDS stores it by default: TFRecord files, two shards of train."""
  directory = tmp_path / "bionets_tiny" / "1.2.0"
  directory.mkdir(parents=True)
  built = data_dir / "bionets_tiny" / "1.2.0"
  for name in ("features.json", "label.labels.txt"):
    (directory / name).write_text((built / name).read_text())
  info = json.loads((built / "dataset_info.json").read_text())
  info["fileFormat"] = "tfrecord"
  builder = tfds.builder_from_directory(built)
  for split in info["splits"]:
    records = list(builder.as_data_source(
        split["name"], deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    ))
    cuts = [0, 4, len(records)] if split["name"] == "train" else [0, len(records)]
    split["shardLengths"] = [str(b - a) for a, b in zip(cuts, cuts[1:], strict=False)]
    n = len(cuts) - 1
    for k in range(n):
      path = directory / f"bionets_tiny-{split['name']}.tfrecord-{k:05d}-of-{n:05d}"
      path.write_bytes(b"".join(map(frame, records[cuts[k]:cuts[k + 1]])))
  (directory / "dataset_info.json").write_text(json.dumps(info))
  return directory


def file_name(source, i):
  return source.read(i)[2].split()[-1]


def test_reads_images_labels_and_metadata(data_dir):
  source = open_source("bionets_tiny", "train", str(data_dir))
  assert len(source) == 7
  assert source.class_names == ("ant", "bee", "cat")
  assert source.image_shape == (5, 6, 3)
  seen = set()
  for i in range(7):
    image, label, key = source.read(i)
    name = key.split()[-1]
    number = int(name.removeprefix("train"))
    np.testing.assert_array_equal(decode_rgb(image), pixels("train", number))
    assert label == number % 3
    assert key.startswith(f"bionets_tiny train[{i}] ")
    seen.add(number)
  assert seen == set(range(7))


def test_bulk_reads_slices_and_pickling_agree(data_dir):
  source = open_source("bionets_tiny", "train", str(data_dir))
  one_by_one = [source.read(i) for i in (5, 0, 3)]
  assert list(source.read_many(np.array([5, 0, 3]))) == one_by_one
  source.image_shape = (4, 4, 3)  # images of one size are read in bulk
  assert source.read_many(np.array([5, 0, 3])) == one_by_one
  copy = pickle.loads(pickle.dumps(source))
  assert copy.read(2) == source.read(2)
  tail = open_source("bionets_tiny", "train[5:]", str(data_dir))
  assert len(tail) == 2
  assert [file_name(tail, i) for i in range(2)] == [file_name(source, i) for i in (5, 6)]


def test_data_dir_from_the_environment(data_dir, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
  assert len(open_source("bionets_tiny:1.2.0", "test")) == 3


def test_set_not_there(data_dir, tmp_path):
  with pytest.raises(FileNotFoundError) as info:
    open_source("bionets_tiney", "train", str(data_dir))
  message = str(info.value)
  assert str(data_dir) in message
  assert "Did you mean 'bionets_tiny'" in message and "bionets_text" in message
  assert f"python -m bionets_jax.data.prepare bionets_tiney --data-dir={data_dir}" in message
  with pytest.raises(FileNotFoundError, match="has the versions 1.2.0"):
    open_source("bionets_tiny:9.9.9", "train", str(data_dir))
  with pytest.raises(FileNotFoundError, match="not prepared"):
    open_source("cifar10", "train", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("split", ["validation", "train[:9x%]", ""])
def test_unknown_split(data_dir, split):
  with pytest.raises(ValueError, match="Unknown split of bionets_tiny.*Known: test, train"):
    open_source("bionets_tiny", split, str(data_dir))


def test_not_image_classification(data_dir):
  with pytest.raises(ValueError, match=r"not an image-classification set.* has text \(Text\)"):
    open_source("bionets_text", "train", str(data_dir))


@pytest.fixture
def own_copy(data_dir, tmp_path):
  """The directory of the set, to be damaged."""
  shutil.copytree(data_dir / "bionets_tiny", tmp_path / "bionets_tiny")
  return tmp_path / "bionets_tiny" / "1.2.0"


@pytest.mark.parametrize("damage, reason", [
    (lambda data: data[:len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1:],
     "cannot be read: Corrupted"),
    (lambda data: data[:len(data) // 2], "holds no image with a label|cannot be read"),
    (lambda data: b"", "cannot be read: ArrayRecord file should be at least"),
    (lambda data: None, "cannot be read: open.. failed: No such file"),
])
def test_damaged_files_are_bad_records(own_copy, damage, reason):
  path, = own_copy.glob("*-test.array_record-*")
  damaged = damage(path.read_bytes())
  path.unlink()
  if damaged is not None:
    path.write_bytes(damaged)
  source = open_source("bionets_tiny", "test", str(own_copy.parent.parent))
  found = list(read_examples(source, range(3), (), (5, 6, 3), lambda index: None))
  assert [fault.index for fault in found] == [0, 1, 2]
  for fault in found:
    assert re.search(reason, fault.reason) and f"bionets_tiny test[{fault.index}]" in fault.key


def test_one_record_that_is_none_of_many(data_dir):
  source = open_source("bionets_tiny", "train", str(data_dir))
  stored = [int(file_name(source, i).removeprefix("train")) for i in range(7)]
  records = list(source._records.many(list(range(7))))
  records[2], records[5] = b"\xff" * 20, b""

  class Records(list):

    def __getitems__(self, indices):
      return [self[i] for i in indices]

  source._records._data = Records(records)
  found = list(read_examples(source, range(7), (), (5, 6, 3), lambda index: None))
  for i, one in enumerate(found):
    if i in (2, 5):
      assert one.index == i and f"the record of bionets_tiny train[{i}] is damaged" in one.reason
    else:
      np.testing.assert_array_equal(one[0], pixels("train", stored[i]))


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [b"", b"null", b'{"splits": 3}', b"\xff\xfe"])
def test_damaged_metadata_are_named(own_copy, name, content):
  (own_copy / name).write_bytes(content)
  with pytest.raises(ValueError, match="bionets_tiny/1.2.0: .*is damaged"):
    open_source("bionets_tiny", "train", str(own_copy.parent.parent))


def test_conversion_stays_in_its_directories(tfrecord_dir):
  path = tfrecord_dir / "dataset_info.json"
  text = path.read_text().replace("{DATASET}", "../../../{DATASET}")
  assert "../../../" in text
  path.write_text(text)
  with pytest.raises(conversion.PrepareError, match="names a file outside of"):
    conversion.convert(tfrecord_dir)


def test_tfrecord_sets_are_converted_without_tensorflow(data_dir, tfrecord_dir, capsys):
  root = str(tfrecord_dir.parent.parent)
  with pytest.raises(ValueError, match=f"prepare --convert {tfrecord_dir}"):
    open_source("bionets_tiny", "train", root)
  assert prepare.main(["--convert", str(tfrecord_dir)]) == 0
  assert "10/10 examples" in capsys.readouterr().out
  for split in SIZES:
    converted = open_source("bionets_tiny", split, root)
    built = open_source("bionets_tiny", split, str(data_dir))
    assert [converted.read(i) for i in range(len(converted))] == [
        built.read(i) for i in range(len(built))
    ]
  # The TFRecord files stay until the user deletes them, and nothing temporary is left.
  names = os.listdir(tfrecord_dir)
  assert sum(".tfrecord-" in name for name in names) == 3
  assert sum(".array_record-" in name for name in names) == 3
  assert not [name for name in names if name.startswith(".")]
  assert prepare.main(["--convert", str(tfrecord_dir)]) == 1
  assert "nothing to convert" in capsys.readouterr().err


def test_converting_to_another_place(tfrecord_dir, tmp_path):
  before = sorted(os.listdir(tfrecord_dir))
  out = tmp_path / "out" / "bionets_tiny" / "1.2.0"
  assert prepare.convert(tfrecord_dir, str(out)) == str(out)
  assert sorted(os.listdir(tfrecord_dir)) == before
  assert not list(out.glob("*tfrecord*"))
  source = open_source("bionets_tiny", "train", str(tmp_path / "out"))
  assert len(list(source.read_many(range(7)))) == 7
  assert source.class_names == ("ant", "bee", "cat")


def test_an_interrupted_conversion_goes_on(tfrecord_dir, monkeypatch):
  converted = []
  convert_file = conversion._convert_file

  def fail_on_the_second(old, *args):
    if converted:
      raise KeyboardInterrupt
    converted.append(old)
    convert_file(old, *args)

  monkeypatch.setattr(conversion, "_convert_file", fail_on_the_second)
  before = (tfrecord_dir / "dataset_info.json").read_text()
  with pytest.raises(KeyboardInterrupt):
    prepare.convert(tfrecord_dir)
  assert (tfrecord_dir / "dataset_info.json").read_text() == before
  again = []
  monkeypatch.setattr(
      conversion, "_convert_file", lambda old, *args: (again.append(old), convert_file(old, *args))
  )
  prepare.convert(tfrecord_dir)
  assert len(again) == 2 and not set(again) & set(converted)


@pytest.mark.parametrize("damage, message", [
    (lambda data: data[:-10], r"truncated; the record at offset \d+ has \d+ bytes"),
    (lambda data: data + b"\1\2\3", r"truncated in the record header at offset \d+"),
    (lambda data: data[:3] + bytes([data[3] ^ 1]) + data[4:], "header at offset 0 .its checksum"),
    (lambda data: b"", "holds 0 examples, dataset_info.json says 3"),
])
def test_damaged_tfrecords_are_found(tfrecord_dir, damage, message, capsys):
  path, = tfrecord_dir.glob("*-test.tfrecord-*")
  path.write_bytes(damage(path.read_bytes()))
  assert prepare.main(["--convert", str(tfrecord_dir)]) == 1
  error = capsys.readouterr().err
  assert path.name in error
  with pytest.raises(ValueError, match=message):
    prepare.convert(tfrecord_dir)
  assert json.loads((tfrecord_dir / "dataset_info.json").read_text())["fileFormat"] == "tfrecord"


def test_missing_files(tfrecord_dir, tmp_path):
  next(tfrecord_dir.glob("*-train.tfrecord-00001*")).unlink()
  with pytest.raises(prepare.PrepareError, match="1 of 3 files are missing"):
    prepare.convert(tfrecord_dir)
  with pytest.raises(prepare.PrepareError, match="no dataset_info.json"):
    prepare.convert(tmp_path)


def test_crc32c_of_the_standard():
  # RFC 3720, B.4: 32 bytes of zeros, and the check value of "123456789".
  def unmask(value):
    value = (value - 0xA282EAD8) & 0xFFFFFFFF
    return ((value >> 17) | (value << 15)) & 0xFFFFFFFF

  assert unmask(tfrecord.masked_crc32c(bytes(32))) == 0x8A9136AA
  assert unmask(tfrecord.masked_crc32c(b"123456789")) == 0xE3069283


def test_prepare_says_what_is_missing(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
  assert prepare.main(["imagenet2012", f"--data-dir={tmp_path}"]) == 1
  assert "pip install 'tensorflow-cpu>=2.20' tensorboard" in capsys.readouterr().err
  assert prepare.main(["cifar_10", f"--data-dir={tmp_path}"]) == 1
  assert "Did you mean 'cifar10'" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())
  assert prepare.main(["cifar10:9.9.9", f"--data-dir={tmp_path}"]) == 1
  assert "only: 3.0.2" in capsys.readouterr().err
  assert prepare.main(["digits"]) == 1
  assert prepare.main(["generated/cifar10"]) == 1
  with pytest.raises(SystemExit):
    prepare.main([])


def test_prepare_says_what_it_cannot_use_or_write(tmp_path, capsys):
  (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"junk")
  assert prepare.main(["cifar10", f"--data-dir={tmp_path}/sets", f"--manual-dir={tmp_path}"]) == 1
  assert "Error: cifar10: " in (said := capsys.readouterr().err) and "wrong checksum" in said
  assert prepare.main(["cifar10", f"--data-dir={tmp_path}/cifar-10-binary.tar.gz", f"--manual-dir={tmp_path}"]) == 1
  assert "Error: " in capsys.readouterr().err


@pytest.fixture
def real_data():
  path = os.environ.get("BIONETS_TEST_DATA")
  if not path:
    pytest.skip("BIONETS_TEST_DATA is not set")
  return pathlib.Path(path)


@pytest.mark.parametrize("name, split, length, classes, shape", [
    ("cifar10", "train", 50_000, 10, (32, 32, 3)),
    ("cifar10", "test[:10%]", 1000, 10, (32, 32, 3)),
    ("imagenet2012", "validation", None, 1000, (None, None, 3)),
])
def test_real_sets(real_data, name, split, length, classes, shape):
  source = open_source(name, split, str(real_data))
  assert length is None or len(source) == length
  assert source.num_classes == classes
  assert source.image_shape == shape
  image, label, _ = source.read(len(source) - 1)
  assert decode_rgb(image).ndim == 3
  assert 0 <= label < classes
