import os
import sys

import numpy as np
import torch
from torch import nn

from .generated import ALPHA, CLASS_NAMES, CONFIG, GREY, NAMED, create


def load(path=None):
  """The network with the weights of a file that bionets_jax wrote, in eval mode.

  Args:
    path: a .safetensors or .npz file; by default the one beside this file.

  Raises:
    ValueError: if tensors are missing, misshapen or left over, naming them.
  """
  if path is None:
    folder = os.path.dirname(os.path.abspath(__file__))
    path = os.path.join(folder, "weights.safetensors")
    if not os.path.exists(path):
      path = os.path.join(folder, "weights.npz")
  arrays = read_arrays(os.fspath(path))
  model = create()
  state, problems = model.state_dict(), []
  for name, tensor in state.items():
    if name.endswith("num_batches_tracked"):  # PyTorch's own counter, which nothing reads
      continue
    key = file_key(model, name)
    if key not in arrays:
      problems.append(f"missing: {key} {tuple(tensor.shape)}")
      continue
    array = to_pytorch(key, arrays.pop(key))
    if array.shape != tuple(tensor.shape):
      problems.append(f"misshapen: {key} is {array.shape} here, {tuple(tensor.shape)} in the network")
    state[name] = torch.from_numpy(array.copy())
  problems += [f"left over: {key} {array.shape}" for key, array in arrays.items()]
  if problems:
    raise ValueError(f"{path} does not fit {CONFIG['model']}:\n  " + "\n  ".join(problems))
  model.load_state_dict(state)
  return model.eval()


def read_arrays(path):
  """The arrays of a weight file by their key."""
  if path.endswith(".npz"):
    with np.load(path) as file:
      return {key: file[key] for key in file.files if key != "bionets_jax"}  # a description
  from safetensors.numpy import load_file

  return load_file(path)


def file_key(model, name):
  """What the file calls a tensor of the network: 'params/stage1_block0/conv1/kernel'."""
  module, leaf = name.rsplit(".", 1)
  collection = "params"
  if leaf.startswith("running_"):
    collection, leaf = "batch_stats", leaf[len("running_"):]
  elif leaf == "weight":
    leaf = "scale" if isinstance(model.get_submodule(module), nn.BatchNorm2d) else "kernel"
  if ALPHA == "scheduled":
    if leaf == "alpha":
      collection = "scheduled"
  return "/".join((collection, *module.replace("shortcut.", "shortcut_").split("."), leaf))


def to_pytorch(key, array):
  """An array of the file with PyTorch's axes: filters (H, W, in, out) become (out, in, H, W)."""
  if array.ndim == 4:
    return array.transpose(3, 2, 0, 1)
  if array.ndim == 2:
    return array.T[:, :, None, None] if key.endswith("/adjust") else array.T
  return array


def preprocess(images):
  """Images as the network takes them: float32 (N, C, H, W).

  Args:
    images: uint8 (N, H, W, C), an array or a tensor, of the right size; or a PIL image, or a list of them,
      which are resized and cropped as for the evaluation.
  """
  if not isinstance(images, (np.ndarray, torch.Tensor)):
    images = images if isinstance(images, (list, tuple)) else [images]
    images = np.stack([resize_and_crop(image) for image in images])
  images = torch.as_tensor(images)
  if images.dtype != torch.uint8 or images.ndim != 4:
    raise ValueError(f"images: expected uint8 (N, H, W, C), got {images.dtype} {tuple(images.shape)}")
  x = images.permute(0, 3, 1, 2).float() / 255
  mean, std = (x.new_tensor(CONFIG["preprocessing"][key]).view(-1, 1, 1) for key in ("mean", "std"))
  return (x - mean) / std


def resize_and_crop(image):
  """The central square of a PIL image: uint8 (size, size, C)."""
  from PIL import Image

  settings = CONFIG["preprocessing"]
  shorter, size = settings["resize"], settings["image_size"]
  if GREY:
    image = image.convert("L")
  else:
    image = image.convert("RGB")
  scaled = [int(shorter * side / min(image.size)) for side in image.size]
  if scaled != list(image.size):
    image = image.resize(scaled, getattr(Image, settings["interpolation"].upper()))
  left, top = (round((side - size) / 2) for side in image.size)
  square = np.array(image.crop((left, top, left + size, top + size)))
  if GREY:
    return square[..., None]
  else:
    return square


def main(paths):
  """Prints the most likely classes of image files."""
  from PIL import Image

  if not paths:
    sys.exit("usage: python model.py IMAGE...")
  model = load()
  for path in paths:
    with torch.inference_mode():
      probabilities = model(preprocess(Image.open(path))).softmax(1)[0]
    print(path)
    for index in probabilities.argsort(descending=True)[:5].tolist():
      if NAMED:
        print(f"  {probabilities[index]:6.1%}  {CLASS_NAMES[index]}")
      else:
        print(f"  {probabilities[index]:6.1%}  class {index}")
