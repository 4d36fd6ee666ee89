"""Weights in and out: other libraries' checkpoints without their libraries, and ours for them.

    loaded = load('torchvision://ResNet50_Weights.IMAGENET1K_V1')   # or a file, a workdir, hf://timm/resnet50.tv_in1k
    logits = loaded.model.apply(loaded.variables, images)

    template = jax.eval_shape(model.init, rng, images)
    pretrained = load_pretrained('resnet50-11ad3fa6.pth', template, model=model)

Neither torch nor TensorFlow is imported; no file runs code. Reading one takes NumPy only, and for files of that
kind safetensors or h5py. `python -m bionets_jax.weights --help` is the command line.
"""

from typing import TYPE_CHECKING

from bionets_jax.late import late_attributes
from bionets_jax.weights.files import read_tensors
from bionets_jax.weights.layouts import to_layout
from bionets_jax.weights.preprocessing import Preprocessing
from bionets_jax.weights.pretrained import Pretrained, load_pretrained
from bionets_jax.weights.torch_file import TorchFileError, read_torch_file

if TYPE_CHECKING:
  from bionets_jax.weights.execution import call_order, list_in_call_order, load_in_call_order
  from bionets_jax.weights.loading import Loaded, load

__all__ = [
    "Loaded",
    "Preprocessing",
    "Pretrained",
    "TorchFileError",
    "call_order",
    "list_in_call_order",
    "load",
    "load_in_call_order",
    "load_pretrained",
    "read_tensors",
    "read_torch_file",
    "to_layout",
]

# These make or trace a network, and so need jax and flax; who only reads files does not wait for them.
_LATE = {
    **dict.fromkeys(("call_order", "list_in_call_order", "load_in_call_order"), "bionets_jax.weights.execution"),
    **dict.fromkeys(("Loaded", "load"), "bionets_jax.weights.loading"),
}
__getattr__ = late_attributes(__name__, _LATE, __all__)
