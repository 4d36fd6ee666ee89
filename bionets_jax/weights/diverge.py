"""Where a network first computes something else than the network that its weights are of.

    reference = read_activations('reference.npz')  # of examples/record_activations.py
    print(compare_activations(model, variables, reference, 'torchvision'))

Every layer that has a name in the other library is compared with what the other library's code gave for the
same images, in the order of the calls: the first that differs is where to look.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from bionets_jax.weights import layouts
from bionets_jax.weights.diverge_hints import hint, relative
from bionets_jax.weights.execution import call_order
from bionets_jax.weights.layer_outputs import Layer, layer_outputs
from bionets_jax.weights.native import LAYOUT as OWN
from bionets_jax.weights.npz_file import NpzFileError, read_npz_file

IMAGES, FORMAT = "images", "data_format"  # in the file, beside the layers
FORMATS = ("NCHW", "NHWC")
_SHOWN = 12

# What a reference may hold in place of a layer's own output: Keras' convolutions have their activation
# inside, timm's norms too, and PyTorch's in-place ReLU writes over what was recorded without a copy.
_ACTIVATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "ReLU": lambda x: np.maximum(x, 0),
    "swish": lambda x: x * _sigmoid(x),
    "sigmoid": lambda x: _sigmoid(x),
    "softmax": lambda x: np.exp(x - _logsumexp(x)),
}
_LOWEST = -0.2785  # of any of them: swish's minimum


@dataclasses.dataclass(frozen=True)
class Row:
  """One layer in both networks.

  Attributes:
    ours: path of our module.
    theirs: name in the reference.
    kind: class of our module.
    shape: of our output, channels last.
    difference: largest absolute difference over the reference's largest absolute value; infinite where
      either is not finite or the shapes differ.
    note: what else there is to say; '' mostly.
  """

  ours: str
  theirs: str
  kind: str
  shape: tuple[int, ...]
  difference: float
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Divergence:
  """A comparison layer by layer; `str` makes a table of it.

  Attributes:
    rows: the layers that both have, in the order of our calls.
    tolerance: above it a layer differs.
    first: the first row that differs; None if none does.
    hint: what typically makes such a layer differ; '' if none does.
    only_ours: our layers that the reference has not recorded, or the other library has not.
    only_theirs: recorded layers that our network has not.
  """

  rows: tuple[Row, ...]
  tolerance: float
  first: Row | None
  hint: str
  only_ours: tuple[str, ...]
  only_theirs: tuple[str, ...]

  def to_json(self) -> dict[str, Any]:
    """Everything as JSON values; an infinite difference is the text 'inf'."""
    found = dataclasses.asdict(self)
    for row in (*found["rows"], found["first"] or {}):
      if row and row["difference"] == float("inf"):
        row["difference"] = "inf"
    return found

  def __str__(self) -> str:
    lines = [("layer", "in the reference", "shape", "difference")]
    for row in self.rows:
      mark = " <- the first" if row is self.first else ""
      lines.append((row.ours, row.theirs, "x".join(map(str, row.shape)),
                    f"{row.difference:.1e}{f' ({row.note})' if row.note else ''}{mark}"))
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    text = [f"{'  '.join(cell.ljust(n) for cell, n in zip(line, widths, strict=False))}  {line[3]}"
            for line in lines]
    absent = {"not in the reference": self.only_ours, "only in the reference": self.only_theirs}
    for title, names in absent.items():
      if names:
        more = f", ... ({len(names)})" if len(names) > _SHOWN else ""
        text.append(f"{title}: {', '.join(names[:_SHOWN])}{more}")
    if self.first is None:
      worst = max(self.rows, key=lambda row: row.difference)
      text.append(f"all {len(self.rows)} layers agree to {self.tolerance:g} of their largest value; the "
                  f"largest difference is {worst.difference:.1e}, at {worst.ours}")
    else:
      first = self.first
      by = f", by {first.difference:.1e} of its largest value" if np.isfinite(first.difference) else ""
      text.append(
          f"the first layer that differs is {first.ours} ({first.theirs} in the reference){by}: {self.hint}")
    return "\n".join(text)


def read_activations(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads what examples/record_activations.py wrote: {'images': ..., layer: its output, ...}.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no .npz file of arrays, or has no images.
  """
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(f"{path}: no such file")
  try:
    found = read_npz_file(path)
  except NpzFileError as error:
    raise ValueError(f"{path}: no .npz file of arrays ({error})") from error
  if IMAGES not in found:
    raise ValueError(f"{path}: has no array {IMAGES!r}, the input that the layers' outputs are of")
  return found


