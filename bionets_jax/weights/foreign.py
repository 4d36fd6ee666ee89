"""Our plain networks as other libraries' weight files."""

import json
import os
from typing import Any

import numpy as np

from bionets_jax.weights import layouts, timm_config
from bionets_jax.weights.detectors import StoredDetector
from bionets_jax.weights.family import Layout
from bionets_jax.weights.loading import Loaded
from bionets_jax.weights.whole import write_whole

# --to -> layouts that the library reads
LIBRARIES = {
    "torchvision": ("torchvision", "torchvision_vgg", "torchvision_efficientnet"),
    # timm's ResNets have torchvision's keys.
    "timm": ("torchvision", "timm_seresnet", "timm_efficientnet", "timm_mobilenetv1"),
    "keras": ("keras_efficientnet",),
    "pytorch_resnet_cifar10": ("pytorch_resnet_cifar10",),
}


def to_library(loaded: Loaded, library: str) -> tuple[dict[str, np.ndarray], Layout]:
  """The tensors of a network under the keys of another library.

  What was loaded from that library in float32 goes out as it came in, tensor for tensor; batch counters too.

  Args:
    loaded: a plain network, see `weights.load`.
    library: a key of `LIBRARIES`.

  Returns:
    {their key: array}, and the Layout.

  Raises:
    ValueError: if the library has no such network, saying what it lacks or computes otherwise.
  """
  reasons = []  # (how many leaves have no place, what is in the way) for each layout
  for name in LIBRARIES[library]:
    layout = layouts.find_layout(name)
    extras = loaded.extras if loaded.layout == name else None
    if extras is None and layout.write_inputs:
      extras = layout.write_inputs(loaded.preprocessing)
    try:
      tensors = layouts.to_layout(loaded.variables, name, extras)
      if reason := layouts.differs(layout, loaded.model, loaded.name):
        raise ValueError(f"{name}: {reason}")
    except layouts.NoPlace as error:
      reasons.append((error.count, str(error)))
      continue
    except ValueError as error:
      reasons.append((0, str(error)))
      continue
    if layouts.recognise(tensors) is layout:
      return tensors, layout
    reasons.append((0, f"{name}: such files have also {', '.join(set(layout.marks) - set(tensors))}"))
  raise ValueError(f"{library} has no {loaded.name} with these options; what comes nearest: {min(reasons)[1]}")


def write_library(folder: str | os.PathLike, loaded: Loaded, library: str) -> list[str]:
  """Writes the weight file that a library reads; returns the paths. Each whole or not at all.

  model.safetensors with the keys of `state_dict()`; for Keras model.h5, for `load_weights`; for timm the
  config.json of its hub format too, with which `timm.create_model('local-dir:FOLDER')` loads the folder.

  Raises:
    ValueError: see `to_library`.
  """
  tensors, _ = to_library(loaded, library)
  os.makedirs(folder, exist_ok=True)
  if library == "keras":
    from bionets_jax.weights.keras_file import write_keras_weights

    path = os.path.join(folder, "model.h5")
    write_keras_weights(path, tensors)
    return [path]
  from safetensors.numpy import save

  path = os.path.join(folder, "model.safetensors")
  contents: dict[str, bytes | str] = {path: save(tensors, metadata={"format": "pt"})}  # transformers and timm ask for the format
  if library == "timm" and timm_config.timm_name(loaded.name, loaded.options):
    contents[os.path.join(folder, timm_config.CONFIG_FILE)] = json.dumps(timm_config.write_fields(
        loaded.name, loaded.options, loaded.num_classes, loaded.preprocessing, loaded.class_names,
        loaded.image_shape[-1]), indent=2)
  write_whole(contents)
  return list(contents)


def describe(loaded: Loaded | StoredDetector) -> dict[str, Any]:
  """What `python -m bionets_jax.weights inspect` says of a file; JSON-serialisable."""
  shapes = layouts.flatten(loaded.variables)
  params = sum(int(np.prod(v.shape)) for path, v in shapes.items() if path[0] == "params")
  return {"source": loaded.source, "file": loaded.path, "layout": loaded.layout, "parameters": params,
          **loaded.about(), "not of the network": sorted(loaded.extras)}
