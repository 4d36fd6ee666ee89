"""GPU kernels beside XLA's forms of the same operations: forward, and with gradients.

    python benchmarks/kernels.py [--only=NAME] [--dtype=bfloat16|float32] [--json=FILE]

Needs an NVIDIA GPU. Every form's results and gradients are compared with the plain form's in float64 first;
one that is off ends the script. Then the forms of a shape are timed in one interleaved run; a ratio is the
median of the ratios within a round, with quartiles. 'share' is that of the bandwidth of a copy, measured in
this run, which moving the bytes that the kernel needs at least (counted: see its module) would take: 1 is its
memory roofline.

Ends with lines for `WINS` in bionets_jax/ops/kernels/choice.py: the shapes on which the kernel was faster,
forward and backward together, in three rounds of four. They hold for the GPU that they were measured on.

Without a GPU `--interpret` runs the comparison alone, on small batches, and times nothing.
"""

import argparse
import functools
import pathlib
import statistics
import sys
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import timing

from bionets_jax import ops
from bionets_jax.layers.grouped_pointwise import group_count
from bionets_jax.ops.kernels import choice, grouped

ONES = ((1, 1), (1, 1))
# Of the norm: half precision rounds every result, float32 products have 10 bits of mantissa on tensor cores;
# and a hinge that rounding puts on the other side of 0 changes a gradient by as much as its size.
TOLERANCE = {"bfloat16": 5e-2, "float32": 1e-2}
# batch, side, channels, and: stride; extent of the window and stride; features; features and stride
PRODUCT = (
    (512, 8, 128, 1), (512, 32, 32, 1), (512, 16, 64, 1), (128, 56, 64, 1), (128, 28, 256, 1),
    (128, 14, 512, 1), (128, 7, 512, 1), (512, 16, 128, 2))
DEPTHWISE = (
    (128, 112, 32, 3, 1), (128, 112, 96, 3, 2), (128, 56, 144, 3, 1), (128, 56, 144, 5, 2),
    (128, 28, 240, 5, 1), (128, 28, 240, 3, 2), (128, 14, 480, 3, 1), (128, 14, 672, 5, 1),
    (128, 14, 672, 5, 2), (128, 7, 1152, 5, 1), (128, 7, 1152, 3, 1))
GROUPED = (
    (128, 14, 480, 80), (128, 14, 672, 112), (128, 7, 1152, 192), (128, 7, 1152, 320), (128, 14, 80, 480),
    (128, 14, 112, 672), (128, 7, 192, 1152), (128, 7, 320, 1280))
IC = (
    (128, 56, 64, 64, 1), (128, 28, 128, 128, 1), (128, 14, 256, 256, 1), (128, 7, 512, 512, 1),
    (128, 56, 128, 128, 2), (512, 32, 16, 16, 1), (512, 16, 32, 32, 1), (512, 8, 64, 64, 1))


class Case(NamedTuple):
  """Two forms of an operation and what they are run on.

  Attributes:
    kernel, plain: functions of the arrays; `kernel` of `interpret` as well.
    arrays: float32 arrays; the input first.
    key: of the shape in `choice.WINS`, without the dtype.
    bytes: (forward, with gradients) that the kernel has to move, for an element of one byte.
  """

  kernel: Any
  plain: Any
  arrays: list[np.ndarray]
  key: tuple
  bytes: tuple[float, float]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", choices=tuple(KERNELS), action="append", default=[])
  parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="bfloat16")
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--interpret", action="store_true", help="compare only, on any device")
  parser.add_argument("--json", metavar="FILE")
  options = parser.parse_args()
  if not options.interpret and jax.default_backend() != "gpu":
    sys.exit(f"error: JAX runs on '{jax.default_backend()}' here, and kernels on NVIDIA GPUs alone: "
             "pip install 'jax[cuda12]' where there is one, or compare with --interpret")
  content = {"machine": timing.machine(), "dtype": options.dtype, "rounds": options.rounds, "kernels": {}}
  print(", ".join(f"{key} {value}" for key, value in content["machine"].items()))
  wins = []
  for name in options.only or KERNELS:
    make, shapes = KERNELS[name]
    content["kernels"][name] = found = {}
    for size in shapes:
      label = " ".join(map(str, size))
      case = make(*((1, min(size[1], 8), *size[2:]) if options.interpret else size))
      found[label] = measure(case, options, f"{name} {label}")
      if not options.interpret and found[label]["gradients"]["ratio"]["high"] < 1:
        wins.append(f"{name}: ({options.dtype!r}, {', '.join(map(repr, case.key))}): {size[0]},")
    show(name, found, options.interpret)
  if not options.interpret:
    print("\nfor WINS:", *wins or ["nothing"], sep="\n  ")
    if options.json:
      timing.write(options.json, content)
  return 0


