"""The key maps between Flax variables and other people's checkpoints.

Both directions are read from the tables of `families`.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping

import numpy as np

from bionets_jax.weights.families import LAYOUTS
from bionets_jax.weights.refused import REFUSED


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
  if refusal(keys):
    return None
  found = [one for one in LAYOUTS if keys.issuperset(one.marks) and keys.isdisjoint(one.without)]
  return max(found, key=lambda layout: len(layout.marks), default=None)


def refusal(keys):
  """Why a file with these keys is refused although it looks like one of ours; '' if it does not."""
  keys = set(keys)
  return next((one.why for one in REFUSED if keys.issuperset(one.marks) and keys.isdisjoint(one.without)), "")


@dataclasses.dataclass(frozen=True)
class Slot:
  """Where one of our leaves lies in a foreign file.

  Attributes:
    key: its name there.
    axes: of ours in theirs.
    window: (H, W) of the maps that a dense layer flattens: its inputs are in the order (C, H, W) there,
      (H, W, C) in ours; None for other leaves.
  """

  key: str
  axes: tuple[int, ...]
  window: tuple[int, int] | None = None

  def from_foreign(self, array):
    """Their array as ours; where it can be a view, so that a shape is checked before anything is copied."""
    if array.ndim != len(self.axes):
      return array
    return self._reorder(array, to_ours=True).transpose(self.axes)

  def to_foreign(self, array):
    """Our array as theirs, contiguous."""
    return np.ascontiguousarray(self._reorder(array.transpose(np.argsort(self.axes)), to_ours=False))

  def _reorder(self, array, to_ours):
    """The columns of (out, in) from one order of the flattened maps to the other."""
    if self.window is None or array.shape[1] % (area := self.window[0] * self.window[1]):
      return array
    channels = array.shape[1] // area
    maps = (channels, *self.window) if to_ours else (*self.window, channels)
    axes = (0, 2, 3, 1) if to_ours else (0, 3, 1, 2)
    return array.reshape(array.shape[0], *maps).transpose(axes).reshape(array.shape)


def slot(layout, path):
  """Where our leaf lies, by the rows that do not depend on the rest of the network.

  Args:
    layout: a Layout.
    path: our leaf as a tuple, such as ('params', 'stage1_block0', 'conv1', 'kernel').

  Returns:
    Its Slot, or None if the layout has no place for it.
  """
  return _slot(layout, _rows(layout, {}), path)


def slots(layout, shapes):
  """Where the leaves of a whole network lie: {our path: Slot or None}.

  Args:
    layout: a Layout.
    shapes: {our path: shape} of all leaves.
  """
  rows = _rows(layout, shapes)
  return {path: _slot(layout, rows, path) for path in shapes}


def _slot(layout, rows, path):
  collection, *modules, leaf = path
  for pattern, theirs, kind in rows:
    match = pattern.fullmatch("/".join(modules))
    if match is None:
      continue
    for our_collection, our_leaf, their_leaf, *place in layout.leaves[kind]:
      if (collection, leaf) == (our_collection, our_leaf):
        return Slot(f"{theirs.format(**match.groupdict())}{layout.separator}{their_leaf}", *place)
  return None


def _rows(layout, shapes):
  further = layout.numbered(shapes) if layout.numbered else ()
  return _compiled(layout.modules + further)


@functools.cache
def _compiled(rows):
  return tuple(
      (re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(ours))), theirs, kind)
      for ours, theirs, kind in rows
  )


def is_extra(layout, key, keys):
  """True for a tensor that belongs to the layout's networks without being a variable of ours.

  A norm's count of batches is one, if the norm is there: nothing reads it (the momentum is a constant).

  Args:
    layout: a Layout.
    key: of the tensor.
    keys: of all tensors of the file.
  """
  owner, _, leaf = key.rpartition(".")
  if layout.counter and leaf == layout.counter:
    return f"{owner}.weight" in keys
  return any(re.fullmatch(pattern, key) for pattern in layout.extras)


def differs(layout, model, model_name="", network=None):
  """What a model with fitting weights computes otherwise than the layout's networks; '' for nothing.

  Args:
    layout: a Layout.
    model: the module; None where nobody knows, which will do where nothing but weights can differ.
    model_name: its name, for the message.
    network: whose epsilon counts, by our name; `model_name` by default.
  """
  name = model_name or "the model"
  if layout.flavours:
    return _other_flavour(layout, model, name, model_name if network is None else network)
  if not layout.fields:
    return ""
  wanted = ", ".join(f"{key}={value!r}" for key, value in layout.fields.items())
  if model is None:
    return (f"its network has {wanted}; in another these weights compute something else. Pass the module, "
            f"created with {wanted}, as load_pretrained(..., model=)")
  own = {key: getattr(model, key, None) for key in layout.fields}
  if own == dict(layout.fields):
    return ""
  return (f"its network has {wanted}; {name} has {', '.join(f'{k}={v!r}' for k, v in own.items())}. Create it "
          f"with {wanted}")


def _other_flavour(layout, model, name, network):
  of = " or ".join(f"{key!r} ({flavour.of})" for key, flavour in layout.flavours.items())
  start = f"its network has the flavour {of}"
  if len(layout.flavours) > 1:
    start += ", which its keys do not tell apart"
  give = " or ".join(f"flavour={key!r}" for key in layout.flavours)
  if model is None:
    return (f"{start}; in another these weights compute something else. Pass the module, created with {give}, "
            "as load_pretrained(..., model=)")
  own = getattr(model, "flavour", None)
  flavour = layout.flavours.get(own)
  if flavour is None:
    return (f"{start}; {name} has flavour={own!r}, whose padding or batch norms differ. Create it with {give}")
  epsilon, ours = flavour.other_epsilons.get(network, flavour.epsilon), model.norm_options()[0]
  if ours != epsilon:
    return (f"the batch norms of {flavour.of} {network or 'network'} have epsilon {epsilon:g}; those of {name} "
            f"have {ours:g}. Create it with norm_epsilon={epsilon:g}")
  return ""


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
  tree: dict = {}
  for path, leaf in flat.items():
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = leaf
  return tree


class NoPlace(ValueError):
  """A layout lacks leaves that a network has; `count` says how many."""

  def __init__(self, layout, leaves):
    self.count = len(leaves)
    super().__init__(f"the {layout} layout has no place for {len(leaves)} leaves:"
                     f" {', '.join(leaves[:12])}{', ...' if len(leaves) > 12 else ''}")


def to_layout(variables, layout, extras=None):
  """Writes our variables under the names of another library: the inverse of `load_pretrained`.

  Args:
    variables: {'params': ..., 'batch_stats': ...}, trees of arrays.
    layout: a name of `LAYOUTS`, such as 'torchvision', or a Layout.
    extras: {their key: array} of what is no variable of the network, such as `Pretrained.extras`: the counts
      of batches that PyTorch's BatchNorm keeps, and what the layout has besides. None for a network that is
      not from a file of this layout.

  Returns:
    dict of their key to a contiguous array in their axis order, with our dtype. A count of batches that is
    not among the extras is an int64 zero; with extras that have no count there is none, as in files of
    PyTorch before 0.4.1. `safetensors.numpy.save_file` writes PyTorch's.

  Raises:
    NoPlace: a leaf that the layout has no place for (an IC layer's, say).
    ValueError: an unknown layout, or an extra that it has no use for.
  """
  layout = find_layout(layout) if isinstance(layout, str) else layout
  tensors, counts, homeless = {}, {}, []
  leaves = flatten(variables)
  places = slots(layout, {path: np.shape(leaf) for path, leaf in leaves.items()})
  for path, leaf in leaves.items():
    place = places[path]
    if place is None or np.ndim(leaf) != len(place.axes):
      homeless.append("/".join(path))
      continue
    tensors[place.key] = place.to_foreign(np.asarray(leaf))
    if layout.counter and place.key.endswith(".running_var"):
      counts[place.key.removesuffix("running_var") + layout.counter] = np.zeros((), np.int64)
  if homeless:
    raise NoPlace(layout.name, homeless)
  if extras is None or extras.keys() & counts:
    tensors |= counts
  extras = extras or {}
  useless = [key for key in extras if not is_extra(layout, key, tensors)]
  if useless:
    raise ValueError(
        f"extras: the {layout.name} layout has no use for {len(useless)} of them:"
        f" {', '.join(map(str, useless[:12]))}{', ...' if len(useless) > 12 else ''}"
    )
  return tensors | {key: np.array(value, order="C") for key, value in extras.items()}
