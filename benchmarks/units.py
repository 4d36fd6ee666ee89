"""The three units beside PyTorch's and beside the plain layers they stand for: forward, and with gradients.

    pip install torch
    python benchmarks/units.py [--only=ic|fp|kconv] [--shapes=TEXT] [--rounds=15] [--compile] [--json=FILE]

Every candidate's outputs and gradients are compared with PyTorch's in float64 first; one that is off ends the
script. Then all candidates of a shape are timed in one interleaved run. Ratios are medians of the ratios
within a round, with their quartiles; times are medians and mean something on this machine only.

Candidates: 'ours' is the public function of `bionets_jax.ops`; 'autodiff' the same with
`ops.plain_derivatives()`; 'plain' the layer that the unit stands for (convolution, dense 1x1); 'torch' the
obvious form in PyTorch, channels last; 'compiled' the same under torch.compile.

What it does not show: EfficientNet's blocks (benchmarks/mbconv.py), whole networks (benchmarks/networks.py), and
machines other than this one. On a GPU the candidates run in bfloat16 (torch: the same type, no autocast).
"""

import argparse
import functools
import os
import pathlib
import statistics
import sys

# Idle OpenMP threads of torch would spin into the other side's turn. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import timing

try:
  import torch
except ModuleNotFoundError:
  sys.exit("error: PyTorch is missing, and this comparison needs it: pip install torch==2.13.0")
import torch.nn.functional as F

from bionets_jax import ops
from bionets_jax.layers.grouped_pointwise import group_count

# Of the norm, in float32. A hinge that rounding puts on the other side of 0 changes one gradient by as much as its size:
# a few of them among 400,000 are 4e-3 of the norm, in PyTorch as here.
TOLERANCE = 1e-2
# batch, side, channels, filters, stride
IC_SHAPES = {
    "56x56x64": (8, 56, 64, 64, 1), "28x28x128": (16, 28, 128, 128, 1), "14x14x256": (32, 14, 256, 256, 1),
    "7x7x512": (32, 7, 512, 512, 1), "56>28x128": (4, 56, 128, 128, 2), "28>14x256": (8, 28, 256, 256, 2),
    "14>7x512": (16, 14, 512, 512, 2), "32x32x16": (64, 32, 16, 16, 1), "16x16x32": (64, 16, 32, 32, 1),
    "8x8x64": (128, 8, 64, 64, 1)}  # fmt: skip
# batch, side, channels, stride
FP_SHAPES = {
    "8x8x128": (128, 8, 128, 1), "32x32x32": (32, 32, 32, 1), "16x16x64": (64, 16, 64, 1), "56x56x64": (8, 56, 64, 1),
    "28x28x256": (8, 28, 256, 1), "14x14x512": (8, 14, 512, 1), "7x7x512": (32, 7, 512, 1),
    "16>8x128": (64, 16, 128, 2)}  # fmt: skip
# batch, side, channels in, channels out: kEffNet-B0's
KCONV_SHAPES = {
    "480>80": (32, 14, 480, 80), "672>112": (32, 14, 672, 112), "1152>192": (32, 7, 1152, 192),
    "1152>320": (32, 7, 1152, 320), "80>480": (32, 14, 80, 480), "112>672": (32, 14, 112, 672),
    "192>1152": (32, 7, 192, 1152), "320>1280": (32, 7, 320, 1280)}  # fmt: skip


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", choices=tuple(UNITS), action="append", default=[])
  parser.add_argument("--shapes", default="", metavar="TEXT", help="only the shapes with this in their name")
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--compile", action="store_true", help="torch.compile too (takes minutes)")
  parser.add_argument("--json", metavar="FILE")
  options = parser.parse_args()
  content = {"machine": timing.machine(), "rounds": options.rounds, "units": {}}
  print(", ".join(f"{key} {value}" for key, value in content["machine"].items()))
  for name in options.only or UNITS:
    make, shapes = UNITS[name]
    found = {shape: measure(make(*size), options, f"{name} {shape}")
             for shape, size in shapes.items() if options.shapes in shape}
    content["units"][name] = found
    show(name, found)
  if options.json:
    timing.write(options.json, content)
  return 0


