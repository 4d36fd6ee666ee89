"""Fills a model's variables from a published checkpoint."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from bionets_jax.weights import layouts
from bionets_jax.weights.files import read_tensors
from bionets_jax.weights.preprocessing import Preprocessing

_SHOWN = 12  # lines of each kind in an error message


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Weights with what belongs to them.

  Attributes:
    variables: {'params': ..., 'batch_stats': ...} of float32 NumPy arrays.
    preprocessing: the input that they were trained on.
    layout: name of the layout that the file had.
    path: where they came from.
  """

  variables: Mapping[str, Any]
  preprocessing: Preprocessing
  layout: str
  path: str


def load_pretrained(path, template, *, model_name=""):
  """Loads a checkpoint into the tree of a plain model.

  The layout (torchvision's ResNets, pytorch_resnet_cifar10) is recognised from the file's keys.
  Every leaf of the template must be in the file with the right shape, and every tensor of the
  file must be used: nothing is left at its random value in silence.

  Args:
    path: a .safetensors, .pth, .pt or .th file.
    template: {'params': ..., 'batch_stats': ...} of arrays or ShapeDtypeStructs, as
      `jax.eval_shape(model.init, ...)` gives for the model without IC units.
    model_name: the model's name, for the error messages.

  Returns:
    A Pretrained whose variables have the template's tree, float32 whatever the file's precision.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file cannot be read, its layout is unknown, or it does not fit the template;
      the message lists what is missing, left over and misshapen.
  """
  tensors = read_tensors(path)
  layout = layouts.recognise(tensors)
  if layout is None:
    known = "; ".join(f"{one.name} (has {', '.join(one.marks)})" for one in layouts.LAYOUTS)
    raise ValueError(
        f"{path}: unknown layout, its {len(tensors)} tensors begin with"
        f" {', '.join(list(tensors)[:5])}. Known layouts: {known}"
    )
  # Parameters first: in a message of twelve lines they say more than statistics.
  leaves = dict(sorted(layouts.flatten(template).items(), key=lambda item: item[0][0] != "params"))
  if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves.values()):
    raise ValueError(
        "template: expected {'params': ..., 'batch_stats': ...} of arrays or ShapeDtypeStructs"
    )

  found, missing, misshapen, used = {}, [], [], set()
  for leaf_path, leaf in leaves.items():
    name = "/".join(leaf_path)
    slot = layouts.slot(layout, leaf_path)
    if slot is None or slot.key not in tensors:
      missing.append(f"{name} ({slot.key if slot else 'no place in this layout'})")
      continue
    used.add(slot.key)
    array = slot.from_foreign(tensors[slot.key])
    if array.shape != tuple(leaf.shape):
      misshapen.append(f"{name}: the model has {tuple(leaf.shape)}, the file {array.shape}")
      continue
    found[leaf_path] = _to_float32(array, slot.key, path)
  left_over = [key for key in tensors if key not in used and not layouts.is_counter(key)]
  if missing or left_over or misshapen:
    raise ValueError(_mismatch(path, layout, tensors, model_name, missing, left_over, misshapen))
  return Pretrained(layouts.unflatten(found), layout.preprocessing, layout.name, str(path))


def _to_float32(array, key, path):
  # bfloat16 is no subtype of np.floating, so the test is by name.
  if "float" not in array.dtype.name:
    raise ValueError(f"{path}: {key} has dtype {array.dtype.name}; expected floating point")
  array = np.array(array, np.float32, order="C")
  if not np.isfinite(array).all():
    raise ValueError(f"{path}: {key} holds NaN or infinite values")
  return array


def _mismatch(path, layout, tensors, model_name, missing, left_over, misshapen):
  lines = [f"{path} ({layout.name} layout) does not fit {model_name or 'the model'}:"]
  guess = layouts.guess_name(tensors)
  if guess and guess != model_name:
    lines.append(f"  this file looks like {guess}")
  for title, items in (
      ("missing in the file", missing),
      ("left over in the file", left_over),
      ("misshapen", misshapen),
  ):
    if items:
      lines.append(f"  {title} ({len(items)}):")
      lines += [f"    {item}" for item in items[:_SHOWN]]
      if len(items) > _SHOWN:
        lines.append(f"    ... and {len(items) - _SHOWN} more")
  return "\n".join(lines)
