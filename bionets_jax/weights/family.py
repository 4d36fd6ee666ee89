"""What describes one family of checkpoints; `families` has them all."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bionets_jax.weights import preprocessing as prep

# PyTorch's layers: kind -> rows (our collection, our leaf, their leaf, axes of ours in theirs), and behind
# them, for a layer on flattened maps, the maps' (H, W): PyTorch flattens (C, H, W), we flatten (H, W, C).
TORCH_LEAVES = {
    "conv": (("params", "kernel", "weight", (2, 3, 1, 0)),),  # OIHW -> HWIO, with groups as without
    "conv with bias": (
        ("params", "kernel", "weight", (2, 3, 1, 0)),
        ("params", "bias", "bias", (0,)),
    ),
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
    "dense on 7x7": (
        ("params", "kernel", "weight", (1, 0), (7, 7)),
        ("params", "bias", "bias", (0,)),
    ),
}


@dataclasses.dataclass(frozen=True)
class Flavour:
  """What the networks of one flavour of EfficientNet have besides their weights.

  Attributes:
    of: whose they are, for messages.
    inputs: network -> how its images are prepared; '' for sizes that nobody published.
    epsilon: of the batch norms.
    other_epsilons: network -> epsilon, where it is another.
  """

  of: str
  inputs: Mapping[str, prep.Preprocessing]
  epsilon: float
  other_epsilons: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: it holds a mapping
class Layout:
  """One family of foreign checkpoints.

  Attributes:
    name: what it is called in messages and in `Pretrained.layout`.
    marks: keys that every file of the family has, with a head or without. Of several families whose marks a
      file has, it is of the one with the most.
    modules: rows (our path, their name, kind), kind a key of `leaves`.
    preprocessing: how its authors prepared the images, where the flavour does not say.
    without: keys that no file of the family has.
    numbered: {our leaf's path: its shape} -> further rows, where their names depend on the whole network.
    leaves: what the kinds of modules hold, and how: kind -> rows as in `TORCH_LEAVES`.
    fields: field of the model -> value that it has in every network of the family, for what keys and shapes
      do not show.
    flavours: `EfficientNet.flavour` -> what else such a network needs; empty for networks without.
    own_flavour: the one of `flavours` that is taken where nobody chooses; '' where somebody must.
    counter: what a norm's count of batches is called, beside its running variance; '' where norms have none.
    extras: regular expressions of the keys of other tensors that belong to the network, and are no variables
      of it.
    separator: between a module's name and its leaf's.
    read_inputs: the extras of a file, and what `preprocessing` or the flavour says -> how the file's images
      are prepared, where the file itself says so. Raises ValueError where it cannot be.
    write_inputs: the inverse, for networks that come from elsewhere.
  """

  name: str
  marks: tuple[str, ...]
  modules: tuple[tuple[str, str, str], ...]
  preprocessing: prep.Preprocessing
  without: tuple[str, ...] = ()
  numbered: Callable[[Mapping[tuple[str, ...], Any]], tuple[tuple[str, str, str], ...]] | None = None
  leaves: Mapping[str, tuple[tuple, ...]] = dataclasses.field(default_factory=lambda: TORCH_LEAVES)
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  flavours: Mapping[str, Flavour] = dataclasses.field(default_factory=dict)
  own_flavour: str = ""
  counter: str = "num_batches_tracked"
  extras: tuple[str, ...] = ()
  separator: str = "."
  read_inputs: Callable[[Mapping[str, np.ndarray], prep.Preprocessing], prep.Preprocessing] | None = None
  write_inputs: Callable[[prep.Preprocessing], Mapping[str, np.ndarray]] | None = None