def compare_activations(
    model: nn.Module, variables: Mapping[str, Any], reference: Mapping[str, np.ndarray], layout: str,
    tolerance: float = 1e-4,
) -> Divergence:
  """Runs the network on the reference's images and compares layer by layer.

  Args:
    model: the network; it runs in evaluation mode and in its own dtype.
    variables: of the model.
    reference: 'images', float, as the network takes them (normalised), and by its name in the other library
      each layer's output: what the layer itself gives, before any activation. Axes are in the order of
      'data_format', 'NCHW' or 'NHWC'; without it in that of the library, channels first for PyTorch.
    layout: name of the other library's layout, as `Pretrained.layout`; or 'bionets_jax', where layers have
      our own names, with '.' or '/' between the modules, channels last by default.
    tolerance: of the difference, relative to the largest value of the layer in the reference.

  Raises:
    ValueError: images that do not fit, or no layer in common.
  """
  reference = dict(reference)
  channels_first = _channels_first(reference.pop(FORMAT, None), layout)
  theirs = {name: _channels_last(array, channels_first) for name, array in reference.items()}
  images = theirs.pop(IMAGES, None)
  if images is None or images.ndim != 4 or images.dtype.kind != "f":
    what = "absent" if images is None else f"{images.dtype.name} of shape {images.shape}"
    raise ValueError(f"{IMAGES} of the reference: expected a batch in floating point, normalised as the "
                     f"network takes it, got {what}")
  images = images.astype(np.float32)
  names = _names(layout, variables, theirs)
  layers = layer_outputs(model, variables, images, {ours for ours, name in names.items() if name in theirs})
  if not layers:
    raise ValueError(
        f"none of the {len(theirs)} layers of the reference ({_some(theirs)}) is one of this network's in "
        f"the {layout} layout ({_some(filter(None, names.values()))})")
  rows = [_compare(layer, names[layer.path], theirs[names[layer.path]], tolerance) for layer in layers]
  place = next((i for i, row in enumerate(rows) if not row.difference <= tolerance), None)
  first, why = None, ""
  if place is not None:
    first, layer = rows[place], layers[place]

    def turned():
      return layer_outputs(model, variables, images[..., ::-1], {layer.path})[0].output

    previous = rows[place - 1].ours if place else ""
    why = hint(layer, theirs[first.theirs], tolerance, previous=previous, turned=None if place else turned)
  met = {row.theirs for row in rows}
  lost = {ours for ours, name in names.items() if name not in met}
  in_order = call_order(model, variables, images) if lost else []
  return Divergence(
      tuple(rows), tolerance, first, why,
      tuple(ours for ours in dict.fromkeys("/".join(path[1:-1]) for path in in_order) if ours in lost),
      tuple(name for name in theirs if name not in met))


def _channels_first(data_format: Any, layout: str) -> bool:
  if data_format is None:
    # A kernel's axes tell the library's order: PyTorch has filters (out, in, H, W).
    return layout != OWN and layouts.find_layout(layout).leaves["conv"][0][3] == (2, 3, 1, 0)
  if str(data_format) not in FORMATS:
    raise ValueError(
        f"{FORMAT} of the reference is {str(data_format)!r:.40}; expected one of {', '.join(FORMATS)}")
  return str(data_format) == "NCHW"


def _channels_last(array: np.ndarray, channels_first: bool) -> np.ndarray:
  array = np.asarray(array)
  return array.transpose(0, 2, 3, 1) if channels_first and array.ndim == 4 else array


def _names(layout: str, variables: Mapping[str, Any], theirs: Mapping[str, np.ndarray]) -> dict[str, str]:
  """Our module -> its name in the other library, '' if it has none there."""
  leaves = layouts.flatten(variables)
  if layout == OWN:
    # PyTorch puts '.' where we put '/'.
    owners = dict.fromkeys("/".join(path[1:-1]) for path in leaves)
    given = {name.replace(".", "/").replace("shortcut/", "shortcut_"): name for name in theirs}
    return {ours: given.get(ours, ours) for ours in owners | given}
  found = layouts.find_layout(layout)
  places = layouts.slots(found, {path: tuple(leaf.shape) for path, leaf in leaves.items()})
  names: dict[str, str] = {}
  for path, place in places.items():
    module = "/".join(path[1:-1])
    # A unit has leaves that the layer it stands in for has not.
    names[module] = place.key.rpartition(found.separator)[0] if place else names.get(module, "")
  return names


def _compare(layer: Layer, name: str, theirs: np.ndarray, tolerance: float) -> Row:
  ours = layer.output
  row = Row(layer.path, name, layer.kind, ours.shape, float("inf"))
  if ours.shape != theirs.shape:
    return dataclasses.replace(row, note=f"theirs is {'x'.join(map(str, theirs.shape))}")
  bad = [whose for whose, array in (("ours", ours), ("theirs", theirs)) if not np.isfinite(array).all()]
  if bad:
    return dataclasses.replace(row, note=f"not finite in {' and '.join(bad)}")
  difference = relative(ours, theirs)
  note = ""
  if difference > tolerance and theirs.min(initial=0) >= _LOWEST:
    for activation, function in _ACTIVATIONS.items():
      if (after := relative(function(ours), theirs)) <= tolerance:
        difference, note = after, f"after its {activation}"
        break
  return dataclasses.replace(row, difference=difference, note=note)


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return 0.5 * (1 + np.tanh(0.5 * x))


def _logsumexp(x: np.ndarray) -> np.ndarray:
  top = x.max(-1, keepdims=True)
  return top + np.log(np.exp(x - top).sum(-1, keepdims=True))


def _some(names: Any) -> str:
  names = list(dict.fromkeys(names))
  return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
