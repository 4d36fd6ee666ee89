"""Training steps of whole networks beside PyTorch's: forward, loss, backward, SGD with momentum.

    pip install torch
    python benchmarks/networks.py [--family=cifar|resnet50|efficientnet] [--only=NAME ...] [--batch=N]
                                  [--rounds=11] [--compile] [--data=resident] [--profile] [--json=FILE]

Ours is the trainer's step, compiled and donated as the trainer does it. PyTorch's is the module that
`python -m bionets_jax.weights` writes for the same network, with the same weights on the same batch:
eager ('torch'), or under torch.compile ('compiled'); channels last. On a GPU both compute in bfloat16,
PyTorch under autocast with the fused optimiser; on a CPU in float32.

First the logits, the loss and the momenta (the gradients with their decay) of one step are compared with
those of PyTorch in float64; a network that is off by more than rounding, which is measured by PyTorch's own
step, ends the script. Then all candidates of one family (CIFAR's networks, ResNet-50's, EfficientNet's) are
timed in one interleaved run, products of two large matrices among them. Ratios are medians of the ratios
within a round, with quartiles. 'of peak' is the share of the faster of the two frameworks' matrix products
that the multiply-adds of the network would be, three times those of the forward pass.

--data=resident times the step of ours with its batch cut and augmented on the device out of a set of
50,000 images that lies there, as the trainer does for CIFAR; PyTorch's batch is there already.

What it does not show: input pipelines that decode (benchmarks/input.py), and machines other than this one.
"""

import argparse
import functools
import statistics
import sys
from typing import Any, NamedTuple

# Before jax and torch are, since it sets how torch's threads wait.
import twins  # isort: split

import jax
import jax.numpy as jnp
import numpy as np
import profiles
import timing
from train_steps import OurStep, TorchStep
from twins import DEVICE, torch

from bionets_jax.counting import count_macs
from bionets_jax.data.batches import ResidentBatches
from bionets_jax.data.device_transforms import DEVICE_TRANSFORMS
from bionets_jax.data.grammar import parse_transforms
from bionets_jax.data.order import BatchPlan
from bionets_jax.data.resident import ResidentSet
from bionets_jax.training.learning import model_options
from bionets_jax.weights import Preprocessing
from configs import common

# Of a tensor's norm, or of FLOOR of the norm of all gradients where it is larger: in float32, whose rounding
# moves hinges, and per tensor the worst.
TOLERANCE = 2e-2
FLOOR = 1e-2
RESIDENT_IMAGES = 50_000
MATRIX = 2048 if DEVICE == "cpu" else 8192


class Network(NamedTuple):
  """What is timed: its family, whose first is the plain one, whose images, its options, and batches."""

  family: str
  images: str
  options: dict[str, Any]
  batch: tuple[int, int]  # on a CPU, on a GPU


