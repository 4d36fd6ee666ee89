"""Finds objects in images: python -m bionets_jax.detection.predict IMAGE ... --workdir=DIR [--help].

Exit status: 0 done, 1 an error or an image that could not be read, 2 wrong usage.
"""

import argparse
import errno
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from bionets_jax.terminal import run_command

_EPILOGUE = """\
Each image is written to OUT/IMAGE_detections.png with what was found in it, and everything to one
JSON file: boxes are (left, top, right, bottom) in pixels of the image as viewers show it, that is,
turned as its EXIF orientation says. Files that are no readable images are named and left out.
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  """The options; leaves with status 2 and a message if they do not go together."""
  parser = argparse.ArgumentParser(
      prog="python -m bionets_jax.detection.predict", description="Finds objects in images.", epilog=_EPILOGUE,
      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file: JPEG, PNG, WebP, TIFF, BMP, GIF or PPM")
  parser.add_argument("--workdir", required=True, metavar="DIR",
                      help="of a finished run of detection; or the weight file in it")
  parser.add_argument("--out", default="", metavar="DIR",
                      help="of the pictures (default: WORKDIR/detections; ./detections for a weight file)")
  parser.add_argument("--least", type=float, default=0.3, metavar="X",
                      help="lowest score of what is shown, from 0 to 1 (default: 0.3)")
  parser.add_argument("--json", default="", metavar="FILE",
                      help="its name ends in .json (default: OUT/detections.json)")
  options = parser.parse_args(arguments)
  if not 0 <= options.least <= 1:
    parser.error(f"--least={options.least}: give a number from 0 to 1")
  if not os.path.exists(options.workdir):
    parser.error(f"--workdir={options.workdir}: no such file or directory")
  if not options.out:
    options.out = os.path.join(options.workdir if os.path.isdir(options.workdir) else ".", "detections")
  options.json = options.json or os.path.join(options.out, "detections.json")
  if os.path.splitext(options.json)[1].lower() != ".json":  # `--json *.jpg` would write over the first of them
    parser.error(f"--json={options.json}: give a name that ends in .json")
  return options


def main(arguments: Sequence[str] | None = None) -> int:
  """Parses, predicts, prints; returns the exit status."""
  options = parse(arguments)
  return run_command(lambda say: int(predict(options, say=say) > 0),
                     stopped="stopped; there is no JSON file of these images")


def predict(options: argparse.Namespace, say: Callable[[str], None] = print) -> int:
  """Does what the options of `parse` say; returns how many images could not be read.

  Raises:
    FileNotFoundError, ValueError: as `detection.loading.load`.
    OSError: a result cannot be written.
  """
  # Imported late: a mistake on the command line should not have to wait for JAX.
  from bionets_jax.detection.drawing import draw
  from bionets_jax.detection.finding import Finder, read_upright
  from bionets_jax.detection.loading import load
  from bionets_jax.weights.whole import write_whole

  detector = load(options.workdir)
  find = Finder(detector, least=options.least)
  for folder in (options.out, os.path.dirname(os.path.abspath(options.json))):
    os.makedirs(folder, exist_ok=True)
  if os.path.isdir(options.json):
    raise IsADirectoryError(errno.EISDIR, "there is a folder of this name", options.json)
  images: list[dict[str, Any]] = []
  failed: list[dict[str, str]] = []
  names = _picture_names(options.images)
  for number, (path, name) in enumerate(zip(options.images, names, strict=True), 1):
    at = f"{number}/{len(options.images)} {path}"
    try:
      image = read_upright(path)
    except (OSError, ValueError) as error:
      why = (error.strerror if isinstance(error, OSError) else None) or str(error)
      failed.append({"file": path, "error": why})
      say(f"{at}: left out: {why}")
      continue
    found = find(image)
    png = io.BytesIO()
    draw(image, *found, detector.class_names).save(png, "PNG")
    write_whole({os.path.join(options.out, name): png.getvalue()})
    images.append({
        "file": path, "width": image.shape[1], "height": image.shape[0], "picture": name,
        "detections": [
            {"class": detector.class_names[label], "label": label, "score": score, "box": box}
            for box, score, label in zip(*(x.tolist() for x in found), strict=True)]})
    say(f"{at}: {len(found.scores)} found")
  about = {"weights": detector.path, "model": detector.kind, "class_names": detector.class_names,
           "least": options.least}
  write_whole({options.json: json.dumps(about | {"images": images, "failed": failed}, indent=1) + "\n"})
  say(f"{len(images)} pictures in {options.out}, boxes in {options.json}"
      + (f"; {len(failed)} of {len(options.images)} files left out" if failed else ""))
  return len(failed)


def _picture_names(paths: Sequence[str]) -> list[str]:
  """For each image a name of its own: files of several folders may share theirs."""
  names: dict[str, None] = {}
  numbers: dict[str, int] = {}
  for path in paths:
    stem = os.path.splitext(os.path.basename(path))[0]
    name = f"{stem}_detections.png"
    while name in names:
      numbers[stem] = numbers.get(stem, 1) + 1
      name = f"{stem}_detections_{numbers[stem]}.png"
    names[name] = None
  return list(names)


if __name__ == "__main__":
  sys.exit(main())
