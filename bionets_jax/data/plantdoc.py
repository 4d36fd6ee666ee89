"""Cropped-PlantDoc from the photos and boxes of PlantDoc, as kEffNet's authors cut it.

Source: D. Singh, N. Jain, P. Jain, P. Kayal, S. Kumawat, N. Batra, "PlantDoc: A Dataset for Visual
Plant Disease Detection", CoDS-COMAD 2020, https://arxiv.org/abs/1911.10317. Licence: CC BY 4.0.
"""

import dataclasses
import io
import itertools
import os
import struct

import numpy as np
import simplejpeg
from PIL import Image

from bionets_jax.data import naming
from bionets_jax.data.building import FilesBuilder, problems, split_by_class, tfds
from bionets_jax.data.class_names import PLANTDOC
from bionets_jax.data.decode import decode_rgb

_SEED = 7
_HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax"
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}


@dataclasses.dataclass(frozen=True)
class Crop:
  """One box of one photo.

  Attributes:
    key: 'train_12': the annotation file and the row from 0, as the authors name it.
    photo: 'TRAIN/NAME.jpg', below the root.
    label: int.
    box: left, top, right, bottom in pixels; right and bottom are not in it.
  """

  key: str
  photo: str
  label: int
  box: tuple


class CroppedPlantdoc(FilesBuilder):
  """The set as kEffNet's notebook 'kEffNet-B0-CroppedPlantDoc' makes it.

  The folder is a clone of PlantDoc-Object-Detection-Dataset: TRAIN/*.jpg, TEST/*.jpg and
  {train,test}_labels.csv with one box a line. Every box is cut out and stored as JPEG of quality
  95; those of both files are pooled and split again, of each class the first int(0.65 n) for
  train, up to int(0.8 n) for validation and the rest for test, in a shuffled order.

  The authors got 8,432 crops out of 8,469 lines for training and 451 out of 452 for testing, hence
  5,761 / 1,333 / 1,789. Which crop is in which split differs from theirs, as their shuffle followed
  the order of a file system (`split_by_class`). Their rules are kept where they matter for what is
  in the set:

  - A photo is turned as its EXIF says before it is cut, as cv2.imread does. The boxes are in the
    coordinates of the photo as it is stored, so the crops of such photos are off.
  - Lines are cut at every comma. A photo with a comma in its name is thereby not found.
  - A line without a photo, or with a box without area inside it, is left out.

  Crops of one photo can be in different splits; the field `photo` tells.
  """

  VERSION = tfds.core.Version("1.0.0")
  CLASS_NAMES = PLANTDOC
  PUBLISHED_SIZES = {"train": 5761, "validation": 1333, "test": 1789}

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=self.CLASS_NAMES),
        "file_name": tfds.features.Text(),
        "photo": tfds.features.Text(),
    }), supervised_keys=("image", "label"), homepage="https://arxiv.org/abs/1911.10317")

  def _split_generators(self, dl_manager):
    root = os.fspath(dl_manager.manual_dir)
    crops = []
    for subset in ("train", "test"):
      found, left_out = find_crops(root, subset)
      crops.extend(found)
      self.left_out.extend(left_out)
    # The third is 1 - (0.65 + 0.15); what matters is where it begins.
    parts = split_by_class([crop.label for crop in crops], (0.65, 0.15, 0.2), _SEED)
    return {
        split: self._generate_examples(root, [c for c, its in zip(crops, parts, strict=True) if its == part])
        for part, split in enumerate(self.PUBLISHED_SIZES)
    }

  def _generate_examples(self, root, crops):
    for photo, its_crops in itertools.groupby(crops, lambda crop: crop.photo):
      with open(os.path.join(root, photo), "rb") as file:
        image = upright(file.read())
      for crop in its_crops:
        left, top, right, bottom = crop.box
        # As cv2.imwrite: quality 95, chroma at half the resolution.
        data = simplejpeg.encode_jpeg(
            np.ascontiguousarray(image[top:bottom, left:right]), quality=95, colorspace="RGB",
            colorsubsampling="420",
        )
        yield crop.key, {
            "image": data, "label": crop.label, "file_name": f"{crop.key}.jpg", "photo": photo,
        }


def find_crops(root, subset):
  """Reads one annotation file and looks at the photos.

  Args:
    root: the folder.
    subset: 'train' or 'test'.

  Returns:
    crops: list of `Crop` in the order of the file.
    left_out: list of (line, reason).

  Raises:
    ValueError: another header, or a line with a photo that does not fit; says where.
  """
  path = os.path.join(root, f"{subset}_labels.csv")
  with open(path, encoding="utf-8") as file:
    header, *lines = file.read().splitlines() or [""]
  if header.strip() != _HEADER:
    raise ValueError(f"{path} begins with {header!r}; expected {_HEADER!r}.")
  rows = [(f"{subset}_{i}", line.split(",")) for i, line in enumerate(lines) if line.strip()]
  photos = sorted({fields[0] for _, fields in rows})
  outside = [photo for photo in photos if os.path.basename(photo) != photo or photo == ".."]
  if outside:
    raise ValueError(f"{path} names the photo {outside[0]!r}; expected the name of a file, without folders.")
  found = dict(zip(photos, problems(
      [os.path.join(root, subset.upper(), photo) for photo in photos], upright,
      lambda image: image.shape[:2],
  ), strict=True))
  crops, left_out = [], []
  for key, fields in rows:
    problem, size = found[fields[0]]
    photo = f"{subset.upper()}/{fields[0]}"
    if not problem:
      label, box = _label_and_box(fields, f"{path}, {key}")
      box = _inside(box, *size)
      if box:
        crops.append(Crop(key, photo, label, box))
        continue
      problem = "the box has no area inside the photo"
    left_out.append((f"{key} {photo}", problem))
  return crops, left_out


def _label_and_box(fields, where):
  try:
    _, _, _, name, *box = fields
    box = [int(number) for number in box]
    if len(box) != 4:
      raise ValueError
  except ValueError:
    raise ValueError(f"{where}: {','.join(fields)!r} does not fit {_HEADER!r}.") from None
  known = {_plain(known): label for label, known in enumerate(PLANTDOC)}
  if _plain(name) not in known:
    raise ValueError(f"{where}: {naming.unknown('class', name, PLANTDOC)}")
  return known[_plain(name)], box


def _plain(name):
  return " ".join(name.lower().split())


def _inside(box, height, width):
  """Returns the box's part inside the photo, () if there is none. Corners come in any order."""
  left, right = sorted(box[0::2])
  top, bottom = sorted(box[1::2])
  right, bottom = min(right, width), min(bottom, height)
  return (left, top, right, bottom) if 0 <= left < right and 0 <= top < bottom else ()


def upright(data):
  """Decodes an image and turns it as its EXIF says: uint8 (height, width, 3)."""
  image = decode_rgb(data)
  try:
    with Image.open(io.BytesIO(data)) as opened:
      turn = _TURNS.get(opened.getexif().get(_EXIF_ORIENTATION))
  # What PIL raises on metadata that are damaged, beside pixels that are not.
  except (OSError, SyntaxError, ValueError, EOFError, KeyError, TypeError, struct.error):
    turn = None
  return image if turn is None else np.asarray(Image.fromarray(image).transpose(turn))
