"""The data sets of the papers: what they are, where their files come from, how to prepare them.

Only text, so that a message about a missing set costs no import.
"""

import dataclasses
import textwrap

from bionets_jax.data import naming


@dataclasses.dataclass(frozen=True)
class Entry:
  """One set.

  Attributes:
    name: what `data.name` and `prepare` take.
    sizes: its splits and their number of examples.
    licence: the terms, and the source.
    disk: what the download and the prepared set take.
    files: what must be in --manual-dir, relative paths; () if nothing is needed there.
    steps: shell lines that get these files.
    folder: the folder that `steps` makes, the value of --manual-dir.
    builder: 'module:class' of a builder of ours, which needs no TensorFlow; '' for TFDS's.
  """

  name: str
  sizes: str
  licence: str
  disk: str
  files: tuple = ()
  steps: tuple = ()
  folder: str = ""
  builder: str = ""


_PETS = "https://thor.robots.ox.ac.uk/~vgg/data/pets"
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"

SETS = {entry.name: entry for entry in (
    Entry(
        "cifar10", "train 50,000, test 10,000; 10 classes, 32 x 32",
        "no licence stated; https://www.cs.toronto.edu/~kriz/cifar.html",
        "170 MB to download, 140 MB prepared", builder="bionets_jax.data.cifar:Cifar10",
    ),
    Entry(
        "cifar100", "train 50,000, test 10,000; 100 classes, 32 x 32",
        "no licence stated; https://www.cs.toronto.edu/~kriz/cifar.html",
        "169 MB to download, 140 MB prepared", builder="bionets_jax.data.cifar:Cifar100",
    ),
    Entry(
        "imagenet2012", "train 1,281,167, validation 50,000; 1,000 classes",
        "non-commercial research, after registration; https://image-net.org",
        "144 GB to download, as much again prepared",
        files=("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
        steps=("# Register at https://image-net.org/download-images and put the two tars of"
               " ILSVRC2012 (tasks 1 and 2) into one folder.",),
        folder="FOLDER_OF_THE_TARS",
    ),
    Entry(
        "imagenet_v2/matched-frequency", "test 10,000; the classes of imagenet2012",
        "MIT; https://github.com/modestyachts/ImageNetV2", "1.3 GB to download, as much prepared",
    ),
    Entry(
        "oxford_iiit_pet_files",
        "train 3,309, validation 370, test 3,668 (as kEffNet), dropped_trainval 1, dropped_test 1;"
        " 37 classes",
        "CC BY-SA 4.0; https://www.robots.ox.ac.uk/~vgg/data/pets",
        "0.8 GB to download, as much prepared",
        files=("images", "annotations/trainval.txt", "annotations/test.txt"),
        steps=("mkdir -p oxford_iiit_pet && cd oxford_iiit_pet",
               f"curl -fLO {_PETS}/images.tar.gz && tar xf images.tar.gz",
               f"curl -fLO {_PETS}/annotations.tar.gz && tar xf annotations.tar.gz && cd .."),
        folder="oxford_iiit_pet", builder="bionets_jax.data.pets:OxfordIiitPetFiles",
    ),
    Entry(
        "cropped_plantdoc",
        "train 5,761, validation 1,333, test 1,789 (as kEffNet); 29 classes",
        "CC BY 4.0; https://github.com/pratikkayal/PlantDoc-Object-Detection-Dataset",
        "0.9 GB to download, less prepared",
        files=("train_labels.csv", "test_labels.csv", "TRAIN", "TEST"),
        # The copy that kEffNet's authors cloned.
        steps=("git clone https://github.com/joaopauloschuler/PlantDoc-Object-Detection-Dataset.git"
               " plantdoc",),
        folder="plantdoc", builder="bionets_jax.data.plantdoc:CroppedPlantdoc",
    ),
    Entry(
        "voc/2007",
        "train 2,501, validation 2,510, test 4,952; 20 classes, for detection, opened as 'voc'",
        f"photographs of Flickr, under its terms; {_VOC}/voc2007",
        "0.9 GB to download, as much prepared",
        files=tuple(f"VOCdevkit/VOC2007/ImageSets/Main/{split}.txt" for split in ("train", "val", "test")),
        steps=("mkdir -p voc && cd voc",
               f"curl -fLO {_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar && tar xf VOCtrainval_06-Nov-2007.tar",
               f"curl -fLO {_VOC}/voc2007/VOCtest_06-Nov-2007.tar && tar xf VOCtest_06-Nov-2007.tar && cd .."),
        folder="voc", builder="bionets_jax.data.voc_files:Voc",
    ),
    Entry(
        "voc/2012", "train 5,717, validation 5,823; 20 classes, for detection, opened as 'voc'",
        f"photographs of Flickr, under its terms; {_VOC}/voc2012",
        "2.0 GB to download, 1.3 GB prepared",
        files=tuple(f"VOCdevkit/VOC2012/ImageSets/Main/{split}.txt" for split in ("train", "val")),
        steps=("mkdir -p voc && cd voc",
               f"curl -fLO {_VOC}/voc2012/VOCtrainval_11-May-2012.tar && tar xf VOCtrainval_11-May-2012.tar && cd .."),
        folder="voc", builder="bionets_jax.data.voc_files:Voc",
    ),
)}


def find(name):
  """Returns the entry of 'name', 'name/config' or either with ':1.2.3'; None if not one of ours."""
  return SETS.get(name.partition(":")[0])


def command(name, data_dir="DIR", manual_dir=""):
  """Returns the command that prepares a set, of ours or of TFDS."""
  entry = find(name)
  manual_dir = manual_dir or (entry.folder if entry else "")
  manual = f" --manual-dir={manual_dir}" if manual_dir else ""
  return f"python -m bionets_jax.data.prepare {name} --data-dir={data_dir}{manual}"


def how_to(name, data_dir="DIR"):
  """Returns what to type to get a set, indented lines under a sentence each."""
  entry = find(name)
  lines = []
  if entry and entry.steps:
    lines += ["Its files come from elsewhere:", *(f"  {step}" for step in entry.steps)]
  lines.append(
      "To prepare it (once):" if entry and entry.builder else
      "To prepare it (once, with TensorFlow: pip install 'tensorflow-cpu>=2.20' tensorboard):"
  )
  lines.append(f"  {command(name, data_dir)}")
  return "\n".join(lines)


def nearest(name, there=()):
  """Returns ' Did you mean ...?' over `there`, the sets of this catalogue and those in the package."""
  return naming.nearest(name, {*there, *SETS, "digits", "folder", "generated/cifar10", "voc"})


def listing(data_dir="DIR"):
  """Returns the text of `prepare --list`."""
  parts = []
  for entry in SETS.values():
    facts = "\n".join([entry.sizes, entry.licence, entry.disk, how_to(entry.name, data_dir)])
    parts.append(f"{entry.name}\n{textwrap.indent(facts, '  ')}")
  return "\n\n".join(parts)
