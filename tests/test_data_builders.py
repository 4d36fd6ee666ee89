"""The builders of this package, on small folders in the layout of the real sets."""

import io
import os
import pathlib
import random
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from bionets_jax.data import catalog, cifar, decode_rgb, open_source, plantdoc, prepare
from bionets_jax.data.building import split_by_class
from bionets_jax.data.class_names import PETS, PLANTDOC

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


def picture(seed, height=30, width=40):
  """A smooth colour image, so that JPEG changes it little."""
  y, x = np.mgrid[:height, :width]
  values = [128 + 100 * np.sin((x * a + y * b) / 25 + seed) for a, b in ((1, 0), (0, 1), (1, 1))]
  return Image.fromarray(np.stack(values, -1).astype(np.uint8))


def encoded(image, kind="JPEG", **options):
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def odd_images(seed):
  """What real folders hold beside RGB JPEGs."""
  image = picture(seed)
  exif = Image.Exif()
  exif[0x0112] = 6
  deep = (np.asarray(image.convert("L")).astype(np.uint16) << 8) + 17
  return {
      "cmyk": encoded(image.convert("CMYK")),
      "grey": encoded(image.convert("L")),
      "deep": encoded(Image.fromarray(deep), "PNG"),
      "palette": encoded(image.convert("P"), "PNG"),
      "gif": encoded(image.convert("P"), "GIF"),
      "turned": encoded(image, exif=exif, quality=95),
  }


def broken_images(seed):
  whole = encoded(picture(seed))
  return {"empty": b"", "cut": whole[:150], "text": b"<html>404</html>"}


def write(folder, files, order=0):
  """Writes the files, created in an order of their own."""
  names = list(files)
  random.Random(order).shuffle(names)
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = files[name]
    path.write_bytes(data.encode() if isinstance(data, str) else data)
  return folder


def plantdoc_files():
  """Three classes, 2 + 19 usable boxes a class in training and test, and whatever goes wrong."""
  files, rows = {}, {"train": [], "test": []}
  for label, name in enumerate(PLANTDOC[:3]):
    for i in range(4):
      files[f"TRAIN/{label}-{i}.jpg"] = encoded(picture(label + i), quality=95)
      rows["train"] += [f"{label}-{i}.jpg,40,30,{name},{j},1,{20 + j},25" for j in range(4)]
    # The same name in both folders, of another photo; the class's name written otherwise.
    files[f"TEST/{label}-0.jpg"] = encoded(picture(9 + label), quality=95)
    rows["test"].append(f"{label}-0.jpg,40,30, {name.upper().replace(' ', '  ')} ,35,28,5,2")
  for name, data in odd_images(3).items():
    files[f"TRAIN/{name}.jpg"] = data
    rows["train"].append(f"{name}.jpg,40,30,{PLANTDOC[3]},2,3,39,29")
  for name, data in broken_images(4).items():
    files[f"TRAIN/{name}.jpg"] = data
    rows["train"].append(f"{name}.jpg,40,30,{PLANTDOC[3]},2,3,39,29")
  files["TEST/a,b.jpg"] = encoded(picture(1))
  rows["test"] += [
      f"a,b.jpg,40,30,{PLANTDOC[0]},1,1,20,20",
      f"nowhere.jpg,40,30,{PLANTDOC[0]},1,1,20,20",
      f"0-0.jpg,40,30,{PLANTDOC[0]},7,1,7,20",
      f"0-0.jpg,40,30,{PLANTDOC[0]},45,1,60,20",
  ]
  for subset, lines in rows.items():
    files[f"{subset}_labels.csv"] = HEADER + "\n".join(lines) + "\n"
  return files


