"""The key maps between Flax variables and other people's checkpoints.

A layout is one table of (our module path, their module name, kind of module). Patterns stand for
numbers: `stage{s}_block{b}/conv{i}` is `layer{s}.{b}.conv{i}`. Both directions are read from it.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping

import numpy as np

from bionets_jax.weights import preprocessing as prep


@dataclasses.dataclass(frozen=True)
class Layout:
  """One family of foreign checkpoints.

  Attributes:
    name: what it is called in messages and in `Pretrained.layout`.
    marks: keys that every file of the family has and no other family has all of.
    modules: rows (our path, their name, kind), kind a key of `_LEAVES`.
    preprocessing: how its authors prepared the images.
  """

  name: str
  marks: tuple[str, ...]
  modules: tuple[tuple[str, str, str], ...]
  preprocessing: prep.Preprocessing


# kind -> rows (our collection, our leaf, their leaf, axes of ours in theirs)
_LEAVES = {
    "conv": (("params", "kernel", "weight", (2, 3, 1, 0)),),  # OIHW -> HWIO
    "norm": (
        ("params", "scale", "weight", (0,)),
        ("params", "bias", "bias", (0,)),
        ("batch_stats", "mean", "running_mean", (0,)),
        ("batch_stats", "var", "running_var", (0,)),
    ),
    "dense": (
        ("params", "kernel", "weight", (1, 0)),  # (out, in) -> (in, out)
        ("params", "bias", "bias", (0,)),
    ),
}
# torch counts the batches that a BatchNorm saw; nothing reads it (its momentum is a constant).
_COUNTER = "num_batches_tracked"

_RESNET = (
    ("stem_conv", "conv1", "conv"),
    ("stem_bn", "bn1", "norm"),
    ("stage{s}_block{b}/conv{i}", "layer{s}.{b}.conv{i}", "conv"),
    ("stage{s}_block{b}/bn{i}", "layer{s}.{b}.bn{i}", "norm"),
)

LAYOUTS = (
    Layout(
        name="torchvision",
        marks=("conv1.weight", "bn1.running_var", "layer4.0.conv1.weight", "fc.weight"),
        modules=_RESNET
        + (
            ("stage{s}_block{b}/shortcut_conv", "layer{s}.{b}.downsample.0", "conv"),
            ("stage{s}_block{b}/shortcut_bn", "layer{s}.{b}.downsample.1", "norm"),
            ("head", "fc", "dense"),
        ),
        preprocessing=prep.TORCHVISION,
    ),
    Layout(
        name="pytorch_resnet_cifar10",
        marks=("conv1.weight", "bn1.running_var", "layer3.0.conv1.weight", "linear.weight"),
        modules=_RESNET + (("head", "linear", "dense"),),
        preprocessing=prep.CIFAR,
    ),
)


def find_layout(name):
  """The layout called `name`; ValueError lists those that exist."""
  for layout in LAYOUTS:
    if layout.name == name:
      return layout
  known = ", ".join(layout.name for layout in LAYOUTS)
  raise ValueError(f"unknown weight layout {name!r}; known: {known}")


def recognise(keys):
  """The layout that a file with these keys has, or None."""
  keys = set(keys)
  for layout in LAYOUTS:
    if keys.issuperset(layout.marks):
      return layout
  return None


@dataclasses.dataclass(frozen=True)
class Slot:
  """Where one of our leaves lies in a foreign file: its key, and the axes of ours in theirs."""

  key: str
  axes: tuple[int, ...]

  def from_foreign(self, array):
    """Their array as ours; a view, so that a shape can be checked before anything is copied."""
    return array.transpose(self.axes) if array.ndim == len(self.axes) else array

  def to_foreign(self, array):
    return np.ascontiguousarray(array.transpose(np.argsort(self.axes)))


def slot(layout, path):
  """Where our leaf lies.

  Args:
    layout: a Layout.
    path: our leaf as a tuple, such as ('params', 'stage1_block0', 'conv1', 'kernel').

  Returns:
    Its Slot, or None if the layout has no place for it.
  """
  collection, *modules, leaf = path
  for pattern, theirs, kind in _compiled(layout):
    match = pattern.fullmatch("/".join(modules))
    if match is None:
      continue
    for our_collection, our_leaf, their_leaf, axes in _LEAVES[kind]:
      if (collection, leaf) == (our_collection, our_leaf):
        return Slot(f"{theirs.format(**match.groupdict())}.{their_leaf}", axes)
  return None


@functools.cache
def _compiled(layout):
  return tuple(
      (re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(ours))), theirs, kind)
      for ours, theirs, kind in layout.modules
  )


def is_counter(key):
  """True for torch's batch counters, which are left out on the way in."""
  return key.endswith("." + _COUNTER)


def flatten(tree, path=()):
  """A tree of mappings as {path tuple: leaf}, in the tree's order."""
  if not isinstance(tree, Mapping):
    return {path: tree}
  flat = {}
  for key, value in tree.items():
    flat.update(flatten(value, path + (key,)))
  return flat


def unflatten(flat):
  """{path tuple: leaf} as a tree of dicts."""
  tree = {}
  for path, leaf in flat.items():
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = leaf
  return tree


def to_torch_layout(variables, layout):
  """Writes our variables as a foreign state dict: the inverse of `load_pretrained`.

  Args:
    variables: {'params': ..., 'batch_stats': ...}, trees of arrays.
    layout: a name of `LAYOUTS`, such as 'torchvision'.

  Returns:
    dict of their key to a contiguous array in their axis order, with our dtype; BatchNorm's
    `num_batches_tracked` is added as an int64 zero. `safetensors.numpy.save_file` writes it.

  Raises:
    ValueError: an unknown layout, or a leaf that it has no place for (an IC layer's, say).
  """
  layout = find_layout(layout)
  tensors, homeless = {}, []
  for path, leaf in flatten(variables).items():
    place = slot(layout, path)
    if place is None or np.ndim(leaf) != len(place.axes):
      homeless.append("/".join(path))
      continue
    tensors[place.key] = place.to_foreign(np.asarray(leaf))
    if place.key.endswith(".running_var"):
      tensors[place.key.removesuffix("running_var") + _COUNTER] = np.zeros((), np.int64)
  if homeless:
    raise ValueError(
        f"the {layout.name} layout has no place for {len(homeless)} leaves:"
        f" {', '.join(homeless[:12])}{', ...' if len(homeless) > 12 else ''}"
    )
  return tensors


# blocks per stage, and whether they are bottlenecks -> our name
_KNOWN_DEPTHS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}


def guess_name(tensors):
  """The network that a file's keys and shapes look like ('resnet34'), or None."""
  blocks = {}
  for key in tensors:
    match = re.fullmatch(r"layer(\d+)\.(\d+)\.conv1\.weight", key)
    if match:
      stage, block = map(int, match.groups())
      blocks[stage] = max(blocks.get(stage, 0), block + 1)
  counts = tuple(blocks[stage] for stage in sorted(blocks))
  if len(counts) == 3 and len(set(counts)) == 1 and "linear.weight" in tensors:
    return f"resnet{6 * counts[0] + 2}_cifar"
  first = tensors.get("layer1.0.conv1.weight")
  middle = tensors.get("layer1.0.conv2.weight")
  if first is None or middle is None or "fc.weight" not in tensors:
    return None
  # Wide and grouped bottlenecks have the same block counts.
  if middle.ndim == 4 and (middle.shape[1] != first.shape[0] or first.shape[0] != 64):
    return None
  return _KNOWN_DEPTHS.get((counts, "layer1.0.conv3.weight" in tensors))
