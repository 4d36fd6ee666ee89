"""Fills a model's variables from a published checkpoint."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from bionets_jax.weights import layouts
from bionets_jax.weights.families import LAYOUTS, REFUSED, Layout
from bionets_jax.weights.files import read_tensors
from bionets_jax.weights.guess import guess_network
from bionets_jax.weights.preprocessing import Preprocessing

_SHOWN = 12  # lines of each kind in an error message


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Weights with what belongs to them.

  Attributes:
    variables: {'params': ..., 'batch_stats': ...} of float32 NumPy arrays.
    preprocessing: the input that its authors give their networks of this kind and size.
    layout: name of the layout that the file had.
    path: where they came from.
  """

  variables: Mapping[str, Any]
  preprocessing: Preprocessing
  layout: str
  path: str


def load_pretrained(path, template, *, model=None, model_name=""):
  """Loads a checkpoint into the tree of a plain model.

  The layout is recognised from the file's keys:

    torchvision               its ResNet, ResNeXt and Wide ResNet (the latter are resnet50 and resnet101 with
                              groups= and base_width=); timm's, such as resnet50.tv_in1k, have the same keys
    timm_seresnet             timm's seresnet50, seresnext50_32x4d, ... (se_reduction=16, groups=, ...)
    pytorch_resnet_cifar10    its resnet20, ...
    torchvision_efficientnet  its efficientnet_b0 to b7, of flavour='torchvision'
    timm_efficientnet         timm's tf_efficientnet_b0 to b7, of flavour='tf', and its own efficientnet_b0 to
                              b5, of flavour='torchvision' (B5 with norm_epsilon=1e-5). Their keys do not tell
                              the two apart: which of them a file is, is for the model's flavour to say.

  Every leaf of the template must be in the file with the right shape, and every tensor of the
  file must be used: nothing is left at its random value in silence. What leaves no trace in keys and
  shapes cannot be seen: networks of timm whose pooling differs (resnetblur50, resnetaa50), and files whose
  authors normalise images otherwise than the rest of the family (mean and std 0.5: timm's
  tf_efficientnet_*.ap_in1k, efficientnet_*.ra4_*).

  Args:
    path: a .safetensors, .pth, .pt or .th file.
    template: {'params': ..., 'batch_stats': ...} of arrays or ShapeDtypeStructs, as
      `jax.eval_shape(model.init, ...)` gives for the model without IC units.
    model: the module that the template is of. Needed for EfficientNets, since padding and epsilon of the
      batch norms differ between networks that have the same weights.
    model_name: the model's name, for the error messages.

  Returns:
    A Pretrained whose variables have the template's tree, float32 whatever the file's precision.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file cannot be read, its layout is unknown, it does not fit the template (the
      message lists what is missing, left over and misshapen), or the model computes something else with
      these weights than the network they are of.
  """
  tensors = read_tensors(path)
  layout = layouts.recognise(tensors)
  if layout is None:
    for marks, why in REFUSED:
      if tensors.keys() >= set(marks):
        raise ValueError(f"{path}: {why}")
    known = "; ".join(f"{one.name} (has {', '.join(one.marks)})" for one in LAYOUTS)
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
  guess = guess_network(tensors)
  if missing or left_over or misshapen:
    raise ValueError(
        _mismatch(path, layout, guess, model, model_name, missing, left_over, misshapen))
  name = guess[0] if guess else ""
  preprocessing = layout.preprocessing
  if layout.flavours:
    flavour = _check_flavour(path, layout, name, model, model_name)
    preprocessing = flavour.inputs.get(name, preprocessing)
  return Pretrained(layouts.unflatten(found), preprocessing, layout.name, str(path))


def _check_flavour(path, layout: Layout, name, model, model_name):
  """The Flavour of `layout` that the model is of; ValueError if it is of none."""
  of = " or ".join(f"{key!r} ({flavour.of})" for key, flavour in layout.flavours.items())
  start = f"{path} ({layout.name} layout): its network has the flavour {of}"
  if len(layout.flavours) > 1:
    start += ", which its keys do not tell apart"
  give = " or ".join(f"flavour={key!r}" for key in layout.flavours)
  if model is None:
    raise ValueError(f"{start}; in another these weights compute something else. Pass the module, created "
                     f"with {give}, as load_pretrained(..., model=)")
  own = getattr(model, "flavour", None)
  flavour = layout.flavours.get(own)
  if flavour is None:
    raise ValueError(f"{start}; {model_name or 'the model'} has flavour={own!r}, whose padding or batch "
                     f"norms differ. Create it with {give}")
  epsilon, ours = flavour.other_epsilons.get(name, flavour.epsilon), model.norm_options()[0]
  if ours != epsilon:
    raise ValueError(
        f"{path} ({layout.name} layout): the batch norms of {flavour.of} {name or 'network'} have epsilon "
        f"{epsilon:g}; those of {model_name or 'the model'} have {ours:g}. Create it with "
        f"norm_epsilon={epsilon:g}")
  return flavour


def _to_float32(array, key, path):
  # bfloat16 is no subtype of np.floating, so the test is by name.
  if "float" not in array.dtype.name:
    raise ValueError(f"{path}: {key} has dtype {array.dtype.name}; expected floating point")
  array = np.array(array, np.float32, order="C")
  if not np.isfinite(array).all():
    raise ValueError(f"{path}: {key} holds NaN or infinite values")
  return array


def _mismatch(path, layout, guess, model, model_name, missing, left_over, misshapen):
  lines = [f"{path} ({layout.name} layout) does not fit {model_name or 'the model'}:"]
  if guess:
    name, options = guess
    if name != model_name or any(getattr(model, key, None) != value for key, value in options.items()):
      text = ", ".join(f"{key}={value!r}" for key, value in options.items())
      lines.append(f"  this file looks like {name}" + (f" with {text}" if text else ""))
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