def measure(case, options, name: str):
  """{'forward' and 'backward': {candidate: {'ms', 'vs torch', 'vs plain'}}} of one shape."""
  functions, arrays = case
  reference = torch_results(functions["torch"], arrays, torch.float64)
  found = {"error": 0.0}
  for mode in ("forward", "backward"):
    calls = {key: ours(function, arrays, mode) for key, function in functions.items() if key != "torch"}
    calls["torch"] = theirs(functions["torch"], arrays, mode)
    if options.compile:
      torch._dynamo.reset()  # it gives up a function after eight shapes
      calls["compiled"] = theirs(torch.compile(functions["torch"], dynamic=False), arrays, mode)
    want = reference[:1] if mode == "forward" else reference
    results = {key: to_numpy(call()) for key, call in calls.items() if key != "plain"}
    found["error"] = max(found["error"], timing.check(name, results, want, TOLERANCE))
    seconds = timing.interleaved(calls, options.rounds, timing.wait_for)
    found[mode] = {key: {
        "ms": 1e3 * statistics.median(seconds[key]), **{
            f"vs {other}": timing.ratio(seconds, key, other) for other in ("torch", "compiled", "plain")
            if other in calls}} for key in calls}
  return found


def show(name: str, found) -> None:
  for mode in ("forward", "backward"):
    rows = [[f"{name}, {'with gradients' if mode == 'backward' else mode}", "ours ms", "vs plain", "vs torch",
             "quartiles", "vs compiled", "autodiff vs ours", "torch ms"]]
    for shape, values in found.items():
      one, torch_one, plain = (values[mode][key] for key in ("ours", "torch", "autodiff"))
      spread, compiled = one["vs torch"], one.get("vs compiled")
      rows.append([
          shape, f"{one['ms']:.2f}", f"{one['vs plain']['median']:.2f}", f"{spread['median']:.2f}",
          f"{spread['low']:.2f}-{spread['high']:.2f}",
          f"{compiled['median']:.2f}" if compiled else "", f"{plain['ms'] / one['ms']:.2f}",
          f"{torch_one['ms']:.2f}"])
    print("\n" + timing.table(rows), flush=True)


def ours(function, arrays, mode):
  """A call without arguments of a JAX function of arrays, or of its gradients for a fixed cotangent."""
  x = [jnp.asarray(a) for a in arrays]
  if mode == "forward":
    run = jax.jit(lambda *x: [function(*x)], compiler_options=ops.compiler_options())
    return lambda: run(*x)
  g = jnp.asarray(cotangent(jax.eval_shape(function, *x).shape))
  def both(g, *x):  # the output too, or the forward pass of a linear layer would not be made at all
    y, pull = jax.vjp(function, *x)
    return [y, *pull(g)]
  run = jax.jit(both, compiler_options=ops.compiler_options())
  return lambda: run(g, *x)


def theirs(function, arrays, mode):
  """The same of a torch function."""
  x = [to_torch(a, torch.float32).requires_grad_(mode == "backward") for a in arrays]
  if mode == "forward":
    def forward():
      with torch.no_grad():
        return [function(*x)]
    return forward
  with torch.no_grad():
    g = to_torch(cotangent(nhwc_shape(function(*x))), torch.float32)
  def both():
    y = function(*x)
    return [y, *torch.autograd.grad(y, x, g)]
  return both


def torch_results(function, arrays, dtype):
  """[output, gradient of every array], as NumPy arrays in our axes."""
  x = [to_torch(a, dtype).requires_grad_() for a in arrays]
  y = function(*x)
  g = to_torch(cotangent(nhwc_shape(y)), dtype)
  return to_numpy([y, *torch.autograd.grad(y, x, g)])


@functools.cache
def cotangent(shape):
  return np.random.default_rng(1).standard_normal(shape, np.float32)


def nhwc_shape(y):
  return (y.shape[0], *y.shape[2:], y.shape[1])


def to_torch(array, dtype):
  """NHWC as NCHW in channels-last memory; HWIO as OIHW; anything else as it is."""
  tensor = torch.from_numpy(np.ascontiguousarray(array)).to(dtype)
  if tensor.ndim == 4:
    is_kernel = tensor.shape[0] == tensor.shape[1] and tensor.shape[0] in (1, 3, 5)
    tensor = tensor.permute(3, 2, 0, 1).contiguous() if is_kernel else tensor.permute(0, 3, 1, 2)
  return tensor.detach()


