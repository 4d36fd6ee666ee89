"""torchvision's and timm's networks at full size: their weights read, run and written back.

    pip install torch==2.13.0 && pip install --no-deps torchvision==0.28.0 timm==1.0.31
    pip install pyyaml huggingface_hub
    python benchmarks/check_published_layouts.py [NETWORK ...]

Each network is made by its library with random weights and random statistics and saved in one of the three
formats. `bionets_jax.weights.load` reads the file; it is told nothing but what keys and shapes cannot show.
Then, on the same images:

  eval, train  largest difference of the logits over the largest logit, both sides in float64; in training with
               batch statistics, without dropout and stochastic depth
  float32      the larger of the two, both sides in float32
  rounding     the same for PyTorch's float32 against its float64: what a hundred layers of norms with these
               weights make of rounding errors
  bytes        whether `to_layout` gives every tensor of the file again, to the bit

The images have odd sides and not the size that the networks are made for: strides, paddings and the pools
differ most there. Prints a table; exits with 1 if 'eval' or 'train' is above 1e-4, 'float32' above 1e-4 and
twice the rounding, or a byte differs. All networks take half an hour on two CPU cores and 8 GB of memory. The tests
compare narrow networks in the same way.
"""

import argparse
import functools
import os
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

try:
  import torch
except ModuleNotFoundError:
  sys.exit("error: PyTorch is missing, and these are PyTorch's networks: pip install torch==2.13.0")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "fixtures"))

from make_torch_fixtures import import_torchvision

torchvision = import_torchvision()  # before timm, which imports it too
import timm  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from bionets_jax.weights import to_layout  # noqa: E402
from bionets_jax.weights.loading import load  # noqa: E402

IMAGES = (8, 75, 90, 3)
TOLERANCE = 1e-4
FORMATS = ("zip.pth", "legacy.pth", "safetensors")

NO_DROPOUT = {"dropout": 0.0}
NO_DEPTH = NO_DROPOUT | {"drop_connect": 0.0}
# name: what `load` is told
NETWORKS = {
    f"torchvision/{name}": {} for name in (
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_64x4d",
        "wide_resnet50_2")}  # fmt: skip
NETWORKS |= {f"torchvision/vgg{depth}_bn": NO_DROPOUT for depth in (11, 13, 16, 19)}
NETWORKS |= {f"torchvision/efficientnet_b{i}": NO_DEPTH for i in range(8)}
NETWORKS |= {f"timm/{name}": {} for name in (
    "resnet18", "resnet50", "seresnet50", "seresnext50_32x4d", "mobilenetv1_100", "mobilenetv1_125")}
NETWORKS |= {f"timm/tf_efficientnet_b{i}": NO_DEPTH | {"flavour": "tf"} for i in range(4)}
NETWORKS |= {f"timm/efficientnet_b{i}": NO_DEPTH | {"flavour": "torchvision"} for i in (0, 2)}


def make(name, images):
  """The library's network, with statistics near those that its layers see in evaluation."""
  library, name = name.split("/")
  net = getattr(torchvision, name)() if library == "torchvision" else timm.create_model(name)
  handles = []
  for module in net.modules():
    if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
      module.p = 0.0
    elif isinstance(module, nn.BatchNorm2d):
      nn.init.uniform_(module.weight, 0.5, 1.5)
      nn.init.normal_(module.bias, std=0.1)
      handles.append(module.register_forward_pre_hook(_set_statistics))
    elif isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.bias is not None):
      nn.init.normal_(module.bias, std=0.1)
  with torch.no_grad():
    net.eval()(images)
  for handle in handles:
    handle.remove()
  return net


def _set_statistics(module, inputs):
  var, mean = torch.var_mean(inputs[0], (0, 2, 3))
  module.running_mean = mean + 0.1 * var.sqrt() * torch.randn_like(mean)
  module.running_var = var * (0.5 + torch.rand_like(var))
  module.num_batches_tracked.random_(1, 10**6)


def save(path, state, kind):
  if kind == "safetensors":
    save_file(state, path)
  else:
    torch.save(state, path, _use_new_zipfile_serialization=kind.startswith("zip"))


def difference(ours, theirs):
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def check(name, kind, folder):
  """(layout, {column: difference}, keys whose bytes differ)."""
  images = np.random.default_rng(0).standard_normal(IMAGES, np.float32)
  theirs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  net = make(name, theirs)
  state = {key: value.clone() for key, value in net.state_dict().items()}
  path = os.path.join(folder, f"weights.{kind}")
  save(path, state, kind)
  logits = {}  # of each precision: in evaluation, in training
  with torch.no_grad():
    for dtype in (torch.float32, torch.float64):
      net.load_state_dict(state)
      net, x = net.to(dtype), theirs.to(dtype)
      logits[dtype] = net.eval()(x).numpy(), net.train()(x).numpy()
  del net
  loaded = load(path, **NETWORKS[name])
  os.remove(path)

  @functools.partial(jax.jit, static_argnums=2)
  def forward(variables, images, train):
    rngs = {"dropout": jax.random.key(0)}
    return loaded.model.apply(variables, images, train=train, mutable=["batch_stats"], rngs=rngs)[0]

  def run(dtype):
    variables, x = jax.tree.map(lambda leaf: leaf.astype(dtype), (loaded.variables, images))
    return [np.asarray(forward(variables, x, train)) for train in (False, True)]

  single = run(np.float32)
  with jax.enable_x64(True):
    double = run(np.float64)
  exact = logits[torch.float64]
  evaluation, training = map(difference, double, exact)
  errors = {"eval": evaluation, "train": training,
            "float32": max(map(difference, single, logits[torch.float32])),
            "rounding": max(map(difference, logits[torch.float32], exact))}
  back = to_layout(loaded.variables, loaded.layout, loaded.extras)
  differ = sorted(state.keys() ^ back.keys())
  for key, value in state.items():
    value = value.numpy()
    if key in back and (back[key].dtype, back[key].shape, back[key].tobytes()) != (
        value.dtype, value.shape, value.tobytes()):  # fmt: skip
      differ.append(key)
  return loaded.layout, errors, differ


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}; all by default")
  wanted = parser.parse_args().networks or list(NETWORKS)
  if unknown := [name for name in wanted if name not in NETWORKS]:
    parser.error(f"unknown network {unknown[0]!r}; there are {', '.join(NETWORKS)}")
  torch.manual_seed(0)
  failed = 0
  columns = "".join(f"{column:>10}" for column in ("eval", "train", "float32", "rounding"))
  print(f"{'network':30}{'file':12}{'layout':26}{columns}  bytes")
  with tempfile.TemporaryDirectory() as folder:
    for i, name in enumerate(wanted):
      kind, start = FORMATS[i % len(FORMATS)], time.monotonic()
      layout, errors, differ = check(name, kind, folder)
      good = max(errors["eval"], errors["train"]) <= TOLERANCE and not differ
      good = good and errors["float32"] <= max(TOLERANCE, 2 * errors["rounding"])
      failed += not good
      print(f"{name:30}{kind:12}{layout:26}{''.join(f'{value:10.1e}' for value in errors.values())}  "
            f"{'equal' if not differ else f'{len(differ)} differ: {differ[:3]}'}"
            f"{'' if good else '  FAILED'}  ({time.monotonic() - start:.0f} s)", flush=True)
      jax.clear_caches()
  print(f"{len(wanted) - failed} of {len(wanted)} networks agree")
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
