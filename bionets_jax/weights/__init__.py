"""Other people's checkpoints: reading them without their framework, and writing them back.

    template = jax.eval_shape(model.init, rng, images)
    pretrained = load_pretrained('resnet50-11ad3fa6.pth', template, model_name='resnet50')
    logits = model.apply(pretrained.variables, images)

torch is never imported; .safetensors files need the library of that name.
"""

from bionets_jax.weights.call_order import call_order, list_in_call_order, load_in_call_order
from bionets_jax.weights.files import read_tensors
from bionets_jax.weights.layouts import to_torch_layout
from bionets_jax.weights.preprocessing import Preprocessing
from bionets_jax.weights.pretrained import Pretrained, load_pretrained
from bionets_jax.weights.torch_file import TorchFileError, read_torch_file

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
