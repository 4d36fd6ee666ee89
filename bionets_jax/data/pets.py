"""Oxford-IIIT Pet from its published archives, with the splits of kEffNet's authors.

Source: O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar, "Cats and Dogs", CVPR 2012,
https://www.robots.ox.ac.uk/~vgg/data/pets. Licence: CC BY-SA 4.0.
"""

import os

from bionets_jax.data import naming
from bionets_jax.data.building import FilesBuilder, problems, split_by_class, tfds
from bionets_jax.data.class_names import PETS

_SEED = 7


class OxfordIiitPetFiles(FilesBuilder):
  """The set as kEffNet's notebook 'kEffNet-B0-PetDataset' splits it.

  The folder holds images/NAME.jpg and annotations/{trainval,test}.txt with lines
  'NAME CLASS SPECIES BREED', classes from 1. The notebook skips the first line of both lists as if
  it were a header, which loses one image each; the paper's numbers are of what remains, so it is
  the same here. Splits:

    train, validation              3,309 and 370: trainval.txt less its first line; of each class
                                   the first int(0.9 n) in a shuffled order and the rest
    test                           3,668: test.txt less its first line
    dropped_trainval, dropped_test the two skipped images

  so that 'train+validation+dropped_trainval' and 'test+dropped_test' are the official 3,680 and
  3,669. Which images are for validation differs from the paper, whose shuffle followed the order
  of a file system (`split_by_class`). The bytes of the files are stored unchanged; some of them are
  PNG or GIF.
  """

  VERSION = tfds.core.Version("1.0.0")
  CLASS_NAMES = PETS
  PUBLISHED_SIZES = {
      "train": 3309, "validation": 370, "test": 3668, "dropped_trainval": 1, "dropped_test": 1,
  }

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=self.CLASS_NAMES),
        "file_name": tfds.features.Text(),
    }), supervised_keys=("image", "label"), homepage="https://www.robots.ox.ac.uk/~vgg/data/pets")

  def _split_generators(self, dl_manager):
    root = os.fspath(dl_manager.manual_dir)
    trainval, test = (
        read_list(os.path.join(root, "annotations", f"{name}.txt")) for name in ("trainval", "test")
    )
    twice = {name for name, _ in trainval} & {name for name, _ in test}
    if twice:
      raise ValueError(
          f"{root}/annotations: {len(twice)} images are in trainval.txt and in test.txt, e.g."
          f" {sorted(twice)[0]}."
      )
    splits = {"dropped_trainval": trainval[:1], "dropped_test": test[:1], "test": test[1:]}
    readable = sorted(self._readable(root, trainval[1:]))
    parts = split_by_class([label for _, label in readable], (0.9, 0.1), _SEED)
    for split in ("dropped_trainval", "dropped_test", "test"):
      splits[split] = self._readable(root, splits[split])
    for part, split in enumerate(("train", "validation")):
      splits[split] = [one for one, its in zip(readable, parts, strict=True) if its == part]
    return {split: self._generate_examples(root, splits[split]) for split in self.PUBLISHED_SIZES}

  def _generate_examples(self, root, listed):
    for name, label in listed:
      with open(_path(root, name), "rb") as file:
        yield name, {"image": file.read(), "label": label, "file_name": f"{name}.jpg"}

  def _readable(self, root, listed):
    found = problems([_path(root, name) for name, _ in listed])
    self.left_out.extend(
        (f"images/{name}.jpg", problem)
        for (name, _), (problem, _) in zip(listed, found, strict=True) if problem
    )
    return [one for one, (problem, _) in zip(listed, found, strict=True) if not problem]


def _path(root, name):
  return os.path.join(root, "images", f"{name}.jpg")


def read_list(path):
  """Reads trainval.txt or test.txt.

  Returns:
    A list of (name, label), labels from 0, in the file's order.

  Raises:
    ValueError: a line that does not fit, or a name that is there twice; says where.
  """
  listed = {}
  with open(path, encoding="utf-8") as file:
    for number, line in enumerate(file, 1):
      fields = line.split()
      if not fields or fields[0].startswith("#"):
        continue
      where = f"{path}, line {number}: {line.strip()!r}"
      if len(fields) != 4 or not fields[1].isdigit() or not 1 <= int(fields[1]) <= len(PETS):
        raise ValueError(f"{where} is not 'NAME CLASS SPECIES BREED' with a class of 1 to 37.")
      name, label = fields[0], int(fields[1]) - 1
      breed = name.rpartition("_")[0]
      if breed.lower() != PETS[label].lower():
        raise ValueError(
            f"{where}: class {fields[1]} is {PETS[label]}.{naming.nearest(breed, PETS)}"
        )
      if name in listed:
        raise ValueError(f"{where}: {name} is in the list twice.")
      listed[name] = label
  if len(listed) < 2:
    raise ValueError(f"{path} lists {len(listed)} images.")
  return list(listed.items())
