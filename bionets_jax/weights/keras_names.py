"""Layers of keras.applications' EfficientNets by name, in the order in which they run.

Keras' older files of type .weights.h5 have no names: a layer is the n-th of its class. And a file that
Keras is to load must have the layers in this order.
"""

import collections
import functools
import re

# class -> names of its variables, in Keras' order
VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "normalization": ("mean", "variance", "count"),
}
_STAGES = ((1, 3), (2, 3), (2, 5), (3, 3), (3, 5), (4, 5), (1, 3))  # blocks before scaling, their window
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def efficientnet_layers(repeats, head=True):
  """{name: (class, its variables)} of the layers that have variables, in order of execution.

  Args:
    repeats: blocks of each stage.
    head: with the dense layer.
  """
  def norm(name):
    return {name: ("batch_normalization", VARIABLES["batch_normalization"])}

  def conv(name, *variables):
    return {name: ("conv2d", ("kernel", *variables))}

  layers = {"normalization": ("normalization", VARIABLES["normalization"])}
  layers |= conv("stem_conv") | norm("stem_bn")
  for stage, blocks in enumerate(repeats, start=1):
    for letter in _LETTERS[:blocks]:
      block = f"block{stage}{letter}_"
      if stage > 1:
        layers |= conv(f"{block}expand_conv") | norm(f"{block}expand_bn")
      layers |= {f"{block}dwconv": ("depthwise_conv2d", ("kernel",))} | norm(f"{block}bn")
      layers |= conv(f"{block}se_reduce", "bias") | conv(f"{block}se_expand", "bias")
      layers |= conv(f"{block}project_conv") | norm(f"{block}project_bn")
  layers |= conv("top_conv") | norm("top_bn")
  return layers | ({"predictions": ("dense", VARIABLES["dense"])} if head else {})


def repeats_of(blocks):
  """Blocks of each stage of the EfficientNet that has so many in all; None if there is none.

  A stage has ceil(depth * n) blocks. None of these shrinks with the depth, so their sum tells them all.
  """
  return _repeats_by_sum().get(blocks)


def name_layers(tensors):
  """Tensors with Keras' names in place of the numbers of the layers, where they are of an EfficientNet.

  Args:
    tensors: {'conv2d_3/kernel': array}; the numbers count the layers of a class in order of execution.

  Returns:
    {'block1a_se_expand/kernel': array}; `tensors` itself where classes, numbers or shapes are not those of
    an EfficientNet.
  """
  found: dict[str, dict] = {}  # class -> number -> variable -> array
  for key, array in tensors.items():
    layer, _, variable = key.rpartition("/")
    kind, number = split_number(layer)
    found.setdefault(kind, {}).setdefault(number, {})[variable] = array
  repeats = repeats_of(len(found.get("depthwise_conv2d", ())))
  layers = efficientnet_layers(repeats or (), head="dense" in found)
  counts = {kind: len(numbers) for kind, numbers in found.items()}
  if collections.Counter(kind for kind, _ in layers.values()) != counts:
    return tensors
  in_order = {kind: iter([of[number] for number in sorted(of)]) for kind, of in found.items()}
  named = {name: next(in_order[kind]) for name, (kind, _) in layers.items()}
  if any(set(named[name]) != set(variables) for name, (_, variables) in layers.items()):
    return tensors
  if not _fit_together({name: of["kernel"].shape for name, of in named.items() if "kernel" in of}):
    return tensors
  return {f"{name}/{variable}": named[name][variable]
          for name, (_, variables) in layers.items() for variable in variables}


def split_number(layer):
  """('conv2d', 3) of 'conv2d_3'; the first of a class, 'conv2d', has the number 0."""
  kind, _, number = layer.rpartition("_")
  return (kind, int(number)) if kind and re.fullmatch(r"[0-9]{1,9}", number) else (layer, 0)


def to_snake_case(name):
  """'DepthwiseConv2D' -> 'depthwise_conv2d': what Keras calls the layers of a class."""
  name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
  return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


@functools.cache
def _repeats_by_sum():
  found = {}
  for n in {repeats for repeats, _ in _STAGES}:
    for k in range(1, len(_LETTERS) * n):  # at the depth k / n a stage of n blocks has just become one of k
      repeats = tuple(-(-k * base // n) for base, _ in _STAGES)
      if max(repeats) <= len(_LETTERS):
        found[sum(repeats)] = repeats
  return found


def _fit_together(kernels):
  """Whether each layer takes what the one before it gives, in windows and numbers of an EfficientNet."""
  channels = None
  of_stage: dict = {}
  for name, shape in kernels.items():
    if name == "predictions":
      if len(shape) != 2 or shape[0] != channels:
        return False
      continue
    if len(shape) != 4:
      return False
    channels = shape[2] if channels is None else channels
    if name.endswith("_dwconv"):
      window = _STAGES[int(name[len("block")]) - 1][1]
      if shape != (window, window, channels, 1):
        return False
      continue
    window = 3 if name == "stem_conv" else 1
    if shape[:3] != (window, window, channels):
      return False
    channels = shape[3]
    if name.endswith("_project_conv") and of_stage.setdefault(name[:len("block1")], channels) != channels:
      return False
  return True
