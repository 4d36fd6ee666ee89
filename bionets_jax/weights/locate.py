"""Where weights come from: a path, the Hugging Face hub, torchvision."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from bionets_jax.weights import from_hf, from_torchvision
from bionets_jax.weights.native import is_native
from bionets_jax.weights.preprocessing import Preprocessing
from bionets_jax.weights.timm_config import CONFIG_FILE, read_config


@dataclasses.dataclass(frozen=True)
class Located:
  """A file of weights on this machine, and what its source says of it.

  Attributes:
    path: of the file; or the workdir of a run.
    source: as it was asked for.
    name, options: `create_model(name, **options)` is its network; '' and {} where the source does not say.
    preprocessing: the input of its network; None where the source does not say.
  """

  path: str
  source: str
  name: str = ""
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  preprocessing: Preprocessing | None = None


def is_remote(source: str | os.PathLike) -> bool:
  """Whether a source is an address, and not a path."""
  return "://" in os.fsdecode(source)


def check_source(source: str | os.PathLike) -> None:
  """Fails where `locate` could only fail, without asking a server.

  Raises:
    ValueError: not an address that there can be, or a name that torchvision does not have.
    FileNotFoundError: no such file or directory.
  """
  source = os.fsdecode(source)
  if source.startswith(from_hf.SCHEME):
    from_hf.parse(source)
  elif source.startswith(from_torchvision.SCHEME):
    from_torchvision.find(source)
  elif is_remote(source):
    raise ValueError(f"{source}: addresses of weights are hf://OWNER/REPO (the Hugging Face hub) and "
                     "torchvision://ResNet50_Weights.IMAGENET1K_V1; fetch other files, and give their path")
  elif not os.path.exists(source):
    raise FileNotFoundError(f"{source}: no such file or directory")


def locate(source: str | os.PathLike, say: Callable[[str], None] = print) -> Located:
  """The file that a source names, downloaded if it is not on this machine yet.

  Of a file with timm's config.json beside it that says which network it is and how its images are prepared.

  Args:
    source: one of
      a path, of a file or of the workdir of a run; or of a folder like a repository of timm's on the hub;
      'hf://OWNER/REPO[@REVISION][/PATH/IN/REPO]', see `from_hf.fetch`;
      'torchvision://ResNet50_Weights.IMAGENET1K_V1', '.DEFAULT', or 'torchvision://resnet50' for the default
      of that network, see `from_torchvision.fetch`.
    say: takes a line at a time of what is being fetched.

  Raises:
    ValueError, FileNotFoundError: saying what is wrong with the source, or how to place the file by hand.
  """
  source = os.fsdecode(source)
  check_source(source)
  if source.startswith(from_torchvision.SCHEME):
    published = from_torchvision.find(source)
    if not source.endswith(published.name):
      say(f"{source} is {published.name}")
    return Located(from_torchvision.fetch(source, say), source, published.model, published.options,
                   published.preprocessing)
  path = from_hf.fetch(source, say) if source.startswith(from_hf.SCHEME) else source
  if os.path.isdir(path):
    there = [name for name in from_hf.WEIGHT_FILES if os.path.isfile(os.path.join(path, name))]
    if there[:1] in ([], [from_hf.WEIGHT_FILES[0]]):
      return Located(path, source)
    path = os.path.join(path, there[0])
  config = os.path.join(os.path.dirname(path), CONFIG_FILE)
  # A run's weights say themselves what they are.
  if is_native(path) or not os.path.isfile(config):
    return Located(path, source)
  try:
    return Located(path, source, *(read_config(config, say) or ()))
  except ValueError as error:
    raise ValueError(f"{source}: {error}. If that does not belong to these weights, move it away") from error
