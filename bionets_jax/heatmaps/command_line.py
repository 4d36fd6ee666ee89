"""The command line of the heatmaps. Exit status: 0 done, 1 an error or a picture left out, 2 wrong usage."""

import argparse
import os
import re
from collections.abc import Sequence

from bionets_jax.terminal import run_command
from bionets_jax.weights.command_line import model_option

_DESCRIPTION = """\
Draws which pixels speak for a class, by Grad-CAM or CAM: a row a picture, a column a network.

  python -m bionets_jax.heatmaps --weights=WORKDIR cat.jpg dog.png
  python -m bionets_jax.heatmaps --weights=WORKDIR --data=cifar10 --split=test --examples=0,5,10-14
  python -m bionets_jax.heatmaps --weights=torchvision://ResNet18_Weights.DEFAULT --weights=WORKDIR cat.jpg
  python -m bionets_jax.heatmaps --weights=WORKDIR --layer=stage2 --of=cat cat.jpg
  python -m bionets_jax.heatmaps --weights=WORKDIR --list-layers
"""
_EPILOGUE = """\
The pictures are drawn as the networks see them: resized and cropped by the transform of the run's evaluation.
Image files are turned as their EXIF orientation says; what is no readable image is named and left out, and of
more than 60 the first are drawn. Above each map stand the predicted class and its probability, and the map's
class where that is another.
"""
# Kept here, and checked against `display.METHODS` by its own tests: --help should not have to import JAX.
_METHODS = ("grad-cam", "cam")
_FORMS = (".png", ".pdf")
_MOST = 1000  # examples in a range


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  """The options; leaves with status 2 and a message if they do not go together."""
  parser = argparse.ArgumentParser(
      prog="python -m bionets_jax.heatmaps", description=_DESCRIPTION, epilog=_EPILOGUE,
      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  parser.add_argument("images", nargs="*", metavar="IMAGE", help="a file: JPEG, PNG, WebP, TIFF, BMP, GIF or PPM")
  parser.add_argument("--weights", action="append", required=True, metavar="SOURCE",
                      help="of a network: the workdir of a finished run, a file of weights, or an address such as "
                           "torchvision://ResNet50_Weights.DEFAULT; several for networks side by side")
  parser.add_argument("--model", default="", metavar="NAME",
                      help="the network in another library's file (default: what its keys say)")
  parser.add_argument("--model-option", type=model_option, action="append", default=[], metavar="NAME=VALUE",
                      help="an option of that network, such as flavour=tf; once for each")

  data = parser.add_argument_group("examples of a data set, in place of image files")
  data.add_argument("--data", default="", metavar="NAME", help="e.g. digits, cifar10 or folder")
  data.add_argument("--split", default="", help="e.g. test")
  data.add_argument("--data-dir", default="", metavar="DIR", help="where the sets are (default: $TFDS_DATA_DIR)")
  data.add_argument("--examples", type=_numbers, default=None, metavar="N,N-N,...",
                    help="by their number in the split, from 0 (default: 0-4)")

  what = parser.add_argument_group("what is drawn")
  what.add_argument("--method", choices=_METHODS, default=_METHODS[0],
                    help="grad-cam (default), of any layer; cam, for networks that end in a global average pool and "
                         "one dense layer")
  what.add_argument("--layer", default=None, metavar="NAME",
                    help="whose maps Grad-CAM takes (default: the last endpoint of more than one pixel)")
  what.add_argument("--list-layers", action="store_true", help="only print the layers that there are")
  what.add_argument("--of", default="predicted", metavar="CLASS",
                    help="the class that the maps are of: predicted (default), by each network for itself; true, of "
                         "examples of a data set; or a class by its name or number")
  what.add_argument("--out", default="heatmaps.png", metavar="FILE",
                    help="of the figure; its name ends in .png or .pdf (default: heatmaps.png)")

  options = parser.parse_args(arguments)
  options.model_options = dict(options.model_option)
  for source in options.weights:
    if "://" not in source and not os.path.exists(source):
      parser.error(f"--weights={source}: no such file or directory")
  if os.path.splitext(options.out)[1].lower() not in _FORMS:
    parser.error(f"--out={options.out}: give a name that ends in {' or '.join(_FORMS)}")
  if options.method == "cam" and options.layer is not None:
    parser.error(f"--layer={options.layer}: CAM is of the last maps; --method=grad-cam takes any layer")
  if bool(options.images) + bool(options.data) + options.list_layers != 1:
    parser.error("give image files, or --data=NAME and --split, or --list-layers: one of the three")
  if options.data and not options.split:
    parser.error(f"--data={options.data}: give its --split too")
  for name in ("split", "data_dir", "examples"):
    if getattr(options, name) and not options.data:
      parser.error(f"--{name.replace('_', '-')} is of a data set; name it with --data")
  if options.of == "true" and not options.data:
    parser.error("--of=true: nothing says which class is the true one of an image file; give --of=CLASS")
  if options.data and options.examples is None:
    options.examples = list(range(5))
  return options


def main(arguments: Sequence[str] | None = None) -> int:
  """Parses, draws, prints; returns the exit status."""
  options = parse(arguments)
  # Imported late: a mistake on the command line should not have to wait for JAX.
  from bionets_jax.heatmaps.run import draw_heatmaps

  return run_command(lambda say: int(draw_heatmaps(options, say=say) > 0), stopped="stopped; nothing was written")


def _numbers(text: str) -> list[int]:
  """'0,5,10-12' -> [0, 5, 10, 11, 12]."""
  numbers: list[int] = []
  for part in text.split(","):
    match = re.fullmatch(r"\s*(\d{1,12})(?:-(\d{1,12}))?\s*", part)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not first <= last < first + _MOST:
      raise argparse.ArgumentTypeError(f"{text!r}: give numbers and ranges, such as 0,5,10-14, of at most {_MOST}")
    numbers += range(first, last + 1)
  return numbers
