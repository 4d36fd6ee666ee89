"""Writes the made-up pictures of 'generated/voc' as files, in the form of the real PASCAL VOC.

  python -m bionets_jax.data.make_voc DIR

makes DIR/VOCdevkit, as the archives of VOC 2007 and 2012 unpack, and from it DIR/voc/2007 and DIR/voc/2012 as
TFDS stores them, so that a run with `--config.data.name=voc --config.data.dir=DIR` goes the way of one on the real set.
"""

import os
import pathlib
import sys
import xml.etree.ElementTree as xml

from PIL import Image

from bionets_jax.data.convert import PrepareError
from bionets_jax.data.prepare import prepare
from bionets_jax.data.shapes import SETS, ShapesSource
from bionets_jax.data.voc_files import LISTS


def write_devkit(root):
  """Writes the pictures, annotations and lists of both years under `root`/VOCdevkit."""
  for year, splits in SETS["voc"].splits.items():
    folder = pathlib.Path(root, "VOCdevkit", f"VOC{year}")
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
      (folder / name).mkdir(parents=True, exist_ok=True)
    for split in splits:
      source = ShapesSource("generated/voc", f"{year}/{split}")
      names = [f"{year}_{split}_{index:03d}" for index in range(len(source))]
      for index, name in enumerate(names):
        image, annotation, _ = source.read(index)
        Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
        _annotation(image, annotation, source.class_names).write(folder / "Annotations" / f"{name}.xml")
      (folder / "ImageSets" / "Main" / f"{LISTS[split]}.txt").write_text("\n".join(names) + "\n")


def _annotation(image, annotation, class_names):
  """Returns VOC's XML: whole pixels counted from 1, the last one belonging to the box."""
  root = xml.Element("annotation")
  size = xml.SubElement(root, "size")
  for name, value in zip(("height", "width", "depth"), image.shape, strict=True):
    xml.SubElement(size, name).text = str(value)
  for (x1, y1, x2, y2), label, difficult in zip(*(values.tolist() for values in annotation), strict=True):
    found = xml.SubElement(root, "object")
    for name, value in (("name", class_names[label]), ("pose", "Unspecified"), ("truncated", 0),
                        ("difficult", int(difficult))):
      xml.SubElement(found, name).text = str(value)
    box = xml.SubElement(found, "bndbox")
    for name, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
      xml.SubElement(box, name).text = f"{value:g}"
  return xml.ElementTree(root)


def make(directory):
  """Writes the files of both years and prepares them; returns the directories of the prepared sets."""
  write_devkit(directory)
  return [prepare(f"voc/{year}", directory, directory)[0] for year in SETS["voc"].splits]


def main(argv=None):
  """The command line; returns the exit status."""
  arguments = sys.argv[1:] if argv is None else argv
  if len(arguments) != 1 or arguments[0].startswith("-"):
    print(__doc__, file=sys.stderr)
    return 2
  try:
    for directory in make(os.path.expanduser(arguments[0])):
      print(f"Ready: {directory}")
  except (PrepareError, OSError, ValueError) as error:
    print(f"Error: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