def measure(case: Case, options, name: str) -> dict[str, Any]:
  """The worst error, and of forward passes and of both: times, their ratio and the share of the roofline."""
  kernel = functools.partial(case.kernel, interpret=options.interpret)
  with jax.enable_x64(True), ops.plain_derivatives():
    wide = [np.asarray(jnp.asarray(a).astype(options.dtype), np.float64) for a in case.arrays]
    want = [np.asarray(a) for a in runner(case.plain, wide, "float64", True)()]
  forms = {"kernel": kernel, "xla": without(case.plain)}
  calls = {form: {key: runner(f, case.arrays, options.dtype, key == "gradients")
                  for key in ("forward", "gradients")} for form, f in forms.items()}
  found = {"error": timing.check(
      name, {form: call["gradients"]() for form, call in calls.items()}, want, TOLERANCE[options.dtype])}
  if options.interpret:
    return found
  size = jnp.dtype(options.dtype).itemsize
  for key, count in zip(("forward", "gradients"), case.bytes, strict=True):
    seconds = timing.interleaved(
        {form: call[key] for form, call in calls.items()}, options.rounds, timing.wait_for)
    median = {form: statistics.median(values) for form, values in seconds.items()}
    found[key] = {
        "ms": {form: 1e3 * value for form, value in median.items()},
        "ratio": timing.ratio(seconds, "kernel", "xla"),
        "share": count * size / bandwidth() / median["kernel"]}
  return found


def runner(function, arrays, dtype: str, gradients: bool):
  """A call without arguments: the results, and with them the gradients for fixed cotangents."""
  arrays = [jnp.asarray(a, dtype) for a in arrays]
  if not gradients:
    run = jax.jit(lambda *arrays: jax.tree.leaves(function(*arrays)))
    return lambda: run(*arrays)
  random = np.random.default_rng(1)
  g = jax.tree.map(lambda y: jnp.asarray(random.standard_normal(y.shape, np.float32), y.dtype),
                   jax.eval_shape(function, *arrays))

  @jax.jit
  def run(g, *arrays):
    y, pull = jax.vjp(function, *arrays)
    return jax.tree.leaves((y, pull(g)))

  return lambda: run(g, *arrays)


@functools.cache
def bandwidth() -> float:
  """Bytes a second that a copy of 512 MiB reads and writes."""
  x = jnp.zeros(2**27)
  copy = jax.jit(lambda x: x + 1)
  seconds = timing.interleaved({"copy": lambda: copy(x)}, 20, timing.wait_for)
  return 2 * x.nbytes / statistics.median(seconds["copy"])


def show(name: str, found: dict[str, Any], interpreted: bool) -> None:
  if interpreted:
    rows = [[name, "error"], *([label, f"{values['error']:.1e}"] for label, values in found.items())]
  else:
    head = ["xla ms", "ratio", "quartiles", "share"]
    rows = [[name, "kernel ms", *head, "+ gradients ms", *head]]
    for label, values in found.items():
      cells = [label]
      for key in ("forward", "gradients"):
        one = values[key]
        cells += [f"{one['ms']['kernel']:.3f}", f"{one['ms']['xla']:.3f}", f"{one['ratio']['median']:.2f}",
                  f"{one['ratio']['low']:.2f}-{one['ratio']['high']:.2f}", f"{one['share']:.2f}"]
      rows.append(cells)
  print("\n" + timing.table(rows), flush=True)


