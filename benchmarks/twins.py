"""Networks of ours as PyTorch modules with the same weights.

A module is the text that `bionets_jax.weights.pytorch` writes for people who train on in PyTorch, imported.
"""

import importlib.util
import os
import pathlib
import sys
import tempfile
from collections.abc import Mapping
from types import ModuleType
from typing import Any

# Idle OpenMP threads of torch would spin into the other side's turn. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np

try:
  import torch
except ModuleNotFoundError:
  sys.exit("error: PyTorch is missing, and this comparison needs it: pip install torch==2.13.0")

from bionets_jax.weights import Preprocessing
from bionets_jax.weights.layouts import flatten
from bionets_jax.weights.pytorch import pytorch_source

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def import_source(
    name: str, options: Mapping[str, Any], num_classes: int, image_shape: tuple[int, int, int],
    preprocessing: Preprocessing,
) -> ModuleType:
  """What `pytorch_source` writes, as a Python module. Its file stays as long as the process."""
  folder = tempfile.TemporaryDirectory()
  path = pathlib.Path(folder.name) / "model.py"
  path.write_text(pytorch_source(name, options, num_classes, image_shape, preprocessing), encoding="utf-8")
  spec = importlib.util.spec_from_file_location(f"pytorch_{name}", path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # where torch.compile looks for it
  spec.loader.exec_module(module)
  module.folder = folder
  return module


def give_weights(source: ModuleType, net: torch.nn.Module, variables: Mapping[str, Any]) -> torch.nn.Module:
  """The module with our variables, in train mode, channels last, on the device.

  Args:
    source: of `import_source`.
    net: one of its modules.
    variables: collections of arrays, with the paths that the weight file of the module would have.

  Raises:
    KeyError: if the module has a tensor that the variables lack.
  """
  arrays = {"/".join(path): np.asarray(value) for path, value in flatten(jax.device_get(variables)).items()}
  state = net.state_dict()
  for key in state:
    if not key.endswith("num_batches_tracked"):
      name = source.file_key(net, key)
      state[key] = torch.from_numpy(source.to_pytorch(name, arrays[name]).copy())
  net.load_state_dict(state)
  return net.train().to(DEVICE, memory_format=torch.channels_last)


def in_our_order(source: ModuleType, tree: Mapping[str, Any]) -> list[np.ndarray]:
  """The leaves of a tree with the paths of `params` as PyTorch has their axes, sorted by path."""
  flat = {"/".join(("params", *path)): np.asarray(leaf)
          for path, leaf in flatten(jax.device_get(tree)).items()}
  return [source.to_pytorch(key, flat[key]) for key in sorted(flat)]


def by_our_names(source: ModuleType, net: torch.nn.Module, tensor_of: Any) -> list[np.ndarray]:
  """`tensor_of(parameter)` of each parameter as an array, sorted by the path that it has with us."""
  named = {source.file_key(net, key): tensor_of(parameter) for key, parameter in net.named_parameters()}
  return [named[key].detach().cpu().numpy() for key in sorted(named)]