def pet_files():
  files, lists = {}, {"trainval": [], "test": []}
  for label, breed in list(enumerate(PETS))[:3]:
    for i in range(13):
      subset = "trainval" if i < 11 else "test"
      files[f"images/{breed}_{i}.jpg"] = encoded(picture(label + i))
      lists[subset].append(f"{breed}_{i} {label + 1} 1 1")
  for name, data in odd_images(5).items():
    files[f"images/Bengal_{len(name)}{len(data)}.jpg"] = data
    lists["test"].append(f"Bengal_{len(name)}{len(data)} 6 1 2")
  for i, data in enumerate(broken_images(6).values()):
    files[f"images/pug_{i}.jpg"] = data
    lists["trainval"].append(f"pug_{i} 26 2 20")
  lists["test"].append("pug_7 26 2 20")
  files["images/Abyssinian_99.mat"] = "no image, as there are in the archive"
  files["images/Abyssinian_98.jpg"] = encoded(picture(0))  # in neither list
  for subset, lines in lists.items():
    files[f"annotations/{subset}.txt"] = "\n".join(lines) + "\n"
  files["annotations/list.txt"] = "#Image CLASS-ID SPECIES BREED ID\n"
  return files


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """Both sets, built: (data_dir, {name: (folder, report)})."""
  root = tmp_path_factory.mktemp("built")
  results = {}
  for name, files in (("cropped_plantdoc", plantdoc_files()), ("oxford_iiit_pet_files", pet_files())):
    folder = write(root / f"{name}_folder", files)
    results[name] = folder, prepare.prepare(name, str(root / "data"), str(folder))[1]
  return root / "data", results


def examples(name, split, data_dir):
  """Returns {file name: (image, label)} of a split, decoded."""
  source = open_source(name, split, str(data_dir))
  found = {}
  for image, label, key in source.read_many(range(len(source))):
    found[key.split(" ", 2)[2]] = decode_rgb(image), label
  assert len(found) == len(source)
  return found


def test_plantdoc_crops_and_split(built):
  data_dir, results = built
  folder, _ = results["cropped_plantdoc"]
  parts = {s: examples("cropped_plantdoc", s, data_dir) for s in ("train", "validation", "test")}
  # Classes of 17, 17, 17 and 6 crops; the authors' slices of each.
  assert [len(parts[s]) for s in parts] == [
      sum(n) for n in zip(*(
          (int(n * 0.65), int(n * (0.65 + 0.15)) - int(n * 0.65), n - int(n * (0.65 + 0.15)))
          for n in (17, 17, 17, 6)), strict=True)
  ]
  every = {key: value for part in parts.values() for key, value in part.items()}
  assert len(every) == sum(len(part) for part in parts.values())
  rows = {
      f"{subset}_{i}.jpg": (subset.upper(), line.split(","))
      for subset in ("train", "test")
      for i, line in enumerate((folder / f"{subset}_labels.csv").read_text().splitlines()[1:])
  }
  for key, (image, label) in every.items():
    subset, (photo, _, _, class_name, *box) = rows[key]
    box = list(map(int, box))
    box = (*map(min, box[:2], box[2:]), *map(max, box[:2], box[2:]))
    with Image.open(folder / subset / photo) as opened:
      if photo == "deep.jpg":
        whole = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8)).convert("RGB")
      else:
        whole = ImageOps.exif_transpose(opened).convert("RGB")
    box = (*box[:2], min(box[2], whole.width), min(box[3], whole.height))
    expected = np.asarray(whole.crop(box)).astype(int)
    assert image.shape == expected.shape
    tolerance = 14 if photo in ("cmyk.jpg", "palette.jpg", "gif.jpg") else 6
    assert np.abs(image - expected).mean() < tolerance, photo
    assert PLANTDOC[label].lower() == " ".join(class_name.split()).lower()
  turned, = (image for key, (image, _) in every.items() if rows[key][1][0] == "turned.jpg")
  assert turned.shape == (26, 28, 3)  # of the turned photo of 40 x 30: as cv2 sees it


def test_plantdoc_reports_what_it_left_out(built):
  _, results = built
  text = "\n".join(results["cropped_plantdoc"][1])
  assert "Warning: train has 36 examples, published are 5,761." in text
  assert "Left out: 7." in text
  for part in ("TRAIN/empty.jpg: not a readable image (0 bytes): ",
               "TRAIN/cut.jpg: not a readable", "TRAIN/text.jpg: not a readable", "TEST/a: no such file",
               "test_4 TEST/nowhere.jpg: no such file", "test_5 TEST/0-0.jpg: the box has no area",
               "test_6 TEST/0-0.jpg: the box has no area"):
    assert part in text


