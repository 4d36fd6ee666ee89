"""Other people's checkpoints: reading them without their framework, and writing them back.

    template = jax.eval_shape(model.init, rng, images)
    pretrained = load_pretrained('resnet50-11ad3fa6.pth', template, model_name='resnet50')
    logits = model.apply(pretrained.variables, images)

Needs NumPy only (and safetensors for .safetensors files); torch is never imported.
"""

from bionets_jax.weights.files import read_tensors
from bionets_jax.weights.layouts import to_torch_layout
from bionets_jax.weights.preprocessing import Preprocessing
from bionets_jax.weights.pretrained import Pretrained, load_pretrained
from bionets_jax.weights.torch_file import TorchFileError, read_torch_file

__all__ = [
    "Preprocessing",
    "Pretrained",
    "TorchFileError",
    "load_pretrained",
    "read_tensors",
    "read_torch_file",
    "to_torch_layout",
]
