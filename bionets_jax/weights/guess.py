"""Which network a foreign file holds, as its keys and shapes say."""

import re

# blocks per stage, and whether they are bottlenecks -> our name
_RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
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
    'base_width': 4}); None where nothing is known that looks like it.
  """
  shapes = {key: tuple(value.shape) for key, value in tensors.items()}
  return _efficientnet(shapes) or _resnet(shapes)


def _efficientnet(shapes):
  top = shapes.get("conv_head.weight") or shapes.get("features.8.0.weight")
  block = re.compile(r"blocks\.\d+\.\d+|features\.\d+\.\d+(?=\.block)")
  blocks = {match[0] for key in shapes if (match := block.match(key))}
  name = _EFFICIENTNETS.get((top[0], len(blocks))) if top else None
  return name and (name, {})


def _resnet(shapes):
  blocks = {}
  for key in shapes:
    if match := re.fullmatch(r"layer(\d+)\.(\d+)\.conv1\.weight", key):
      stage, block = map(int, match.groups())
      blocks[stage] = max(blocks.get(stage, 0), block + 1)
  counts = tuple(blocks[stage] for stage in sorted(blocks))
  if len(counts) == 3 and len(set(counts)) == 1 and "linear.weight" in shapes:
    return f"resnet{6 * counts[0] + 2}_cifar", {}
  name = _RESNETS.get((counts, "layer1.0.conv3.weight" in shapes))
  stem, first, middle, squeeze = (
      shapes.get(f"{key}.weight", ()) for key in (
          "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.se.fc1"))
  # Other stems are narrower or wider altogether. A damaged file may have any shapes.
  if name is None or "fc.weight" not in shapes or stem[:1] != (64,):
    return None
  if len(first) != 4 or len(middle) != 4 or not 0 < middle[1] <= first[0]:
    return None
  groups = first[0] // middle[1]
  options = {"groups": groups, "base_width": first[0] // groups}
  options = {key: value for key, value in options.items() if value != {"groups": 1, "base_width": 64}[key]}
  if options and "layer1.0.conv3.weight" not in shapes:
    return None
  if len(squeeze) == 4 and 0 < squeeze[0] <= squeeze[1]:
    options["se_reduction"] = squeeze[1] // squeeze[0]
  return name, options
