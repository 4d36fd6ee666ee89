"""The command line of the evaluators. Exit status: 0 done, 1 an error, 2 wrong usage."""

import argparse
import os
from collections.abc import Callable, Sequence

from bionets_jax.terminal import run_command
from bionets_jax.weights.command_line import model_option

_DESCRIPTION = """\
Evaluates the weights of a finished run, or another library's checkpoint, on any data set that has the
classes they were trained for. Without options on the run's own test set, as the run did.

  python -m bionets_jax.evaluate WORKDIR
  python -m bionets_jax.evaluate WORKDIR --transform='resize(256)|ten_crop(224)'
  python -m bionets_jax.evaluate WORKDIR --data=imagenet_v2/matched-frequency --split=test
  python -m bionets_jax.evaluate WORKDIR --confusion
  python -m bionets_jax.evaluate WORKDIR --real-labels=real.json
  python -m bionets_jax.evaluate WORKDIR --robustness
  python -m bionets_jax.evaluate WORKDIR --jpeg=90,50 --fgsm=1,4 --limit=1000
"""
_EPILOGUE = """\
The result is printed, and written to WORKDIR/evaluations/NAME.json; of disturbed images with a figure
NAME.png. Disturbances act on the uint8 image that the network gets, after the transform. The same command
gives the same numbers again.
"""
# Kept here, and checked against `robustness.KINDS` by its own tests: --help should not have to import JAX.
_DISTURBANCES = {
    "jpeg": "JPEG round trips of these qualities, 1 to 100, colours at half the resolution",
    "blur": "Gaussian filters with these standard deviations, in pixels",
    "noise": "Gaussian noise of these standard deviations, of 255",
    "fgsm": "one step by the sign of the loss's gradient (Goodfellow et al. 2015) of these sizes, of 255",
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  """The options; leaves with status 2 and a message if they do not go together."""
  parser = argparse.ArgumentParser(
      prog="python -m bionets_jax.evaluate", description=_DESCRIPTION, epilog=_EPILOGUE,
      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  parser.add_argument("weights", metavar="WORKDIR", help="of a finished run; or a file of weights, or "
                      "an address such as hf://timm/resnet50.tv_in1k or torchvision://ResNet50_Weights.DEFAULT")
  parser.add_argument("--model", default="", metavar="NAME",
                      help="the network in another library's file (default: what its keys say)")
  parser.add_argument("--model-option", type=model_option, action="append", default=[], metavar="NAME=VALUE",
                      help="an option of that network, such as flavour=tf; once for each")

  data = parser.add_argument_group("data (default: the run's test_split, or its eval_split without one)")
  data.add_argument("--data", default="", metavar="NAME", help="data set; its classes must be the weights'")
  data.add_argument("--data-dir", default=None, metavar="DIR",
                    help="where the sets are (default: the run's, else $TFDS_DATA_DIR)")
  data.add_argument("--split", default="", help="e.g. test, validation or 'train[90%%:]'")
  data.add_argument("--transform", default=None, metavar="TEXT",
                    help="e.g. 'resize(256)|center_crop(224)' or 'resize(256)|ten_crop(224)'")
  data.add_argument("--crop-average", choices=("softmax", "logits"), default="",
                    help="what is averaged over the crops of an image (default: the run's, else softmax)")
  data.add_argument("--limit", type=int, default=0, metavar="N", help="the first N images only")
  data.add_argument("--batch-size", type=int, default=0, metavar="N",
                    help="images at a time (default: the run's, else 256)")
  data.add_argument("--workers", type=int, default=-1, metavar="N",
                    help="reading processes; 0: threads; -1 (default): by the cores")
  data.add_argument("--max-bad-records", type=int, default=0, metavar="N",
                    help="images that may be unreadable; they are left out, and counted (default: 0)")

  how = parser.add_argument_group("what is measured")
  how.add_argument("--confusion", action="store_true",
                   help="also which classes are taken for which, the error of each class, and the images that are "
                        "taken for another one")
  how.add_argument("--real-labels", default="", metavar="FILE",
                   help="real.json of Beyer et al. 2020: also the error by the reassessed labels of "
                        "ImageNet's validation images, those without one left out")
  how.add_argument("--robustness", action="store_true",
                   help="the error on disturbed images, and how many predictions change; all that follow, at "
                        "levels of their own where none are given")
  for name, text in _DISTURBANCES.items():
    how.add_argument(f"--{name}", type=_numbers, default=None, metavar="N,N,...", help=text)
  how.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
  how.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="",
                   help="of the computation (default: the run's, else auto)")

  out = parser.add_argument_group("results")
  out.add_argument("--name", default="", help="of the files (default: from the options)")
  out.add_argument("--out", default="", metavar="DIR", help="of the files (default: WORKDIR/evaluations, or "
                   "./evaluations for another library's weights)")

  options = parser.parse_args(arguments)
  options.disturbances = {
      name: getattr(options, name) for name in _DISTURBANCES
      if options.robustness or getattr(options, name)}
  options.model_options = dict(options.model_option)
  if min(options.limit, options.batch_size, options.max_bad_records) < 0:
    parser.error("--limit, --batch-size and --max-bad-records are numbers of images")
  if not 0 <= options.seed < 2**32:
    parser.error(f"--seed={options.seed}: give a number from 0 to 2**32 - 1")
  if options.real_labels and options.disturbances:
    parser.error("--real-labels goes with undisturbed images; leave one of the two out")
  if options.confusion and (options.real_labels or options.disturbances):
    parser.error("--confusion goes with undisturbed images and one label each; leave the other options out")
  if os.path.basename(options.name) != options.name:
    parser.error(f"--name={options.name}: a name without folders; --out names the folder")
  if "://" not in options.weights and not os.path.exists(options.weights):
    parser.error(f"{options.weights}: no such file or directory")
  return options


def main(arguments: Sequence[str] | None = None) -> int:
  """Parses, evaluates, prints; returns the exit status."""
  options = parse(arguments)
  # Imported late: a mistake on the command line should not have to wait for JAX.
  from bionets_jax.evaluate.run import evaluate

  def work(say: Callable[[str], None]) -> int:
    evaluate(options, say=say)
    return 0

  return run_command(work, stopped="stopped; nothing was written")


def _numbers(text: str) -> tuple[float, ...]:
  """'90,0.5' -> (90, 0.5); '' is none."""
  try:
    numbers = [float(part) for part in text.split(",")] if text.strip() else []
    return tuple(int(number) if number.is_integer() else number for number in numbers)
  except ValueError as error:
    raise argparse.ArgumentTypeError(f"{text!r}: give numbers with commas between them") from error
