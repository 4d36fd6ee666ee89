"""Weights on the Hugging Face hub: their addresses, and fetching them."""

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from bionets_jax.weights.files import SUFFIXES
from bionets_jax.weights.timm_config import CONFIG_FILE, read_config

SCHEME = "hf://"
# What is looked for where the address names no file: ours, then timm's, the safe one of its formats first.
WEIGHT_FILES = ("weights.safetensors", "model.safetensors", "pytorch_model.bin")
_ADDRESS = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/@\s]+))?"
    r"(?:/(?P<file>[^@\s]+))?")


class Address(NamedTuple):
  """A place on the hub; `revision` '' is the main branch, `file` '' the repository's weights."""

  repo: str
  revision: str
  file: str

  def __str__(self) -> str:
    return (SCHEME + self.repo + (f"@{self.revision}" if self.revision else "")
            + (f"/{self.file}" if self.file else ""))


def parse(source: str) -> Address:
  """Reads 'hf://OWNER/REPO[@REVISION][/PATH/IN/REPO]'.

  Raises:
    ValueError: for anything else, and for a file of a kind that cannot be read.
  """
  match = _ADDRESS.fullmatch(source.removesuffix("/"))
  parts = (match["file"] or "").split("/") if match else []
  outside = any(part in (".", "..") for part in re.split("[/@]", source))  # the names become those of folders
  if not match or outside or "" in parts[1:]:
    raise ValueError(f"{source}: expected hf://OWNER/REPO, hf://OWNER/REPO@REVISION or hf://OWNER/REPO/"
                     "PATH/IN/REPO, such as hf://timm/resnet50.tv_in1k")
  address = Address(match["repo"], match["revision"] or "", match["file"] or "")
  if address.file and os.path.splitext(address.file)[1].lower() not in SUFFIXES:
    raise ValueError(f"{source}: cannot read {parts[-1]!r}; these can be read: {', '.join(SUFFIXES)}")
  return address


def fetch(source: str, say: Callable[[str], None] = print) -> str:
  """The path of the weights that `source` names, in the cache of huggingface_hub.

  They are downloaded unless they are there already, and so is the config.json beside them, from the same
  commit; before the weights, so that a network which is none of ours costs no download. Without a connection
  what the cache has is used. $HF_ENDPOINT, $HF_HOME, $HF_TOKEN and $HF_HUB_OFFLINE do what they do for
  huggingface_hub.

  Raises:
    ValueError: not an address, or config.json is of a network that is none of ours.
    FileNotFoundError: the hub has no such thing, wants a login, or cannot be reached; says what to do.
  """
  address = parse(source)
  import huggingface_hub as hub
  from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

  # Its HTTP library is another one in each major version, but its errors derive from those of that library.
  # Its own downloader, hf_xet, raises RuntimeError.
  theirs = (kind for kind in HfHubHTTPError.__mro__ if kind.__module__ != "builtins")
  network: Any = (*theirs, LocalEntryNotFoundError, ConnectionError, TimeoutError, RuntimeError)
  where: dict[str, Any] = dict(repo_id=address.repo, revision=address.revision or None)
  names = (address.file,) if address.file else WEIGHT_FILES
  name = names[0]
  try:
    for name in names:
      try:
        found = hub.get_hf_file_metadata(hub.hf_hub_url(filename=name, **where))
        break
      except LocalEntryNotFoundError:
        raise
      except EntryNotFoundError:
        continue
    else:
      raise FileNotFoundError(_no_such_file(address, where))
    config = ""
    try:
      config = hub.hf_hub_download(filename=_beside(name), **where)
      read_config(config, say=lambda text: None)  # it is read again where it lies beside the weights
    except LocalEntryNotFoundError:
      raise
    except EntryNotFoundError:
      pass  # it has none
    except ValueError as error:
      raise ValueError(f"{address}: {error}") from error
    commit = found.commit_hash or ""
    if not isinstance(hub.try_to_load_from_cache(address.repo, name, revision=commit), str):
      size = f" ({found.size / 1e6:,.1f} MB)" if found.size else ""
      say(f"fetching {name}{size} of {address.repo}, commit {commit[:12]}, from the Hugging Face hub")
    path = hub.hf_hub_download(filename=name, **where)
    if config and os.path.dirname(config) != os.path.dirname(path):
      raise FileNotFoundError(f"{address}: the repository was changed while it was being fetched; try again")
    return path
  except network as error:
    if (refused := _refusal(address, error)) is not None:
      raise FileNotFoundError(refused) from error
    for name in names:
      if isinstance(cached := hub.try_to_load_from_cache(filename=name, **where), str):
        alone = not os.path.isfile(os.path.join(os.path.dirname(cached), CONFIG_FILE))
        say(f"{address}: the hub cannot be reached; using {cached}" + (
            ", which has no config.json beside it in the cache" if alone and name != WEIGHT_FILES[0] else ""))
        return cached
    raise FileNotFoundError(_offline(address, where, error)) from error


def _refusal(address: Address, error: Exception) -> str | None:
  """What to say where the hub has answered, and will not answer otherwise."""
  from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

  login = "log in (`hf auth login`, or HF_TOKEN in the environment)"
  page = f"https://huggingface.co/{address.repo}"
  if isinstance(error, GatedRepoError):
    return f"{address}: its authors ask for consent to their terms; give it on {page}, and {login}"
  if isinstance(error, RepositoryNotFoundError):
    return f"{address}: the hub has no such repository, or it is private; look at {page}, or {login}"
  if isinstance(error, RevisionNotFoundError):
    return f"{address}: {address.repo} has no branch, tag or commit {address.revision or 'main'!r}"
  if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
    return f"{address}: the hub refuses it ({_first_line(error)}); {login}"
  return None


def _first_line(error: BaseException) -> str:
  return str(error).strip().partition("\n")[0] or type(error).__name__


def _no_such_file(address: Address, where: dict[str, Any]) -> str:
  import huggingface_hub as hub

  what = f"no {address.file!r}" if address.file else f"none of {', '.join(WEIGHT_FILES)}"
  start = f"{address}: {address.repo} has {what}"
  try:
    files = [file for file in hub.HfApi().list_repo_files(**where) if file.lower().endswith(SUFFIXES)]
  except Exception:  # it is only for the message, which does without
    return f"{start}; give hf://OWNER/REPO/PATH/IN/REPO"
  if not files:
    return f"{start}, nor any other file of weights ({', '.join(SUFFIXES)})"
  there = ", ".join(f"{SCHEME}{address.repo}/{file}" for file in files[:8])
  return f"{start}; give one of its files: {there}"


def _offline(address: Address, where: dict[str, Any], error: Exception) -> str:
  import huggingface_hub as hub

  # Without a network nothing tells whether the repository is one of ours.
  name = address.file or WEIGHT_FILES[1]
  weights, config = (hub.hf_hub_url(filename=file, **where) for file in (name, _beside(name)))
  reason = _first_line(error.__cause__ or error)
  return (
      f"{address}: the hub cannot be reached ({reason}), and huggingface_hub's cache has no weights of it. "
      f"Fetch {weights} elsewhere, {config} too, which says how its images are prepared; lay both into one "
      f"folder, and give the path of the first, /path/{name.split('/')[-1]}, in place of the address")


def _beside(name: str) -> str:
  """config.json in the folder of a file of a repository."""
  folder, slash, _ = name.rpartition("/")
  return folder + slash + CONFIG_FILE