def test_pets_splits_and_bytes(built):
  data_dir, results = built
  folder, report = results["oxford_iiit_pet_files"]
  splits = {
      s: open_source("oxford_iiit_pet_files", s, str(data_dir))
      for s in ("train", "validation", "test", "dropped_trainval", "dropped_test")
  }
  found = {}
  for split, source in splits.items():
    assert source.class_names == PETS and source.image_shape == (None, None, 3)
    found[split] = set()
    for data, label, key in source.read_many(range(len(source))):
      name = key.split(" ", 2)[2]
      assert data == (folder / "images" / name).read_bytes()
      assert decode_rgb(data).shape == (30, 40, 3)
      assert PETS[label] == name.rpartition("_")[0]
      found[split].add(name)
  # Abyssinian has 10 after the first line is dropped, two classes have 11, pug none that is whole.
  assert len(found["train"]) == int(10 * 0.9) + 2 * int(11 * 0.9)
  assert len(found["validation"]) == 1 + 2 * 2
  assert found["dropped_trainval"] == {"Abyssinian_0.jpg"}
  assert found["dropped_test"] == {"Abyssinian_11.jpg"}
  listed = [line.split()[0] for line in (folder / "annotations/test.txt").read_text().splitlines()]
  assert found["test"] == {f"{name}.jpg" for name in listed[1:] if not name.startswith("pug")}
  assert len(set.union(*found.values())) == sum(map(len, found.values()))
  assert len(open_source("oxford_iiit_pet_files", "test+dropped_test", str(data_dir))) == 12
  text = "\n".join(report)
  assert "Left out: 4." in text and "images/pug_7.jpg: no such file" in text
  assert "images/pug_0.jpg: not a readable image (0 bytes" in text


@pytest.mark.parametrize("name, files", [
    ("cropped_plantdoc", plantdoc_files), ("oxford_iiit_pet_files", pet_files),
])
def test_the_file_system_s_order_does_not_matter(built, name, files, tmp_path, monkeypatch):
  folder = write(tmp_path / "folder", files(), order=1)
  scandir, listdir, shuffle = os.scandir, os.listdir, random.Random(2).shuffle

  class Shuffled:
    def __init__(self, path="."):
      with scandir(path) as entries:
        self._entries = list(entries)
      shuffle(self._entries)

    def __iter__(self):
      return iter(self._entries)

    def __enter__(self):
      return self

    def __exit__(self, *args):
      pass

  def shuffled_listdir(path="."):
    names = listdir(path)
    shuffle(names)
    return names

  with monkeypatch.context() as patch:
    patch.setattr(os, "scandir", Shuffled)
    patch.setattr(os, "listdir", shuffled_listdir)
    directory = prepare.prepare(name, str(tmp_path / "data"), str(folder))[0]
  again = {p.name: p.read_bytes() for p in pathlib.Path(directory).iterdir()}
  before = pathlib.Path(str(directory).replace(str(tmp_path / "data"), str(built[0])))
  assert again == {p.name: p.read_bytes() for p in before.iterdir()}


def test_split_by_class_is_the_authors_rule():
  # 37 classes of trainval.txt that sum to the official 3,680, less the skipped line: the sizes
  # that the notebook prints.
  sizes = [99] + [100] * 31 + [96, 96, 96, 93, 99]
  assert sum(sizes) == 3679
  labels = np.repeat(np.arange(37), sizes)
  parts = split_by_class(labels, (0.9, 0.1), 7)
  assert np.bincount(parts).tolist() == [3309, 370]
  assert not np.array_equal(parts, split_by_class(labels, (0.9, 0.1), 8))
  for n in range(1, 60):
    parts = split_by_class([3] * n, (0.65, 0.15, 0.2), 7)
    a, b = int(n * 0.65), int(n * (0.65 + 0.15))
    order = np.random.RandomState([7, 3]).permutation(n)  # frozen by NumPy
    np.testing.assert_array_equal(parts[order], [0] * a + [1] * (b - a) + [2] * (n - b))


