"""Which network a foreign file holds, as its keys and shapes say."""

import math
import re

from bionets_jax.weights.layouts import recognise

# blocks per stage, and whether they are bottlenecks -> our name
_RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
}
_CIFAR_RESNETS = {((n, n, n), False): f"resnet{6 * n + 2}_cifar" for n in (3, 5, 7, 9)}
_VGGS = {(2, 2, 3, 3, 3): "vgg16", (2, 2, 4, 4, 4): "vgg19"}
# channels behind the top convolution, blocks -> our name
_EFFICIENTNETS = {
    (1280, 16): "efficientnet_b0", (1280, 23): "efficientnet_b1", (1408, 23): "efficientnet_b2",
    (1536, 26): "efficientnet_b3", (1792, 32): "efficientnet_b4", (2048, 39): "efficientnet_b5",
    (2304, 45): "efficientnet_b6", (2560, 55): "efficientnet_b7"}  # fmt: skip


def guess_network(tensors):
  """The network that a file's keys and shapes look like.

  Args:
    tensors: {key: array or anything with a shape}.

  Returns:
    (name, options of create_model that are not the defaults), such as ('resnet50', {'groups': 32,
    'base_width': 4}) or, for a ResNet-152, ('resnet101', {'stage_sizes': (3, 8, 36, 3)}); None where
    the layout is unknown, or no network that exists here looks like it. The number of classes is not among
    the options, nor what keys and shapes do not show (an EfficientNet's flavour).
  """
  layout = recognise(tensors)
  shapes = {key: tuple(value.shape) for key, value in tensors.items()}
  return _GUESSES[layout.name](shapes) if layout else None


def _efficientnet(shapes):
  top = shapes.get("conv_head.weight") or shapes.get("features.8.0.weight")
  counts = _count(shapes, r"blocks\.(\d{1,4})\.(\d{1,4})\..*|features\.(\d{1,4})\.(\d{1,4})\.block\..*")
  name = _EFFICIENTNETS.get((top[0], sum(counts))) if top else None
  return name and (name, {})


def _keras_efficientnet(shapes):
  top = shapes.get("top_conv/kernel", ())
  blocks = sum(bool(re.fullmatch(r"block[1-7][a-z]_dwconv/kernel", key)) for key in shapes)
  name = _EFFICIENTNETS.get((top[-1], blocks)) if len(top) == 4 else None
  return name and (name, {})


def _mobilenet(shapes):
  stem, counts = shapes["conv_stem.weight"], _count(shapes, r"blocks\.(\d{1,4})\.(\d{1,4})\.conv_dw\.weight")
  if len(stem) != 4 or not counts:
    return None
  options = {"stem_stride": 2, "act": "relu6"}
  if counts != (1, 2, 2, 6, 2):
    options["stage_sizes"] = counts
  if stem[0] != 32:
    options["width"] = stem[0]
  return "mobilenet", options


def _vgg(shapes):
  convs = sorted(int(match[1]) for key, shape in shapes.items()
                 if len(shape) == 4 and (match := re.fullmatch(r"features\.(\d{1,4})\.weight", key)))
  stem, dense = shapes.get("features.0.weight", ()), [
      shapes.get(f"classifier.{i}.weight", ()) for i in (0, 3)]
  if len(stem) != 4 or {len(shape) for shape in dense} != {2}:
    return None
  counts = [1]
  for before, after in zip(convs, convs[1:], strict=False):
    if after - before not in (3, 4):  # convolution, norm, ReLU, and a max-pool between stages
      return None
    counts = [*counts[:-1], counts[-1] + 1] if after - before == 3 else [*counts, 1]
  channels = shapes[f"features.{convs[-1]}.weight"][0]
  side = math.isqrt(dense[0][1] // channels) if channels else 0
  if not side or side * side * channels != dense[0][1]:
    return None
  name, options = _nearest(_VGGS, tuple(counts))
  if stem[0] != 64:
    options["width"] = stem[0]
  return name, options | {"hidden": tuple(shape[0] for shape in dense), "pool": side}


def _resnet(shapes):
  counts = _count(shapes, r"layer(\d{1,4})\.(\d{1,4})\.conv1\.weight")
  stem, first, middle = (
      shapes.get(f"{key}.weight", ()) for key in ("conv1", "layer1.0.conv1", "layer1.0.conv2"))
  # A damaged file may have any shapes.
  if not counts or {len(stem), len(first), len(middle)} != {4} or not stem[0] or not 0 < middle[1] <= first[0]:
    return None
  bottleneck = "layer1.0.conv3.weight" in shapes
  cifar = len(counts) == 3 and not bottleneck and "fc.weight" not in shapes
  width, stems = (16, {3: None}) if cifar else (64, {7: None, 3: "3x3", 1: "1x1"})
  groups = first[0] // middle[1]
  base_width, rest = divmod(first[0] * 64, groups * stem[0])
  if rest or stem[2] not in stems or (not bottleneck and (groups, base_width) != (1, 64)):
    return None
  name, options = _nearest(_CIFAR_RESNETS if cifar else _RESNETS, counts, bottleneck)
  found = {"stem": stems[stem[2]], "width": stem[0], "groups": groups, "base_width": base_width}
  usual = {"stem": None, "width": width, "groups": 1, "base_width": 64}
  options |= {key: value for key, value in found.items() if value != usual[key]}
  ratios = {shape[1] // shape[0] for key, shape in shapes.items()
            if re.fullmatch(r"layer\d+\.\d+\.se\.fc1\.weight", key) and len(shape) == 4 and shape[0]}
  if len(ratios) > 1 or 0 in ratios:  # timm's seresnet18 squeezes to 8 channels at least
    return None
  return name, options | ({"se_reduction": ratios.pop()} if ratios else {})


def _nearest(table, counts, *kind):
  """(name, options) of the network with these blocks: one of the table, or the nearest with `stage_sizes`."""
  key = (counts, *kind) if kind else counts
  if key in table:
    return table[key], {}
  sizes = {name: one[0] if kind else one for one, name in table.items() if not kind or one[1:] == kind}
  return min(sizes, key=lambda name: abs(sum(sizes[name]) - sum(counts))), {"stage_sizes": counts}


def _count(shapes, pattern):
  """Blocks in each stage; () where their numbers have gaps. The pattern finds the two numbers."""
  blocks: dict[int, set[int]] = {}
  for key in shapes:
    if match := re.fullmatch(pattern, key):
      stage, block = (int(number) for number in match.groups() if number)
      blocks.setdefault(stage, set()).add(block)
  stages = [blocks[stage] for stage in sorted(blocks)]
  if not stages or any(found != set(range(len(found))) for found in stages):
    return ()
  return tuple(map(len, stages))


_GUESSES = {
    "torchvision": _resnet,
    "timm_seresnet": _resnet,
    "pytorch_resnet_cifar10": _resnet,
    "torchvision_vgg": _vgg,
    "torchvision_efficientnet": _efficientnet,
    "timm_efficientnet": _efficientnet,
    "keras_efficientnet": _keras_efficientnet,
    "timm_mobilenetv1": _mobilenet,
}