def chosen(operation):
  """One of `ops` with its kernels."""
  def run(*arrays, interpret):
    with choice.gpu_kernels("interpret" if interpret else "on"):
      return operation(*arrays)

  return run


def without(operation):
  """One of `ops` in XLA's form, whatever `WINS` says."""
  def run(*arrays):
    with choice.gpu_kernels("off"):
      return operation(*arrays)

  return run


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(scale)


def normalize_case(n, side, channels, stride) -> Case:
  where = dict(strides=(stride, stride), padding=ONES)
  kernels = [normal(3, 3, 1, channels, seed=seed, scale=1 / 3) for seed in (1, 2)]
  plain = functools.partial(ops.paired_depthwise_normalize, epsilon=1e-5, **where)
  e, out = n * side**2 * channels, n * (-(-side // stride))**2 * channels
  return Case(chosen(plain), plain,
              [normal(n, side, side, channels), *kernels], (side, side, channels, 3, 3, stride, stride),
              # products written; read and normalised; then both sums' reading of p and g
              (e + 3 * out, (e + 3 * out) + 2 * out + (2 * e + out)))


def product_case(n, side, channels, stride) -> Case:
  where = dict(strides=(stride, stride), padding=ONES)
  kernels = [normal(3, 3, 1, channels, seed=seed, scale=1 / 3) for seed in (1, 2)]
  e, out = n * side**2 * channels, n * (-(-side // stride))**2 * channels
  plain = functools.partial(ops.paired_depthwise_product, **where)
  return Case(chosen(plain), plain,
              [normal(n, side, side, channels), *kernels],
              (side, side, channels, 3, 3, stride, stride), (e + out, (e + out) + (2 * e + out)))


def depthwise_case(n, side, channels, extent, stride) -> Case:
  where = dict(strides=(stride, stride), padding=((extent // 2,) * 2,) * 2)
  e, out = n * side**2 * channels, n * (-(-side // stride))**2 * channels
  kernel = normal(extent, extent, 1, channels, seed=1, scale=1 / extent)
  plain = functools.partial(ops.depthwise_conv, **where)
  return Case(chosen(plain), plain, [normal(n, side, side, channels), kernel],
              (side, side, channels, extent, extent, stride, stride), (e + out, (e + out) + (2 * e + out)))


def grouped_case(n, side, channels, features) -> Case:
  groups = group_count(channels, features)

  def plain(x, kernel):
    return ops.interleave(ops.grouped_pointwise(x, kernel, groups=groups), groups)

  t = n * side**2
  return Case(functools.partial(grouped.grouped_pointwise, groups=groups, interleaved=True), plain,
              [normal(n, side, side, channels),
               normal(channels // groups, features, seed=1, scale=(groups / channels)**0.5)],
              (side, side, channels, features, groups),
              (t * (channels + features), t * (channels + features + 2 * channels + 3 * features)))


def ic_case(n, side, channels, features, stride) -> Case:
  where = dict(strides=(stride, stride), padding=ONES)
  out = n * (-(-side // stride))**2 * features
  e = n * side**2 * channels
  # The convolution's own reading and writing too: it is in both forms.
  scale = channels**-0.5 / 3
  plain = functools.partial(ops.ic_conv, **where)
  return Case(chosen(plain), plain,
              [normal(n, side, side, channels), normal(3, 3, channels, features, seed=1, scale=scale),
               normal(channels, features, seed=2, scale=scale)],
              (side, side, channels, features, 3, 3, stride, stride),
              (2 * e + 3 * out, (2 * e + 3 * out) + (5 * e + 4 * out)))


KERNELS = {
    "normalize": (normalize_case, PRODUCT), "product": (product_case, PRODUCT),
    "depthwise": (depthwise_case, DEPTHWISE),
    "grouped": (grouped_case, GROUPED), "ic": (ic_case, IC)}

if __name__ == "__main__":
  assert set(KERNELS) == set(choice.WINS)
  sys.exit(main())
