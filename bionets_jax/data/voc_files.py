"""PASCAL VOC from its published archives, in TFDS's form.

Source: M. Everingham, L. Van Gool, C. K. I. Williams, J. Winn, A. Zisserman, "The PASCAL Visual Object Classes
Challenge", http://host.robots.ox.ac.uk/pascal/VOC. The photographs are Flickr's, under its terms.
"""

import os
import re
import xml.etree.ElementTree

import numpy as np

from bionets_jax.data import naming
from bionets_jax.data.building import FilesBuilder, problems, tfds
from bionets_jax.data.class_names import VOC

POSES = ("frontal", "rear", "left", "right", "unspecified")
LISTS = {"train": "train", "validation": "val", "test": "test"}
_SIZES = {"2007": {"train": 2501, "validation": 2510, "test": 4952}, "2012": {"train": 5717, "validation": 5823}}


class Voc(FilesBuilder, skip_registration=True):
  """TFDS's 'voc/2007' and 'voc/2012', built from the unpacked archives, without the test images of 2012.

  The folder holds VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets}. The features are TFDS's, and so is what is
  stored: boxes as parts of the sides that the annotation file gives, from the coordinates as they are there.
  """

  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=year, version=tfds.core.Version("5.0.0")) for year in _SIZES]

  @property
  def PUBLISHED_SIZES(self):  # noqa: N802 (a constant of the other builders)
    return _SIZES[self.builder_config.name]

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        "image": tfds.features.Image(),
        "image/filename": tfds.features.Text(),
        "objects": tfds.features.Sequence({
            "label": tfds.features.ClassLabel(names=VOC),
            "bbox": tfds.features.BBoxFeature(),
            "pose": tfds.features.ClassLabel(names=POSES),
            "is_truncated": np.bool_,
            "is_difficult": np.bool_,
        }),
        "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=VOC)),
        "labels_no_difficult": tfds.features.Sequence(tfds.features.ClassLabel(names=VOC)),
    }), homepage="http://host.robots.ox.ac.uk/pascal/VOC")

  def _split_generators(self, dl_manager):
    root = os.path.join(os.fspath(dl_manager.manual_dir), "VOCdevkit", f"VOC{self.builder_config.name}")
    return {split: self._generate_examples(root, split) for split in self.PUBLISHED_SIZES}

  def _generate_examples(self, root, split):
    names = read_list(os.path.join(root, "ImageSets", "Main", f"{LISTS[split]}.txt"))
    images, notes = ([os.path.join(root, folder, name + suffix) for name in names]
                     for folder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")))
    for name, image, note, (problem, _) in zip(names, images, notes, problems(images), strict=True):
      try:
        if problem:
          raise ValueError(f"{os.path.basename(image)}: {problem}")
        objects = read_objects(note)
      except (ValueError, OSError) as error:
        self.left_out.append((f"{split} {name}", str(error)))
        continue
      with open(image, "rb") as file:
        yield name, {
            "image": file.read(), "image/filename": f"{name}.jpg", "objects": objects,
            "labels": sorted({found["label"] for found in objects}),
            "labels_no_difficult": sorted({found["label"] for found in objects if not found["is_difficult"]}),
        }


def read_list(path):
  """Returns the names of a file in ImageSets/Main; ValueError for a line that holds none."""
  with open(path, encoding="utf-8") as file:
    names = [line.split()[0] for line in file if line.strip()]
  for name in names:
    if not re.fullmatch(r"\w+", name):
      raise ValueError(f"{path}: {name!r} is no name of an image.")
  return names


def read_objects(path):
  """Reads the objects of an annotation file, in the form that TFDS stores.

  Returns:
    A list of {'label': str, 'pose': str, 'bbox': BBox, 'is_truncated': bool, 'is_difficult': bool}.

  Raises:
    ValueError: it is not VOC's XML, or a label or box is none; holds the path.
  """
  try:
    root = xml.etree.ElementTree.parse(path).getroot()
    width, height = (float(root.find("size").find(side).text) for side in ("width", "height"))
    return [_object(found, width, height) for found in root.findall("object")]
  # A field that is missing is None, which has no text; a side of 0 divides.
  except (xml.etree.ElementTree.ParseError, AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
    raise ValueError(f"{path} cannot be read: {error}") from error


def _object(found, width, height):
  label = found.find("name").text.lower()
  if label not in VOC:
    raise ValueError(naming.unknown("class", label, VOC))
  box = found.find("bndbox")
  xmin, ymin, xmax, ymax = (float(box.find(side).text) for side in ("xmin", "ymin", "xmax", "ymax"))
  # The last pixel belongs to the box, so that equal corners are those of a line of pixels; they count from 1.
  if not (0 <= xmin <= xmax <= width and 0 <= ymin <= ymax <= height and min(xmax, ymax) > 0):
    raise ValueError(f"the box {xmin, ymin, xmax, ymax} is empty or outside of {width:g} x {height:g} pixels.")
  pose = found.findtext("pose", "unspecified").lower()
  return {
      "label": label, "pose": pose if pose in POSES else "unspecified",
      "bbox": tfds.features.BBox(ymin / height, xmin / width, ymax / height, xmax / width),
      "is_truncated": found.findtext("truncated") == "1", "is_difficult": found.findtext("difficult") == "1",
  }
