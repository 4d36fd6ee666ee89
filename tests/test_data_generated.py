"""Made-up sets in the form of the real ones."""

import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from bionets_jax.data import class_names, generated, open_source


@pytest.mark.parametrize("name, split, length, classes, shape", [
    ("cifar10", "train", 64, 10, (32, 32, 3)),
    ("cifar10", "train[:90%]", 58, 10, (32, 32, 3)),
    ("cifar100", "train[90%:]+test", 38, 100, (32, 32, 3)),
    ("imagenet2012", "validation", 32, 1000, (None, None, 3)),
    ("imagenet_v2/matched-frequency", "test", 32, 1000, (None, None, 3)),
    ("oxford_iiit_pet", "test[-10:]", 10, 37, (None, None, 3)),
    ("oxford_iiit_pet_files", "validation", 32, 37, (None, None, 3)),
    ("cropped_plantdoc", "train", 64, 29, (None, None, 3)),
])
def test_form(name, split, length, classes, shape):
  source = open_source(f"generated/{name}", split)
  assert (len(source), source.num_classes, source.image_shape) == (length, classes, shape)
  assert len(set(source.class_names)) == classes
  examples = list(source.read_many(range(length)))
  for image, label, _ in examples:
    assert image.dtype == np.uint8 and image.shape[2] == 3
    assert shape[0] in (None, image.shape[0])
    assert 0 <= label < classes
  assert len({image.tobytes() for image, _, _ in examples}) == length
  if None in shape:
    assert len({image.shape for image, _, _ in examples}) > 1
    assert {n for image, _, _ in examples for n in image.shape[:2]} <= set(range(40, 91))


def test_splits_are_tfds_s():
  # Of 64 examples, percents rounded to the nearest example, as TFDS documents.
  for split, length in (("train[:90%]", 58), ("train[10%:33%]", 15), ("train[5:]", 59),
                        ("train[-7:]", 7), ("train[25%:]+test[:3]", 51)):
    assert len(open_source("generated/cifar10", split)) == length
  keys = [
      [key for _, _, key in source.read_many(range(len(source)))]
      for source in (open_source("generated/cifar10", s) for s in ("train[:40]", "train[40:]"))
  ]
  whole = open_source("generated/cifar10", "train")
  assert keys[0] + keys[1] == [whole.read(i)[2] for i in range(64)]


def test_is_deterministic_and_survives_pickling():
  source = open_source("generated/oxford_iiit_pet", "test")
  copy = pickle.loads(pickle.dumps(source))
  again = open_source("generated/oxford_iiit_pet", "test+train")
  for i in (0, 31):
    for other in (copy, again):
      np.testing.assert_array_equal(source.read(i)[0], other.read(i)[0])
  # Other sets and splits hold other images.
  cifar = [open_source(f"generated/{n}", s).read(0)[0] for n, s in (
      ("cifar10", "train"), ("cifar10", "test"), ("cifar100", "train"))]
  assert len({image.tobytes() for image in cifar}) == 3


def test_classes_can_be_told_apart():
  def arrays(split):
    source = open_source("generated/cifar10", split)
    images, labels, _ = zip(*source.read_many(range(len(source))), strict=True)
    spectra = np.abs(np.fft.rfft2(np.stack(images) / 255, axes=(1, 2)))
    return spectra.reshape(len(images), -1), np.array(labels)

  x, y = arrays("train")
  x_test, y_test = arrays("test")
  classes = np.unique(y)
  assert len(classes) == 8
  centres = np.stack([x[y == label].mean(0) for label in classes])
  nearest = np.argmin(((x_test[:, None] - centres) ** 2).sum(-1), -1)
  np.testing.assert_array_equal(classes[nearest], y_test)


def test_errors():
  with pytest.raises(ValueError, match="'cifar'. Did you mean 'cifar10' or 'cifar100'"):
    open_source("generated/cifar", "train")
  with pytest.raises(ValueError, match="'vlidation'. Did you mean 'validation'.*train.:90%"):
    open_source("generated/imagenet2012", "vlidation")
  for split in ("", "train[9x:]", "train[:100]", "train[a"):
    with pytest.raises(ValueError, match="Unknown split of generated/cifar10.*Known: test, train"):
      open_source("generated/cifar10", split)
  with pytest.raises(ValueError, match="is empty"):
    open_source("generated/cifar10", "train[10:10]")


def test_class_names_are_the_real_ones(tmp_path):
  pets = tfds.builder("oxford_iiit_pet", data_dir=tmp_path).info.features["label"].names
  assert list(class_names.PETS) == pets
  # The labels of CIFAR are in alphabetical order, like Cropped-PlantDoc's.
  for names, count in ((class_names.CIFAR10, 10), (class_names.CIFAR100, 100),
                       (class_names.PLANTDOC, 29)):
    assert len(names) == count and list(names) == sorted(names)
  assert set(generated.SETS) >= {"cifar10", "cifar100", "imagenet2012"}
