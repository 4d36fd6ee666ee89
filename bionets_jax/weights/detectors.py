"""A detector's weight file, as far as that goes without building the detector: `bionets_jax.detection.load` does."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from bionets_jax.weights.native import LAYOUT

TASK = "detection"  # of a description


@dataclasses.dataclass(frozen=True)
class StoredDetector:
  """What is in the file.

  Attributes:
    variables: {'params': ..., 'batch_stats': ...}, trees of NumPy arrays; whether they are the detector's own is
      not looked at.
    description: what the run wrote beside them.
    source, path: as in `loading.Loaded`.
  """

  variables: Mapping[str, Any]
  description: Mapping[str, Any]
  source: str
  path: str
  layout: ClassVar[str] = LAYOUT
  extras: ClassVar[Mapping[str, Any]] = {}

  def about(self) -> dict[str, Any]:
    return dict(self.description)

  def __str__(self) -> str:
    return f"{self.description['model']} with {backbone_of(self.description)[0]}"


def is_detector(about: Mapping[str, Any]) -> bool:
  """Whether the description of a weight file of ours is a detector's."""
  return about.get("task") == TASK


def backbone_of(about: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
  """(name, options) of a detector's backbone; of another network those of itself."""
  options = about["options"]
  return (options["backbone"], options["backbone_options"]) if is_detector(about) else (about["model"], options)


def stored_detector(
    variables: Mapping[str, Any], about: Mapping[str, Any], source: str, path: str
) -> StoredDetector:
  """The detector of which `native.load_native` has read the variables and the description.

  Raises:
    ValueError: the description lacks the backbone.
  """
  for key, kind in (("backbone", str), ("backbone_options", dict)):
    if not isinstance(about["options"].get(key), kind):
      raise ValueError(f"{path}: damaged weight file (its description has no {key!r} of type {kind.__name__})")
  return StoredDetector(variables, about, source, path)