def test_what_a_wrong_folder_is_told(tmp_path, capsys):
  data = f"--data-dir={tmp_path / 'data'}"
  assert prepare.main(["cropped_plantdoc", data]) == 1
  error = capsys.readouterr().err
  assert "git clone https://github.com/joaopauloschuler/PlantDoc-Object-Detection-Dataset" in error
  assert f"prepare cropped_plantdoc {data} --manual-dir=plantdoc" in error
  assert prepare.main(["oxford_iiit_pet_files", data, f"--manual-dir={tmp_path}"]) == 1
  error = capsys.readouterr().err
  assert f"{tmp_path} has no images, no annotations/trainval.txt" in error
  assert "curl -fLO https://thor.robots.ox.ac.uk/~vgg/data/pets/images.tar.gz" in error
  assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("row, message", [
    ("0-0.jpg,40,30,Aple leaf,1,1,9,9", "train_1: Unknown class 'Aple leaf'. Did you mean 'Apple l"),
    ("0-0.jpg,40,30,Apple leaf,1,1,9", "train_1: '0-0.jpg,.*' does not fit"),
    ("0-0.jpg,40,30,Apple leaf,1,1,9,x", "train_1: '0-0.jpg,.*' does not fit"),
])
def test_plantdoc_rows_that_do_not_fit(tmp_path, row, message):
  write(tmp_path, {
      "TRAIN/0-0.jpg": encoded(picture(0)),
      "train_labels.csv": f"{HEADER}0-0.jpg,40,30,Apple leaf,1,1,9,9\n{row}\n",
  })
  with pytest.raises(ValueError, match=message):
    plantdoc.find_crops(str(tmp_path), "train")
  (tmp_path / "train_labels.csv").write_text("a,b\n")
  with pytest.raises(ValueError, match="begins with 'a,b'; expected 'filename"):
    plantdoc.find_crops(str(tmp_path), "train")


