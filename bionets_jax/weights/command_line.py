"""The command line of the weights. Exit status: 0 done, 1 an error or a difference, 2 wrong usage."""

import argparse
import ast
import os
from collections.abc import Sequence
from typing import Any

from bionets_jax.terminal import run_command

_SOURCE = ("the workdir of a finished run; a .safetensors, .npz, .pth, .pt, .th, .bin, .h5 or .keras file; or "
           "an address: hf://OWNER/REPO, torchvision://ResNet50_Weights.IMAGENET1K_V1")
# Kept here, and checked against `export.TARGETS` by its own tests: --help should not have to import JAX.
_TARGETS = {
    "safetensors": "our own file, and model.py, which loads and runs it in PyTorch",
    "npz": "the same for NumPy alone, and model.py",
    "torchvision": "a plain network under torchvision's keys",
    "timm": "a plain network under timm's keys, with its config.json",
    "keras": "an EfficientNet as a weights file of keras.applications",
    "pytorch_resnet_cifar10": "a CIFAR ResNet under that repository's keys",
    "stablehlo": "images to logits in one file for CPU, CUDA and TPU (jax.export)",
}
_EXPORT = "Writes weights for others. --to is one of:\n\n" + "\n".join(
    f"  {name:24}{text}" for name, text in _TARGETS.items())


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  """The options; leaves with status 2 and a message if they do not go together."""
  parser = argparse.ArgumentParser(
      prog="python -m bionets_jax.weights", description="Weights of others and for others.",
      allow_abbrev=False)
  commands = parser.add_subparsers(dest="command", required=True, metavar="SUBCOMMAND")

  def command(name: str, text: str, description: str = "") -> argparse.ArgumentParser:
    made = commands.add_parser(
        name, help=text, description=description or text, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("source", metavar="SOURCE", help=_SOURCE)
    made.add_argument("--model", default="", metavar="NAME",
                      help="the network in another library's file (default: what its keys say)")
    made.add_argument("--model-option", type=model_option, action="append", default=[], metavar="NAME=VALUE",
                      help="an option of that network, such as flavour=tf; once for each")
    return made

  inspect = command("inspect", "what a file holds and how its network is fed")
  inspect.add_argument("--json", action="store_true", help="as JSON")

  check = command(
      "check", "whether a file fits its network, and computes what its authors' code computes",
      "Loads a file and, with --report, compares the output of every layer with what the authors' own code\n"
      "gave for the same images (examples/record_activations.py records it). Names the first layer that\n"
      "differs; status 1 if one does.")
  check.add_argument("--report", metavar="FILE.npz", default="", help="the other library's activations")
  check.add_argument("--tolerance", type=float, default=1e-4, metavar="X",
                     help="of a layer, relative to its largest value (default: 1e-4)")

  export = command("export", "write weights for others", _EXPORT)
  export.add_argument("--to", required=True, choices=tuple(_TARGETS), metavar="NAME")
  export.add_argument("--out", default="", metavar="DIR",
                      help="of the files (default: WORKDIR/export/NAME; needed where SOURCE is no workdir)")

  card = command("card", "write weights with a model card, as a folder that can be shared")
  card.add_argument("--out", default="", metavar="DIR",
                    help="(default: WORKDIR/export/hub; needed where SOURCE is no workdir)")

  push = command("push-to-hub", "upload weights with their model card to the Hugging Face hub")
  push.add_argument("--repo", required=True, metavar="OWNER/NAME")
  push.add_argument("--private", action="store_true", help="if the repository is new")
  push.add_argument("--dry-run", action="store_true", help="only say what would be uploaded")

  options = parser.parse_args(arguments)
  wrong = commands.choices[options.command].error
  options.model_options = dict(options.model_option)
  if "://" not in options.source and not os.path.exists(options.source):
    wrong(f"{options.source}: no such file or directory")
  if options.command == "check":
    if options.report and not os.path.isfile(options.report):
      wrong(f"--report: {options.report}: no such file")
    if not options.tolerance > 0:
      wrong(f"--tolerance={options.tolerance}: give a positive number")
  if options.command in ("export", "card"):
    if os.path.exists(options.out) and not os.path.isdir(options.out):
      wrong(f"--out: {options.out} is a file; name a folder")
    if not options.out and not os.path.isdir(options.source):
      wrong("--out=DIR: say where to write; only a workdir has a place of its own for it")
  return options


def main(arguments: Sequence[str] | None = None) -> int:
  """Parses, runs, prints; returns the exit status."""
  options = parse(arguments)
  # Imported late: a mistake on the command line should not have to wait for JAX. Nothing here needs an
  # accelerator, which other programs may be using.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  from bionets_jax.weights import commands

  return run_command(lambda say: commands.run(options, say), stopped="stopped")


def model_option(text: str) -> tuple[str, Any]:
  """'groups=32' -> ('groups', 32); what is no Python literal is text.

  Raises:
    argparse.ArgumentTypeError: for anything else, and for what is not an option of the network.
  """
  name, equals, value = text.partition("=")
  if not (name.isidentifier() and equals and value):
    raise argparse.ArgumentTypeError(f"{text!r}: give NAME=VALUE")
  if name in ("num_classes", "dtype"):
    raise argparse.ArgumentTypeError(f"{name}: not an option of the network; the weights say it, or --dtype")
  try:
    return name, ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return name, value
