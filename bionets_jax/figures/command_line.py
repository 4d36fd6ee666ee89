"""The command line of the figures. Exit status: 0 done, 1 an error, 2 wrong usage."""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from bionets_jax.terminal import run_command

if TYPE_CHECKING:
  from matplotlib.figure import Figure


class Drawing(NamedTuple):
  """A figure.

  Attributes:
    about: a line.
    draw: makes it from the options.
    trained: whether it shows a trained network, so that --weights is needed.
  """

  about: str
  draw: Callable[[argparse.Namespace], "Figure"]
  trained: bool = False


# What draws is imported when it draws: a mistake on the command line should not have to wait for JAX.


def _ic_neuron(options: argparse.Namespace) -> "Figure":
  from bionets_jax.figures import ic_neuron
  return ic_neuron.draw()


def _fp_product(options: argparse.Namespace) -> "Figure":
  from bionets_jax.figures import fp_product
  return fp_product.draw()


def _fp_block(options: argparse.Namespace) -> "Figure":
  from bionets_jax.figures import fp_block
  return fp_block.draw()


def _fp_filters(options: argparse.Namespace) -> "Figure":
  from bionets_jax.figures import fp_filters
  return fp_filters.draw(options.loaded)


def _keffnet_groups(options: argparse.Namespace) -> "Figure":
  from bionets_jax.figures import keffnet_groups
  return keffnet_groups.draw(**options.groups)


def _filters(options: argparse.Namespace) -> "Figure":
  from bionets_jax.figures import filters
  figure = filters.draw_filters(options.loaded)
  if figure is None:
    raise ValueError(f"{options.weights}: {options.loaded.name} has no filters to show")
  return figure


DRAWINGS = {
    "ic-neuron": Drawing(
        "IC networks, Figure 2: what one MP and one IC neuron compute; XNOR and XOR", _ic_neuron),
    "fp-product": Drawing(
        "FP-nets, Figure 1: the product of Sobel's filters on edges, corners and line ends", _fp_product),
    "fp-block": Drawing("FP-nets, Figure 1: the FP-block, its shapes and parameters", _fp_block),
    "fp-filters": Drawing(
        "FP-nets: learned filter pairs, their angles and end-stopping", _fp_filters, trained=True),
    "keffnet-groups": Drawing(
        "kEffNet, Figure 1: a pointwise convolution and its interleaved groups", _keffnet_groups),
    "filters": Drawing("the first layer's filters of any network, and filter pairs", _filters, trained=True),
}
_TRAIN = "python launch.py --config=configs/fp_digits.py, about a minute, makes some in workdirs/fp_digits"
_EPILOGUE = f"""\
Each figure is written to DIR/NAME.png and DIR/NAME.pdf, as wide as a column (3.4 inches).

fp-filters and filters show a trained network: --weights=SOURCE. Where there is none,
{_TRAIN}.

Of finished runs, error against parameters (FP-nets, Figures 2 and 3) and training curves with their spread
over seeds:  python -m bionets_jax.report results WORKDIR... --figures=DIR
Heatmaps (IC networks, Figure 3; kEffNet, Figures 2 and 3):  python -m bionets_jax.heatmaps --help
"""
_GROUPS = {"channels": "of the input", "features": "of the output",
           "min_group_channels": "inputs that a group has at least"}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  """The options; leaves with status 2 and a message if they do not go together."""
  parser = argparse.ArgumentParser(
      prog="python -m bionets_jax.figures", description="Draws the papers' figures.", epilog=_EPILOGUE,
      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(DRAWINGS)}; or all")
  parser.add_argument("--list", action="store_true", help="say what there is, and draw nothing")
  parser.add_argument("--out", default="figures", metavar="DIR", help="of the files (default: figures)")
  parser.add_argument("--weights", default="", metavar="SOURCE",
                      help="of the trained network: a run's WORKDIR, a file, or an address such as "
                           "torchvision://ResNet50_Weights.DEFAULT")
  groups = parser.add_argument_group("keffnet-groups (default: 16 to 8 channels, 4 per group)")
  for name, about in _GROUPS.items():
    groups.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=about)
  options = parser.parse_args(arguments)
  options.groups = {name: value for name in _GROUPS if (value := getattr(options, name)) is not None}
  if options.list:
    return options
  every = "all" in options.names
  if not options.names:
    parser.error(f"name a figure: {', '.join(DRAWINGS)} or all")
  if unknown := [name for name in options.names if name not in DRAWINGS and name != "all"]:
    parser.error(f"{unknown[0]}: no such figure; there are {', '.join(DRAWINGS)}, and all")
  named = list(dict.fromkeys(DRAWINGS if every else options.names))
  trained = [name for name in named if DRAWINGS[name].trained]
  if trained and not options.weights and not every:
    parser.error(f"{trained[0]} shows a trained network; give --weights=SOURCE ({_TRAIN})")
  if options.weights and not trained:
    parser.error(f"--weights={options.weights}: {', '.join(named)} shows no trained network")
  if options.weights and "://" not in options.weights and not os.path.exists(options.weights):
    parser.error(f"--weights={options.weights}: no such file or directory")
  if options.groups and "keffnet-groups" not in named:
    parser.error(f"--{next(iter(options.groups)).replace('_', '-')} is of keffnet-groups")
  if bad := [name for name, value in options.groups.items() if value < 1]:
    parser.error(f"--{bad[0].replace('_', '-')}={options.groups[bad[0]]}: give 1 or more")
  if os.path.exists(options.out) and not os.path.isdir(options.out):
    parser.error(f"--out={options.out} is a file; name a folder")
  options.names = named
  return options


def main(arguments: Sequence[str] | None = None) -> int:
  """Parses, draws, prints; returns the exit status."""
  options = parse(arguments)
  if options.list:
    for name, drawing in DRAWINGS.items():
      print(f"{name:16}{drawing.about}{' (--weights)' * drawing.trained}")
    print(f"\n{_EPILOGUE}", end="")
    return 0

  def work(say):
    draw(options, say=say)
    return 0

  return run_command(work, stopped="stopped")


def draw(options: argparse.Namespace, say: Callable[[str], None] = print) -> None:
  """Draws what the options of `parse` name.

  Raises:
    FileNotFoundError, ValueError: as `weights.load`; or a network that has nothing to show.
    OSError: a file cannot be written.
  """
  # Little is computed, so an accelerator that other programs use is left alone.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  from bionets_jax import weights
  from bionets_jax.report.curves import save

  if options.weights:
    options.loaded = weights.load(options.weights, say=say)
  for name in options.names:
    if DRAWINGS[name].trained and not options.weights:
      say(f"{name}: left out, it shows a trained network: --weights=SOURCE ({_TRAIN})")
      continue
    paths = [os.path.join(options.out, f"{name}.{form}") for form in ("png", "pdf")]
    save(DRAWINGS[name].draw(options), *paths)
    say(f"{name}: {' '.join(paths)}")
