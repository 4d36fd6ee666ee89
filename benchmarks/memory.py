"""Bytes that a training step needs: networks of our units beside the plain ones, with and without remat.

    pip install torch
    python benchmarks/memory.py [--only=NAME ...] [--batch=N] [--json=FILE]

Nothing is timed and no step of ours is made. Ours is what XLA plans for the trainer's compiled step
(parameters, statistics, momentum, batch, temporaries), as `launch.py --mode=largest_batch` reads it, without
and with config.remat='blocks'. PyTorch's is the eager step (forward, loss, backward, SGD with momentum) of
the module that `python -m bionets_jax.weights` writes for the same network: on a GPU the allocator's peak; on
a CPU the most bytes that its tensors held at once, seen on the meta device, where nothing is computed. What
PyTorch's operations take for themselves while they run is in the first number and not in the second.

On a CPU the plan is that of XLA for this CPU, in float32: other layouts, other temporaries than on a GPU.
XLA_FLAGS=--xla_backend_optimization_level=0 makes the compilation quicker and leaves the plan as it is.
"""

import argparse
import json
import os
import weakref
from typing import Any

# Before jax and torch are, since it sets how torch's threads wait.
import twins  # isort: split

import jax
import timing
import torch.nn.functional as F
from networks import NETWORKS, SIDES
from torch.utils._python_dispatch import TorchDispatchMode
from twins import DEVICE, torch

from bionets_jax.training.device_memory import mebibytes, memory_need
from bionets_jax.training.learning import model_options
from bionets_jax.training.program import compile_from_shapes
from bionets_jax.training.setup import make_setup
from bionets_jax.weights import Preprocessing
from configs import common

MOMENTUM = 0.9


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", choices=tuple(NETWORKS), action="append", default=[], metavar="NAME",
                      help=f"one of {', '.join(NETWORKS)}; may be given several times")
  parser.add_argument("--batch", type=timing.positive, default=0, help="images of a step")
  parser.add_argument("--json", metavar="FILE", help="what is there already of other networks stays")
  options = parser.parse_args()
  content = {"machine": timing.machine() | {"xla_flags": os.environ.get("XLA_FLAGS", "")}, "networks": {}}
  print(", ".join(f"{key} {value}" for key, value in content["machine"].items()), flush=True)
  if options.json and os.path.exists(options.json):
    with open(options.json, encoding="utf-8") as file:
      content["networks"] = json.load(file)["networks"]
  for name in options.only or NETWORKS:
    content["networks"][name] = measure(name, options.batch or NETWORKS[name].batch[DEVICE == "cuda"])
    if options.json:
      timing.write(options.json, content)
  print(show(content["networks"]))
  return 0


def measure(name: str, batch: int) -> dict[str, Any]:
  """{'family', 'batch', 'ours', 'remat', 'torch': bytes} of a step of `batch` images."""
  network = NETWORKS[name]
  found: dict[str, Any] = {"family": network.family, "batch": batch}
  for key, remat in (("ours", ""), ("remat", "blocks")):
    config = getattr(common, network.images)(name, network.options)
    config.data.name, config.data.workers, config.remat = f"generated/{config.data.name}", 0, remat
    config.batch_size = 8  # of the made-up set, which is small; the step's own is below
    setup = make_setup(config)
    found[key] = memory_need(compile_from_shapes(config, setup, batch)).total
    print(f"{name} {key}: {mebibytes(found[key])}", flush=True)
  side, num_classes = SIDES[network.images]
  source = twins.import_source(name, model_options(config), num_classes, (side, side, 3), Preprocessing(
      config.data.mean, config.data.std, image_size=side, resize=side))
  found["torch"] = torch_peak(source.create(), batch, side, num_classes)
  print(f"{name} torch: {mebibytes(found['torch'])}", flush=True)
  return found


def torch_peak(net: torch.nn.Module, batch: int, side: int, num_classes: int) -> int:
  """Most bytes at once in the second step; the first one makes the momentum."""
  device = "cuda" if DEVICE == "cuda" else "meta"
  live = _Live()
  with live:
    net = net.train().to(device, memory_format=torch.channels_last)
    images = torch.zeros(batch, side, side, 3, dtype=torch.uint8, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=MOMENTUM)
    live.include(net.parameters(), net.buffers())
    for _ in range(2):
      live.peak = live.bytes
      if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
      optimizer.zero_grad(set_to_none=True)
      with torch.autocast(DEVICE, torch.bfloat16, enabled=device == "cuda"):
        logits = net((images / 255).permute(0, 3, 1, 2))
      F.cross_entropy(logits.float(), labels).backward()
      optimizer.step()
  return torch.cuda.max_memory_allocated() if device == "cuda" else live.peak


class _Live(TorchDispatchMode):
  """Sums the bytes of the storages that are alive.

  Attributes:
    bytes: now.
    peak: most of them since it was set.
  """

  def __init__(self):
    super().__init__()
    self.bytes = self.peak = 0
    self._known: weakref.WeakSet = weakref.WeakSet()

  def include(self, *tensors: Any) -> None:
    for tensor in jax.tree.leaves([list(some) for some in tensors]):
      self._note(tensor)

  def __torch_dispatch__(self, func, types, args=(), kwargs=None):
    out = func(*args, **(kwargs or {}))
    for leaf in jax.tree.leaves(out):
      if isinstance(leaf, torch.Tensor):
        self._note(leaf)
    return out

  def _note(self, tensor: torch.Tensor) -> None:
    storage = tensor.untyped_storage()
    if storage in self._known or tensor.device.type == "cpu":
      return
    self._known.add(storage)
    self.bytes += storage.nbytes()
    self.peak = max(self.peak, self.bytes)
    weakref.finalize(storage, self._forget, storage.nbytes())

  def _forget(self, size: int) -> None:
    self.bytes -= size


def show(found: dict[str, Any]) -> str:
  """A table; the ratios are to the first network of the family, on the same side."""
  rows = [["MiB of a step", "batch", "ours", "vs plain", "with remat", "vs without", "torch", "vs plain",
           "ours vs torch"]]
  for name, one in found.items():
    plain = next(other for other in found.values() if other["family"] == one["family"])
    rows.append([
        name, str(one["batch"]), f"{one['ours'] / 2**20:,.0f}", f"{one['ours'] / plain['ours']:.2f}",
        f"{one['remat'] / 2**20:,.0f}", f"{one['remat'] / one['ours']:.2f}", f"{one['torch'] / 2**20:,.0f}",
        f"{one['torch'] / plain['torch']:.2f}", f"{one['ours'] / one['torch']:.2f}"])
  return "\n" + timing.table(rows)


if __name__ == "__main__":
  raise SystemExit(main())
