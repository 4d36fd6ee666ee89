"""The key maps between Flax variables and other people's checkpoints.

Both directions are read from the tables of `families`.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping

import numpy as np

from bionets_jax.weights.families import LAYOUTS

# torch counts the batches that a BatchNorm saw; nothing reads it (its momentum is a constant).
_COUNTER = "num_batches_tracked"


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
  found = [layout for layout in LAYOUTS if keys.issuperset(layout.marks)]
  return max(found, key=lambda layout: len(layout.marks), default=None)


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
    for our_collection, our_leaf, their_leaf, axes in layout.leaves[kind]:
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

