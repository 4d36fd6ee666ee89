"""Fills a model's variables from a published checkpoint."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from bionets_jax.weights import layouts
from bionets_jax.weights.families import LAYOUTS
from bionets_jax.weights.files import read_tensors
from bionets_jax.weights.guess import guess_network
from bionets_jax.weights.mismatch import Mismatch
from bionets_jax.weights.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Weights with what belongs to them.

  Attributes:
    variables: {'params': ..., 'batch_stats': ...} of float32 NumPy arrays.
    preprocessing: the input that its authors give their networks of this kind and size.
    layout: name of the layout that the file had.
    path: where they came from.
    extras: {their key: array} of the file's tensors that are no variable of the network, as they are: the
      counts of batches of PyTorch's BatchNorm, and what the layout has besides. `to_layout` writes them back.
  """

  variables: Mapping[str, Any]
  preprocessing: Preprocessing
  layout: str
  path: str
  extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def load_pretrained(path, template, *, model=None, model_name=""):
  """Loads a checkpoint into the tree of a plain model.

  The layout is recognised from the file's keys:

    torchvision               its ResNet, ResNeXt and Wide ResNet (the latter are resnet50 and resnet101 with
                              groups= and base_width=); timm's, such as resnet50.tv_in1k, have the same keys
    timm_seresnet             timm's seresnet50, seresnext50_32x4d, ... (se_reduction=16, groups=, ...)
    pytorch_resnet_cifar10    its resnet20, ...
    torchvision_vgg           its vgg11_bn to vgg19_bn (hidden=(4096, 4096), pool=7; VGG-11 and VGG-13 with
                              stage_sizes=)
    torchvision_efficientnet  its efficientnet_b0 to b7, of flavour='torchvision'
    timm_efficientnet         timm's tf_efficientnet_b0 to b7, of flavour='tf', and its own efficientnet_b0 to
                              b5, of flavour='torchvision' (B5 with norm_epsilon=1e-5). Their keys do not tell
                              the two apart: which of them a file is, is for the model's flavour to say.
    keras_efficientnet        keras.applications' EfficientNetB0 to B7, of flavour='tf' if built for one size of
                              image (the default), of flavour='keras' if for any; which, the model says. Mean
                              and std are those of the file's own normalisation
    timm_mobilenetv1          timm's mobilenetv1_100 and mobilenetv1_125 (mobilenet with stem_stride=2,
                              act='relu6'; width=40)

  Every leaf of the template must be in the file with the right shape, and every tensor of the
  file must be used: nothing is left at its random value in silence. Files without a head fit a model
  without one. What leaves no trace in keys and shapes cannot be seen: networks of timm that pool before
  their strides (resnetaa50, resnetblur18, resnetblur50, efficientnet_blur_b0), and files whose authors
  prepare images otherwise than the rest of the family: with mean and std 0.5 (timm's
  tf_efficientnet_*.ap_in1k, resnet34.ra4_*, efficientnet_b0.ra4_*, efficientnet_b1.ra4_*), or at other sizes
  and bicubic (timm's ResNets, whose keys are torchvision's).

  Args:
    path: a file that `read_tensors` reads.
    template: {'params': ..., 'batch_stats': ...} of arrays or ShapeDtypeStructs, as
      `jax.eval_shape(model.init, ...)` gives for the model without IC units.
    model: the module that the template is of. Needed for EfficientNets and MobileNets: what their fields
      say of padding, strides and batch norms differs between networks that have the same weights.
    model_name: the model's name, for the error messages.

  Returns:
    A Pretrained whose variables have the template's tree, float32 whatever the file's precision.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file cannot be read, its layout is unknown, it does not fit the template (the
      message lists what is missing, left over and misshapen), or the model computes something else with
      these weights than the network they are of.
  """
  tensors, layout = read_known(path)
  return fill(template, tensors, layout, path, model=model, model_name=model_name)


def read_known(path):
  """(tensors, Layout) of a file whose layout is known; raises as `load_pretrained`."""
  tensors = read_tensors(path)
  layout = layouts.recognise(tensors)
  if layout is None:
    if why := layouts.refusal(tensors):
      raise ValueError(f"{path}: {why}")
    known = "; ".join(f"{one.name} (has {', '.join(one.marks)})" for one in LAYOUTS)
    raise ValueError(
        f"{path}: unknown layout, its {len(tensors)} tensors begin with"
        f" {', '.join(list(tensors)[:5])}. Known layouts: {known}"
    )
  return tensors, layout


def fill(template, tensors, layout, path, *, model=None, model_name=""):
  """`load_pretrained` of a file that `read_known` has read."""
  # Parameters first: in a message of twelve lines they say more than statistics.
  leaves = dict(sorted(layouts.flatten(template).items(), key=lambda item: item[0][0] != "params"))
  if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves.values()):
    raise ValueError(
        "template: expected {'params': ..., 'batch_stats': ...} of arrays or ShapeDtypeStructs"
    )

  found, off, used = {}, Mismatch(), set()
  shapes = {leaf_path: tuple(leaf.shape) for leaf_path, leaf in leaves.items()}
  for leaf_path, slot in layouts.slots(layout, shapes).items():
    if slot is None or slot.key not in tensors:
      off.missing[leaf_path] = slot
      continue
    used.add(slot.key)
    array = slot.from_foreign(tensors[slot.key])
    if array.shape != shapes[leaf_path]:
      off.misshapen[leaf_path] = shapes[leaf_path], array.shape
      continue
    found[leaf_path] = _to_float32(array, slot.key, path)
    if leaf_path[-1] == "var" and found[leaf_path].min(initial=0) < 0:
      raise ValueError(f"{path}: {slot.key} holds negative variances")
  extras = {key: array for key, array in tensors.items() if layouts.is_extra(layout, key, tensors)}
  off.left_over = [key for key in tensors if key not in used and key not in extras]
  if off:
    raise ValueError(off.describe(path, layout, tensors, leaves, model, model_name))
  name = (guess_network(tensors) or ("",))[0]
  if reason := layouts.differs(layout, model, model_name, name):
    raise ValueError(f"{path} ({layout.name} layout): {reason}")
  preprocessing = layout.preprocessing
  if layout.flavours:
    preprocessing = layout.flavours[model.flavour].inputs.get(name, preprocessing)
  if layout.read_inputs:
    try:
      preprocessing = layout.read_inputs(extras, preprocessing)
    except ValueError as error:
      raise ValueError(f"{path} ({layout.name} layout): {error}") from None
  return Pretrained(layouts.unflatten(found), preprocessing, layout.name, str(path), extras)


def _to_float32(array, key, path):
  # bfloat16 is no subtype of np.floating, so the test is by name.
  if "float" not in array.dtype.name:
    raise ValueError(f"{path}: {key} has dtype {array.dtype.name}; expected floating point")
  array = np.array(array, np.float32, order="C")
  if not np.isfinite(array).all():
    raise ValueError(f"{path}: {key} holds NaN or infinite values")
  return array