STILL = {"dropout": 0.0, "drop_connect": 0.0}  # what is random cannot be compared
NETWORKS = {
    "resnet20_cifar": Network("cifar", "cifar10", {}, (128, 128)),
    "ic_resnet20_cifar": Network("cifar", "cifar10", common.IC, (128, 128)),
    "fp_resnet20_cifar": Network("cifar", "cifar10", {}, (128, 128)),
    "resnet50": Network("resnet50", "imagenet", {}, (8, 256)),
    "ic_resnet50": Network("resnet50", "imagenet", common.IC_GROWN, (8, 256)),
    "efficientnet_b0": Network("efficientnet", "imagenet", STILL, (8, 256)),
    "keffnet_b0": Network("efficientnet", "imagenet", STILL, (8, 256)),
}
FAMILIES = tuple(dict.fromkeys(network.family for network in NETWORKS.values()))
SIDES = {"cifar10": (32, 10), "imagenet": (224, 1000)}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", choices=tuple(NETWORKS), action="append", default=[], metavar="NAME",
                      help=f"one of {', '.join(NETWORKS)}; may be given several times")
  parser.add_argument("--family", choices=FAMILIES, action="append", default=[], help="all networks of it")
  parser.add_argument("--batch", type=timing.positive, default=0, help="images of a step")
  parser.add_argument("--rounds", type=timing.positive, default=11)
  parser.add_argument("--steps", type=timing.positive, default=0,
                      help="timed together; default 1 on a CPU, 10 on a GPU")
  parser.add_argument("--compile", nargs="?", const="default", default="", metavar="MODE",
                      help="torch.compile too (takes minutes), in its mode 'default' or another")
  parser.add_argument("--data", choices=("ready", "resident"), default="ready")
  parser.add_argument("--profile", action="store_true", help="the most expensive operations of both sides")
  parser.add_argument("--json", metavar="FILE")
  options = parser.parse_args()
  names = [name for name in NETWORKS if name in options.only or NETWORKS[name].family in options.family]
  names = names or list(NETWORKS)
  if options.data == "resident" and any(NETWORKS[name].images != "cifar10" for name in names):
    parser.error("--data=resident: with --family=cifar or --only=NAME of its networks")
  options.steps = options.steps or (1 if DEVICE == "cpu" else 10)

  content = {"machine": timing.machine(), "rounds": options.rounds, "steps": options.steps,
             "data": options.data, "families": {}}
  print(", ".join(f"{key} {value}" for key, value in content["machine"].items()), flush=True)
  for family in dict.fromkeys(NETWORKS[name].family for name in names):
    content["families"][family] = measure(
        [name for name in names if NETWORKS[name].family == family], options)
  if options.json:
    timing.write(options.json, content)
  return 0