@pytest.mark.parametrize("lists, message", [
    ({"trainval": "pug_1 26 2"}, "trainval.txt, line 2: .* is not 'NAME CLASS SPECIES BREED'"),
    ({"trainval": "pug_1 38 2 1"}, "with a class of 1 to 37"),
    ({"trainval": "pug_1 25 2 1"}, "class 25 is pomeranian. Did you mean 'pug'"),
    ({"trainval": "boxer_1 9 2 1"}, "boxer_1 is in the list twice"),
    ({"test": "boxer_1 9 2 1"}, "1 images are in trainval.txt and in test.txt, e.g. boxer_1"),
])
def test_pet_lists_that_do_not_fit(tmp_path, lists, message):
  files = {"images/boxer_1.jpg": b"",
           "annotations/trainval.txt": "boxer_1 9 2 4\n", "annotations/test.txt": "pug_9 26 2 4\n"}
  for subset in ("trainval", "test"):
    files[f"annotations/{subset}.txt"] += lists.get(subset, f"beagle_{subset} 5 2 3") + "\n"
  write(tmp_path / "folder", files)
  with pytest.raises(ValueError, match=message):
    prepare.prepare("oxford_iiit_pet_files", str(tmp_path / "data"), str(tmp_path / "folder"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_turns_as_exif_says(orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encoded(picture(0), "PNG", exif=exif)
  expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  np.testing.assert_array_equal(plantdoc.upright(data), np.asarray(expected))


@pytest.mark.parametrize("name, classes", [("cifar10", 10), ("cifar100", 100)])
def test_cifar_without_tensorflow(name, classes, tmp_path, monkeypatch):
  builder_class = getattr(cifar, name.capitalize())
  rng = np.random.RandomState(0)
  info = builder_class._cifar_info.fget(builder_class)
  members, expected = {}, {}
  for split, names in (("train", info.train_files), ("test", info.test_files)):
    for member in names:
      fine, coarse = rng.randint(0, classes, 3), rng.randint(0, 20, 3)
      pixels = rng.randint(0, 256, (3, 3, 32, 32)).astype(np.uint8)
      labels = [coarse, fine] if name == "cifar100" else [fine]
      # The format of https://www.cs.toronto.edu/~kriz/cifar.html, "binary version".
      members[member] = np.concatenate(
          [np.stack(labels, 1).astype(np.uint8), pixels.reshape(3, -1)], 1).tobytes()
      for label, planes in zip(fine, pixels, strict=True):
        expected[f"{split}_{sum(k.startswith(split) for k in expected):05d}"] = label, planes
  words = "".join(f"word{i}\n" for i in range(classes)) + "\n"
  members |= {file: words if "coarse" not in file else "".join(f"c{i}\n" for i in range(20))
              for file in info.label_files}
  manual = tmp_path / "manual"
  manual.mkdir()
  with tarfile.open(manual / info.url.rpartition("/")[2], "w:gz") as tar:
    for member, data in members.items():
      data = data.encode() if isinstance(data, str) else data
      entry = tarfile.TarInfo(info.prefix + member)
      entry.size = len(data)
      tar.addfile(entry, io.BytesIO(data))
  with pytest.raises(Exception, match="checksum|Checksum"):
    prepare.prepare(name, str(tmp_path / "data"), str(manual))
  monkeypatch.setattr(tfds.download.DownloadManager, "_register_or_validate_checksums",
                      lambda *args, **kwargs: None)
  prepare.prepare(name, str(tmp_path / "data"), str(manual))
  found = {}
  for split in ("train", "test"):
    source = open_source(name, split, str(tmp_path / "data"))
    assert source.class_names == tuple(f"word{i}" for i in range(classes))
    assert source.image_shape == (32, 32, 3)
    for image, label, key in source.read_many(range(len(source))):
      found[key.split()[-1]] = label, decode_rgb(image)
  assert found.keys() == expected.keys()
  for key, (label, planes) in expected.items():
    assert found[key][0] == label
    np.testing.assert_array_equal(found[key][1], planes.transpose(1, 2, 0))
  assert prepare.prepare(name, str(tmp_path / "data"))[1] == [
      "It was there already; to build it again, delete it."
  ]


def test_imagenet_v2_is_read_with_the_classes_of_imagenet(tmp_path):
  stock = tfds.builder_cls("imagenet_v2")

  class ImagenetV2(stock, skip_registration=True):
    """TFDS's, but for where the images come from."""

    name = "imagenet_v2"
    pkg_dir_path = stock.pkg_dir_path

    def _split_generators(self, dl_manager):
      return {"test": self._generate_examples()}

    def _generate_examples(self):
      for i in (0, 999):
        yield str(i), {"image": encoded(picture(i)), "label": i, "file_name": f"{i}/a.jpeg"}

  ImagenetV2(
      config="matched-frequency", data_dir=tmp_path, file_format="array_record"
  ).download_and_prepare()
  source = open_source("imagenet_v2/matched-frequency", "test", str(tmp_path))
  found = {label: decode_rgb(image).shape for image, label, _ in source.read_many([0, 1])}
  assert found == {0: (30, 40, 3), 999: (30, 40, 3)}
  reference = tfds.builder("imagenet2012", data_dir=tmp_path).info.features["label"].names
  assert source.class_names == tuple(reference)


def test_the_pets_of_tfds_are_read_too(tmp_path):
  class OxfordIiitPet(tfds.builder_cls("oxford_iiit_pet"), skip_registration=True):
    """TFDS's, but for where the images come from."""

    name = "oxford_iiit_pet"
    pkg_dir_path = tfds.builder_cls("oxford_iiit_pet").pkg_dir_path

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      mask = encoded(picture(0).convert("L"), "PNG")
      box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
      yield "x", {"image": encoded(picture(2)), "label": 36, "species": 1, "file_name": "x.jpg",
                  "segmentation_mask": mask, "head_bbox": box}

  OxfordIiitPet(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  source = open_source("oxford_iiit_pet", "train", str(tmp_path))
  assert source.class_names == PETS
  image, label, key = source.read(0)
  assert (decode_rgb(image).shape, label) == ((30, 40, 3), 36) and key.endswith(" x.jpg")


@pytest.mark.parametrize("name", sorted(catalog.SETS))
def test_every_set_has_one_command(name, tmp_path, capsys):
  opened, year = name.split("/") if name.startswith("voc/") else (name, "")
  with pytest.raises(FileNotFoundError) as info:
    open_source(opened, f"{year}/train" if year else "train", str(tmp_path))
  message = str(info.value)
  command = catalog.command(name, tmp_path)
  assert message.endswith("  " + command) and f"'{name}' is not prepared in {tmp_path}" in message
  entry = catalog.SETS[name]
  assert ("--manual-dir" in command) == bool(entry.files)
  assert all(step in message for step in entry.steps)
  assert prepare.main(["--list", f"--data-dir={tmp_path}"]) == 0
  assert command in capsys.readouterr().out
