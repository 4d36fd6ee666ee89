"""The MBConv block in training mode beside PyTorch's, with dense and with grouped 1x1 convolutions.

    pip install torch
    python benchmarks/mbconv.py [--shapes=TEXT] [--batch=N] [--rounds=15] [--compile] [--json=FILE]

The block is EfficientNet-B0's as the network has it ('plain'), and kEffNet-B0's ('k'): expand 1x1, depthwise
k x k, squeeze-and-excitation, project 1x1, each with its batch norm by the batch's statistics and its swish.
PyTorch's is the module that `python -m bionets_jax.weights` writes for these networks, channels last, with
the same weights. Output and gradients, of the input and of every parameter, are compared with PyTorch's in
float64 first; one that is off by more than rounding, which is measured by PyTorch's own, ends the script.
Then all candidates of a shape are timed in one interleaved run, forward and with gradients. Ratios are
medians of the ratios within a round, with their quartiles; times are medians and mean something on this
machine only. On a GPU both compute in bfloat16, PyTorch under autocast.
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
import timing
from train_steps import moved
from twins import DEVICE, torch

from bionets_jax.layers import BatchNorm
from bionets_jax.models import create_model
from bionets_jax.models.efficientnet import MBConv
from bionets_jax.ops import compiler_options
from bionets_jax.weights import Preprocessing

EXPAND = 6
TOLERANCE = 2e-2
FLOOR = 1e-2  # of the norm of all results, for gradients that are 0 but for rounding
STILL = {"dropout": 0.0, "drop_connect": 0.0}  # what is random cannot be compared
BLOCKS = {"plain": "efficientnet_b0", "k": "keffnet_b0"}


class Shape(NamedTuple):
  """A block of B0: side and channels of its input, its features, kernel and stride; a batch for a CPU."""

  side: int
  channels: int
  features: int
  kernel: int
  stride: int
  batch: int = 32


SHAPES = {
    "56x56x24": Shape(56, 24, 24, 3, 1, 8), "28x28x40": Shape(28, 40, 40, 5, 1, 16),
    "14x14x80": Shape(14, 80, 80, 3, 1), "14x14x112": Shape(14, 112, 112, 5, 1),
    "7x7x192": Shape(7, 192, 192, 5, 1), "7x7x192>320": Shape(7, 192, 320, 3, 1),
    "28>14x40>80": Shape(28, 40, 80, 3, 2, 16), "14>7x112>192": Shape(14, 112, 192, 5, 2)}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--shapes", default="", metavar="TEXT", help="only the shapes with this in their name")
  parser.add_argument("--batch", type=timing.positive, default=0,
                      help="images; default 8 to 32 on a CPU, 256 on a GPU")
  parser.add_argument("--rounds", type=timing.positive, default=15)
  parser.add_argument("--compile", action="store_true", help="torch.compile too (takes minutes)")
  parser.add_argument("--json", metavar="FILE")
  options = parser.parse_args()
  content: dict[str, Any] = {"machine": timing.machine(), "rounds": options.rounds, "shapes": {}}
  print(", ".join(f"{key} {value}" for key, value in content["machine"].items()), flush=True)
  for name, shape in SHAPES.items():
    if options.shapes in name:
      batch = options.batch or (256 if DEVICE == "cuda" else shape.batch)
      content["shapes"][name] = found = measure(name, shape, batch, options)
      show(name, found)
  if options.json:
    timing.write(options.json, content)
  return 0


def measure(name: str, shape: Shape, batch: int, options: argparse.Namespace) -> dict[str, Any]:
  """{'batch', 'error', 'forward' and 'backward': {candidate: {'ms', 'vs torch', 'vs plain'}}}."""
  calls: dict[str, dict[str, Any]] = {"forward": {}, "backward": {}}
  error: dict[str, float] = {}
  torch._dynamo.reset()  # it gives up a function after eight shapes
  for kind in BLOCKS:
    block, source, x, g, variables = make(kind, shape, batch)
    theirs = functools.partial(TorchBlock, source, shape, variables, x, g)
    reference = theirs(dtype=torch.float64).results()
    sides = {"torch": theirs(), "ours": OurBlock(block, variables, x, g, source)}
    if options.compile:
      sides["compiled"] = theirs(compiled=True)
    floor = FLOOR * float(np.sqrt(sum(np.square(array).sum() for array in reference[1:])))
    for side, one in sides.items():  # PyTorch first: what it is off by is rounding, and twice that is allowed
      allowed = np.inf if side == "torch" else max(TOLERANCE, 2 * error["torch"])
      off = timing.check(f"{name} {kind}", {side: one.results()}, reference, allowed, floor)
      error[side] = max(error.get(side, 0.0), off)
      calls["forward"][f"{kind} {side}"] = one.forward
      calls["backward"][f"{kind} {side}"] = one.backward

  found: dict[str, Any] = {"batch": batch, "error": error}
  for mode, candidates in calls.items():
    seconds = timing.interleaved(candidates, options.rounds, timing.wait_for)
    found[mode] = {}
    for key in candidates:
      kind, side = key.split()
      found[mode][key] = {"ms": 1e3 * statistics.median(seconds[key])}
      for word, other in (("vs torch", f"{kind} torch"), ("vs compiled", f"{kind} compiled"),
                          ("vs plain", f"plain {side}")):
        if other != key and other in candidates:
          found[mode][key][word] = timing.ratio(seconds, key, other)
  return found


def make(kind: str, shape: Shape, batch: int) -> tuple[MBConv, Any, np.ndarray, np.ndarray, Any]:
  """(our block, PyTorch's source, input, cotangent, variables)."""
  network = create_model(BLOCKS[kind], **STILL)
  epsilon, momentum = network.norm_options()
  dtype = jnp.bfloat16 if DEVICE == "cuda" else jnp.float32
  block = MBConv(
      shape.features, shape.kernel, EXPAND, shape.stride, conv=network.conv, pointwise=network.pointwise,
      pair=None, drop_rate=0.0, train=True, pointwise_init=network.pointwise_init, dtype=dtype,
      padding=((shape.kernel // 2 - (shape.stride > 1), shape.kernel // 2),) * 2,
      norm=functools.partial(
          BatchNorm, use_running_average=False, epsilon=epsilon, momentum=momentum, dtype=dtype))
  random = np.random.default_rng(0)
  x = random.standard_normal((batch, shape.side, shape.side, shape.channels), np.float32)
  side = -(-shape.side // shape.stride)
  g = random.standard_normal((batch, side, side, shape.features), np.float32)
  variables = jax.jit(block.init)(jax.random.key(0), x[:2])
  variables = {**variables, "params": moved(variables["params"])}
  source = twins.import_source(BLOCKS[kind], STILL, 1000, (224, 224, 3), Preprocessing(
      (0.5,) * 3, (0.5,) * 3, image_size=224, resize=224))
  return block, source, x, g, jax.device_get(variables)


class OurBlock:
  """Our side: jitted calls without arguments."""

  def __init__(self, block: MBConv, variables: Any, x: np.ndarray, g: np.ndarray, source: Any):
    """`variables` of the block, x its input, g a cotangent of its output, both NHWC; `source`: see twins."""
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    self._source = source
    x, g = jnp.asarray(x, block.dtype), jnp.asarray(g, block.dtype)
    arguments = jax.device_put((x, params, rest))

    def apply(x, params, rest):
      return block.apply({"params": params, **rest}, x, mutable=list(rest))

    def gradients(x, params, rest, g):
      y, pull, rest = jax.vjp(lambda x, params: apply(x, params, rest), x, params, has_aux=True)
      return y, pull(g), rest

    options = dict(compiler_options=compiler_options())
    forward, backward = jax.jit(apply, **options), jax.jit(gradients, **options)
    self.forward = lambda: forward(*arguments)
    self.backward = lambda: backward(*arguments, g)

  def results(self) -> list[np.ndarray]:
    """[y, dx, gradient of every parameter by its path], images NHWC, filters as PyTorch has them."""
    y, (dx, params), _ = self.backward()
    return [*(np.asarray(a, np.float32) for a in (y, dx)), *twins.in_our_order(self._source, params)]


class TorchBlock:
  """PyTorch's side."""

  def __init__(self, source: Any, shape: Shape, variables: Any, x: np.ndarray, g: np.ndarray, *,
               dtype: torch.dtype = torch.float32, compiled: bool = False):
    """As `OurBlock`, computed in `dtype`; float32 on a GPU stands for autocast to bfloat16."""
    self._source = source
    net = source.MBConv(shape.channels, shape.features, shape.kernel, shape.stride, EXPAND)
    self._net = twins.give_weights(source, net, variables).to(dtype)
    self._call = torch.compile(self._net, dynamic=False) if compiled else self._net
    half = DEVICE == "cuda" and dtype == torch.float32
    self._autocast = torch.autocast(DEVICE, torch.bfloat16, enabled=half)
    self._x, self._g = (  # views: NHWC in memory is channels last
        torch.from_numpy(a).to(DEVICE, torch.bfloat16 if half else dtype).permute(0, 3, 1, 2) for a in (x, g))
    self._x.requires_grad_()

  def forward(self) -> torch.Tensor:
    with torch.no_grad(), self._autocast:
      return self._call(self._x)

  def backward(self) -> tuple[torch.Tensor, ...]:
    with self._autocast:
      y = self._call(self._x)
    return y.detach(), *torch.autograd.grad(y, (self._x, *self._net.parameters()), self._g)

  def results(self) -> list[np.ndarray]:
    y, dx, *gradients = self.backward()
    by_parameter = dict(zip(self._net.parameters(), gradients, strict=True))
    images = (a.permute(0, 2, 3, 1).cpu().double().numpy() for a in (y, dx))
    return [*images, *twins.by_our_names(self._source, self._net, by_parameter.get)]


def show(name: str, found: dict[str, Any]) -> None:
  rows = [[f"{name}, batch {found['batch']}", "", "ms",
           "vs torch", "quartiles", "vs compiled", "quartiles", "vs plain", "quartiles"]]
  for mode, word in (("forward", "forward"), ("backward", "with gradients")):
    for key, values in found[mode].items():
      rows.append([key, word, f"{values['ms']:.2f}"])
      for other in ("vs torch", "vs compiled", "vs plain"):
        of = values.get(other)
        rows[-1] += [f"{of['median']:.2f}", f"{of['low']:.2f}-{of['high']:.2f}"] if of else ["", ""]
  print("\n" + timing.table(rows), flush=True)


if __name__ == "__main__":
  sys.exit(main())
