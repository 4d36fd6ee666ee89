"""torchvision's published weights: which there are, where they come from, where they are kept.

What is published is in published.json, which tests/fixtures/make_published_table.py wrote from torchvision.
"""

import dataclasses
import difflib
import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bionets_jax.weights.preprocessing import Preprocessing

SCHEME = "torchvision://"
_MIB = 2**20


class Published(NamedTuple):
  """Weights that torchvision publishes.

  Attributes:
    name: 'ResNet50_Weights.IMAGENET1K_V1'.
    model, options: `create_model(model, **options)` is the network.
    preprocessing: of its images.
    file: its name; behind the last '-' stand the first digits of its SHA-256.
    size: bytes, to about a kilobyte.
  """

  name: str
  model: str
  options: Mapping[str, Any]
  preprocessing: Preprocessing
  file: str
  size: float

  @property
  def sha256(self) -> str:
    return self.file.removesuffix(".pth").rsplit("-", 1)[1]

  @property
  def url(self) -> str:
    """Where it lies: below $BIONETS_TORCHVISION_URL, a mirror, if that is set.

    Raises:
      ValueError: if the mirror's address is not one of http or https.
    """
    base = os.environ.get("BIONETS_TORCHVISION_URL") or _table()["base_url"]
    if not base.startswith(("http://", "https://")):
      raise ValueError(f"BIONETS_TORCHVISION_URL={base!r}: give the http(s) address of a folder with "
                       "torchvision's files")
    return f"{base.rstrip('/')}/{self.file}"


def find(source: str) -> Published:
  """The weights that 'torchvision://...' names.

  Behind the '//' stands what torchvision calls them, 'ResNet50_Weights.IMAGENET1K_V1' or
  'ResNet50_Weights.DEFAULT'; or its name of the network, 'resnet50', for the default of that.

  Raises:
    ValueError: for any other name, with those that come near; for networks that are not here.
  """
  table, name = _table(), source.removeprefix(SCHEME)
  networks, weights = table["networks"], table["weights"]
  defaults = {row["weights"]: f"{row['weights']}.{row['default']}" for row in networks.values()}
  kind, _, version = name.partition(".")
  if name in networks:
    name = defaults[networks[name]["weights"]]
  elif version == "DEFAULT" and kind in defaults:
    name = defaults[kind]
  if name not in weights:
    for network, its_weights in table["others"].items():
      if name == network or kind == its_weights:
        raise ValueError(f"{source}: there is no {network} here; of torchvision's networks there are "
                         f"{', '.join(networks)}")
    near = difflib.get_close_matches(name, [*weights, *networks, *defaults], n=3, cutoff=0.5)
    near = [f"{kind}.{one}" for one in ("DEFAULT",) if kind in defaults and not version] + near
    shown = f"; did you mean {' or '.join(SCHEME + one for one in near)}?" if near else "."
    raise ValueError(f"{source}: torchvision {table['torchvision']} has no such weights{shown} Give one of "
                     f"{', '.join(weights)}; or the network, {', '.join(networks)}, for its default")
  row = weights[name]
  network = networks[row["network"]]
  fields = [field.name for field in dataclasses.fields(Preprocessing)]
  preprocessing = Preprocessing(**{key: row[key] for key in fields})
  return Published(
      name, network["model"], network["options"], preprocessing, row["file"], row["mebibytes"] * _MIB)


def fetch(source: str, say: Callable[[str], None] = print) -> str:
  """The path of the file with the weights that `source` names; it is downloaded unless it is there already.

  It is looked for in `cache_folder()` and in the folder of torch.hub, and wherever it lies its checksum is
  compared.

  Raises:
    ValueError: an unknown name, or a file that is not the published one.
    FileNotFoundError: it cannot be downloaded; says how to place it by hand.
  """
  from bionets_jax.weights.download import Unreachable, download, sha256_of

  published = find(source)
  place = os.path.join(cache_folder(), published.file)
  theirs = os.path.join(_torch_folder(), published.file)
  if os.path.isfile(theirs) and not os.path.isfile(place):
    if sha256_of(theirs).startswith(published.sha256):
      return theirs
    say(f"{theirs} has not the checksum of {published.name}; it is not used")
  if not os.path.isfile(place):
    try:
      download(published.url, place, sha256=published.sha256, size=published.size, say=say)
    except (Unreachable, FileNotFoundError) as error:
      raise FileNotFoundError(
          f"{source}: {error}. Fetch {published.url} elsewhere (its SHA-256 begins with {published.sha256}) "
          f"and put it at {place}, or give its path, /path/{published.file}, in place of the address") from error
  if not (found := sha256_of(place)).startswith(published.sha256):
    raise ValueError(f"{place} is not {published.name}: its SHA-256 is {found[:16]}..., the published file's "
                     f"begins with {published.sha256}. Remove it, and it will be downloaded again")
  return place


def cache_folder() -> str:
  """Where downloads are kept: $BIONETS_CACHE/weights, else bionets_jax/weights in the user's cache."""
  cache = os.environ.get("BIONETS_CACHE") or os.path.join(_user_cache(), "bionets_jax")
  return os.path.join(os.path.expanduser(cache), "weights")


def _torch_folder() -> str:
  """Where torch.hub keeps what torchvision downloads."""
  home = os.environ.get("TORCH_HOME") or os.path.join(_user_cache(), "torch")
  return os.path.join(os.path.expanduser(home), "hub", "checkpoints")


def _user_cache() -> str:
  return os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")


@functools.cache
def _table() -> Mapping[str, Any]:
  return json.loads(pathlib.Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
