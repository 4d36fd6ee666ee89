"""What every layer of a PyTorch or Keras network gives, for `python -m bionets_jax.weights check --report`.

    python record_activations.py torchvision:resnet50 reference.npz --weights=resnet50-11ad3fa6.pth
    python record_activations.py timm:tf_efficientnet_b0 reference.npz --weights=model.safetensors
    python record_activations.py keras:EfficientNetB0 reference.npz --weights=efficientnetb0.h5

or, for any network and images,

    from record_activations import record, record_keras
    record(model, images, "reference.npz")

It runs where the other library is installed, and needs NumPy besides. The file holds the images as the
network takes them, and each layer's own output, before any activation where the library tells them apart.
"""

import argparse

import numpy as np


def record(model, images, path):
  """Runs a PyTorch network in evaluation mode and writes the outputs of its layers.

  A layer is any module with parameters or buffers of its own.

  Args:
    model: torch.nn.Module.
    images: tensor (N, C, H, W), as the network takes them: normalised.
    path: of the .npz file.
  """
  import torch

  found = {}

  def keep(name, value):
    if isinstance(value, torch.Tensor):
      # A copy: activations and sums work in place, and would write over it.
      found.setdefault(name, value.detach().float().cpu().clone().numpy())

  handles = []
  for name, module in model.named_modules():
    if not name or not (any(True for _ in module.parameters(recurse=False))
                        or any(True for _ in module.buffers(recurse=False))):
      continue
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and hasattr(module, "act"):
      # timm's norms have their activation inside; what goes into it is the norm's own output.
      handles.append(module.act.register_forward_pre_hook(lambda _, args, name=name: keep(name, args[0])))
    else:
      handles.append(module.register_forward_hook(lambda _, args, output, name=name: keep(name, output)))
  training = model.training
  model.eval()
  try:
    with torch.no_grad():
      model(images)
  finally:
    for handle in handles:
      handle.remove()
    model.train(training)
  np.savez_compressed(path, images=images.float().cpu().numpy(), data_format="NCHW", **found)


def record_keras(model, images, path):
  """Runs a Keras network in inference mode and writes the outputs of its layers.

  Args:
    model: a functional keras.Model, channels last.
    images: array (N, H, W, C), as `model.predict` takes them. What is written is what they become behind
      the network's own layers of rescaling and normalisation, where it has any.
    path: of the .npz file.
  """
  import keras

  inputs, layers = model.inputs[0], {}
  for layer in model.layers:
    if type(layer).__name__ in ("Rescaling", "Normalization"):
      inputs = layer.output
    elif layer.weights:
      layers[layer.name] = layer.output
  outputs = keras.Model(model.inputs[0], [inputs, *layers.values()])(images, training=False)
  images, *found = (keras.ops.convert_to_numpy(output) for output in outputs)
  np.savez_compressed(path, images=images, data_format="NHWC", **dict(zip(layers, found, strict=True)))


def _torch_network(library, name, weights):
  import torch

  if library == "timm":
    import timm

    model = timm.create_model(name)
  else:
    import torchvision

    model = torchvision.models.get_model(name)
  if weights.endswith(".safetensors"):
    from safetensors.torch import load_file

    model.load_state_dict(load_file(weights))
  elif weights:
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
  return model


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("network", help="torchvision:NAME, timm:NAME or keras:NAME (of keras.applications)")
  parser.add_argument("out", help="the .npz file to write")
  parser.add_argument("--weights", default="", help="a file that the library loads (default: random ones)")
  parser.add_argument("--side", type=int, default=224, help="of the images, which are noise (default: 224)")
  options = parser.parse_args()
  library, _, name = options.network.partition(":")
  if library not in ("torchvision", "timm", "keras") or not name:
    parser.error(f"{options.network}: give torchvision:NAME, timm:NAME or keras:NAME")
  images = np.random.RandomState(0).standard_normal((2, options.side, options.side, 3)).astype(np.float32)
  if library == "keras":
    import keras

    model = getattr(keras.applications, name)(weights=options.weights or None)
    record_keras(model, 127.5 + 50 * images, options.out)
  else:
    import torch

    model = _torch_network(library, name, options.weights)
    record(model, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), options.out)


if __name__ == "__main__":
  main()