def to_numpy(results):
  """Torch's results in our axes; ours as they are."""
  def one(value):
    if not isinstance(value, torch.Tensor):
      return np.asarray(value)
    value = value.detach()
    if value.ndim == 4:
      is_kernel = value.shape[2] == value.shape[3] and value.shape[2] in (1, 3, 5)
      value = value.permute(2, 3, 1, 0) if is_kernel else value.permute(0, 2, 3, 1)
    return value.numpy()
  return [one(value) for value in results]


def plainly(function):
  def run(*x):
    with ops.plain_derivatives():
      return function(*x)
  return run


def ic_case(n, side, channels, features, stride):
  r = np.random.default_rng(0)
  x = r.standard_normal((n, side, side, channels), np.float32)
  kernel = r.standard_normal((3, 3, channels, features), np.float32) / np.sqrt(9 * channels)
  adjust = r.standard_normal((1, 1, channels, features), np.float32) / np.sqrt(9 * channels)
  alpha = np.float32(r.uniform(0.5, 1, features))
  pads = ((1, 1), (1, 1))

  def layer(x, kernel, adjust, alpha):
    return ops.ic_conv(x, kernel, adjust[0, 0], alpha=alpha, strides=stride, padding=pads)

  def plain(x, kernel, adjust, alpha):
    return ops.conv(x, kernel, strides=(stride,) * 2, padding=pads)

  def torchs(x, kernel, adjust, alpha):
    u = F.conv2d(x, kernel, stride=stride, padding=1)
    s = F.avg_pool2d(x, 3, stride, 1, divisor_override=1)
    return u + alpha[:, None, None] * F.relu(u - F.conv2d(s, adjust))

  return {"ours": layer, "autodiff": plainly(layer), "plain": plain, "torch": torchs}, (x, kernel, adjust, alpha)


def fp_case(n, side, channels, stride):
  r = np.random.default_rng(0)
  x = r.standard_normal((n, side, side, channels), np.float32)
  a, b = (r.standard_normal((3, 3, 1, channels), np.float32) / 3 for _ in range(2))

  def pair(x, a, b):
    return ops.paired_depthwise_product(x, a, b, strides=(stride,) * 2)

  def single(x, a, b):
    return ops.depthwise_conv(x, a, strides=(stride,) * 2, padding=((1, 1), (1, 1)))

  def torchs(x, a, b):
    filters = functools.partial(F.conv2d, stride=stride, padding=1, groups=channels)
    return filters(x, a) * filters(x, b)

  return {"ours": pair, "autodiff": plainly(pair), "plain": single, "torch": torchs}, (x, a, b)


def kconv_case(n, side, channels, features):
  r = np.random.default_rng(0)
  groups = group_count(channels, features)
  x = r.standard_normal((n, side, side, channels), np.float32)
  first = r.standard_normal((1, 1, channels // groups, features), np.float32) / np.sqrt(channels // groups)
  second = r.standard_normal((1, 1, features // groups, features), np.float32) / np.sqrt(features // groups)
  both = channels >= features

  def kconv(x, first, second):
    kept = ops.grouped_pointwise(x, first[0, 0], groups=groups)
    mixed = ops.interleave(kept, groups)
    return kept + ops.grouped_pointwise(mixed, second[0, 0], groups=groups) if both else mixed + 0 * second.sum()

  def dense(x, first, second):
    rows = jnp.tile(first[0, 0], (groups, 1))
    return ops.conv(x, rows[None, None], strides=(1, 1), padding=((0, 0), (0, 0)))

  def torchs(x, first, second):
    kept = F.conv2d(x, first, groups=groups)
    mixed = kept.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
    return kept + F.conv2d(mixed, second, groups=groups) if both else mixed + 0 * second.sum()

  return {"ours": kconv, "autodiff": plainly(kconv), "plain": dense, "torch": torchs}, (x, first, second)


UNITS = {
    "ic": (ic_case, IC_SHAPES),
    "fp": (fp_case, FP_SHAPES),
    "kconv": (kconv_case, KCONV_SHAPES),
}

if __name__ == "__main__":
  sys.exit(main())