def measure(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
  """Checks, times and shows the networks of a family; what it found, for the JSON file."""
  plain = next(name for name in NETWORKS if NETWORKS[name].family == NETWORKS[names[0]].family)
  products = matrix_products()
  calls = dict(products)
  found: dict[str, Any] = {}
  steps = {}
  for name in names:
    sides, found[name] = prepare(name, options)
    steps |= {f"{name} {side}": step for side, step in sides.items()}
  calls |= {key: functools.partial(repeat, step, options.steps) for key, step in steps.items()}
  seconds = timing.interleaved(calls, options.rounds, timing.wait_for)

  median = {key: statistics.median(values) for key, values in seconds.items()}
  peaks = {key: 2 * MATRIX**3 / median[key] for key in products}
  for name in names:
    one = found[name]
    for side in one["sides"]:
      key = f"{name} {side}"
      step = median[key] / options.steps
      one["sides"][side] = {
          "ms": 1e3 * step, "images per second": one["batch"] / step,
          "of peak": 6 * one["macs"] * one["batch"] / step / max(peaks.values())}
      for word, other in (("vs torch", f"{name} torch"), ("vs compiled", f"{name} compiled"),
                          ("vs plain", f"{plain} {side}")):
        if other in seconds and other != key:
          one["sides"][side][word] = timing.ratio(seconds, key, other)
  show(found)
  if options.profile:
    profile(steps)
  return {"peak": peaks, "networks": found}


def prepare(name: str, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
  """({side: its step}, what is known of the network before it is timed)."""
  network = NETWORKS[name]
  side, num_classes = SIDES[network.images]
  batch_size = options.batch or network.batch[DEVICE == "cuda"]
  config = getattr(common, network.images)(name, network.options)
  random = np.random.default_rng(0)
  batch = {"image": random.integers(0, 256, (batch_size, side, side, 3), np.uint8),
           "label": random.integers(0, num_classes, batch_size, np.int32)}
  ours = OurStep(config, batch)
  source = twins.import_source(name, model_options(config), num_classes, (side, side, 3), Preprocessing(
      config.data.mean, config.data.std, image_size=side, resize=side))
  make = functools.partial(TorchStep, source, ours.variables, batch, config)
  half = ours.setup.dtype == "bfloat16"
  reference = make(dtype=torch.float64).first_step()
  sides: dict[str, Any] = {"ours": ours, "torch": make(autocast=half)}
  if options.compile:
    sides["compiled"] = make(autocast=half, compiled=options.compile)

  # What PyTorch's own step is off by is rounding; ours may be off by twice that.
  floor = FLOOR * float(np.sqrt(sum(np.square(momentum).sum() for momentum in reference[2:])))
  error = {"torch": timing.check(name, {"torch": sides["torch"].first_step()}, reference, np.inf, floor)}
  for key in [key for key in sides if key != "torch"]:
    first = ours.first_step(source) if key == "ours" else sides[key].first_step()
    error[key] = timing.check(name, {key: first}, reference, max(TOLERANCE, 2 * error["torch"]), floor)
  if options.data == "resident":
    use_resident(ours, batch_size, side, num_classes)
  macs = count_macs(ours.setup.task.model, side)
  print(f"{name}: off from float64 by " + ", ".join(f"{value:.1e} ({key})" for key, value in error.items()),
        flush=True)
  return sides, {"batch": batch_size, "side": side, "macs": macs, "dtype": ours.setup.dtype,
                 "error": error, "sides": dict.fromkeys(sides)}


def use_resident(ours: OurStep, batch_size: int, side: int, num_classes: int) -> None:
  """Lets a step take its batch from a set on the device, cropped and flipped there."""
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (RESIDENT_IMAGES, side, side, 3), np.uint8)
  labels = random.integers(0, num_classes, RESIDENT_IMAGES, np.int32)
  transforms = parse_transforms("pad_crop(4)|flip", DEVICE_TRANSFORMS)
  plan = BatchPlan(RESIDENT_IMAGES, batch_size, seed=0, drop_remainder=True)
  ours.batches = ResidentBatches(
      ResidentSet(images, labels, ours.setup.mesh, transforms), plan, start_step=0, seed=0)


def profile(steps: dict[str, Any]) -> None:
  """Prints the most expensive operations of each step."""
  for key, step in steps.items():
    table = profiles.ours(step, step.compiled) if isinstance(step, OurStep) else profiles.theirs(step)
    print(f"{key}\n{table}\n", flush=True)


def matrix_products() -> dict[str, Any]:
  """Both frameworks' product of two large matrices, in the type that the networks compute in."""
  random = np.random.default_rng(0)
  a, b = (random.standard_normal((MATRIX, MATRIX), np.float32) for _ in range(2))
  half = DEVICE == "cuda"
  ours = [jnp.asarray(x, jnp.bfloat16 if half else jnp.float32) for x in (a, b)]
  theirs = [torch.from_numpy(x).to(DEVICE, torch.bfloat16 if half else torch.float32) for x in (a, b)]
  multiply = jax.jit(jnp.matmul)
  return {"matmul ours": lambda: multiply(*ours), "matmul torch": lambda: torch.matmul(*theirs)}


def repeat(step: Any, times: int) -> Any:
  """Several steps one behind the other; the result of the last."""
  for _ in range(times):
    result = step()
  return result


def show(found: dict[str, Any]) -> None:
  words = [word for word in ("vs torch", "vs compiled", "vs plain")
           if any(word in values for one in found.values() for values in one["sides"].values())]
  rows = [["network", "", "batch", "ms", "img/s", "of peak"]]
  rows[0] += [column for word in words for column in (word, "quartiles")]
  for name, one in found.items():
    for side, values in one["sides"].items():
      rows.append([name, side, str(one["batch"]), f"{values['ms']:.1f}", f"{values['images per second']:.1f}",
                   f"{100 * values['of peak']:.0f} %"])
      for word in words:
        of = values.get(word)
        rows[-1] += [f"{of['median']:.2f}", f"{of['low']:.2f}-{of['high']:.2f}"] if of else ["", ""]
  print("\n" + timing.table(rows) + "\n", flush=True)


if __name__ == "__main__":
  sys.exit(main())
