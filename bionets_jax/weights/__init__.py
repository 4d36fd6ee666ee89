"""Other people's checkpoints: reading them without their framework, and writing them back.

    template = jax.eval_shape(model.init, rng, images)
    pretrained = load_pretrained('resnet50-11ad3fa6.pth', template, model=model)
    logits = model.apply(pretrained.variables, images)

torch is never imported, and reading a file takes NumPy only (and safetensors for files of that kind).
"""

import importlib
from typing import TYPE_CHECKING

from bionets_jax.weights.files import read_tensors
from bionets_jax.weights.layouts import to_torch_layout
from bionets_jax.weights.preprocessing import Preprocessing
from bionets_jax.weights.pretrained import Pretrained, load_pretrained
from bionets_jax.weights.torch_file import TorchFileError, read_torch_file

if TYPE_CHECKING:
  from bionets_jax.weights.execution import call_order, list_in_call_order, load_in_call_order

__all__ = [
    "Preprocessing",
    "Pretrained",
    "TorchFileError",
    "call_order",
    "list_in_call_order",
    "load_in_call_order",
    "load_pretrained",
    "read_tensors",
    "read_torch_file",
    "to_torch_layout",
]

_IN_CALL_ORDER = ("call_order", "list_in_call_order", "load_in_call_order")


def __getattr__(name):
  # These trace a network, and so need jax and flax; who only reads files does not wait for them.
  if name not in _IN_CALL_ORDER:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
  module = importlib.import_module("bionets_jax.weights.execution")
  globals().update({key: getattr(module, key) for key in _IN_CALL_ORDER})
  return globals()[name]
