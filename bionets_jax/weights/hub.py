"""Uploads weights with their model card to the Hugging Face hub."""

import json
import os
import re
from collections.abc import Callable
from typing import Any

from bionets_jax.weights.card import CARD_FILE, CONFIG_FILE, LIBRARY
from bionets_jax.weights.native import WEIGHT_FILE, is_native

NEEDED = (WEIGHT_FILE, CONFIG_FILE, CARD_FILE)
# What else may lie there: weights.npz and model.py of `export`, the licence that the owner has chosen.
ALLOWED = (*NEEDED, "weights.npz", "model.py", "LICENSE")
_LOGIN = ("log in with `hf auth login`, or set HF_TOKEN to a token that may write "
          "(huggingface.co/settings/tokens)")


def push(
    folder: str | os.PathLike, repo: str, *, private: bool = False, token: str | None = None,
    message: str = "", dry_run: bool = False, say: Callable[[str], None] = print,
) -> str:
  """Uploads a folder with a model card as one commit; creates the repository where there is none.

  What was uploaded can be loaded as 'hf://OWNER/NAME'.

  Args:
    folder: with `NEEDED` and nothing that is not in `ALLOWED`: a folder with anything else, such as a run's
      workdir with its checkpoints, is refused, whatever it is.
    repo: 'OWNER/NAME'.
    private: makes a new repository private; one that is there has to be.
    token: of the hub; default: that of HF_TOKEN or of `hf auth login`.
    message: of the commit.
    dry_run: only says what would be uploaded.
    say: takes what is printed.

  Returns:
    The address of the repository.

  Raises:
    ValueError: the folder is not what it should be, or there is no token.
    OSError: the hub cannot be reached, or refuses; says why.
  """
  folder = os.fspath(folder)
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
    raise ValueError(f"{repo!r}: give the repository as OWNER/NAME")
  files = check_folder(folder)
  import huggingface_hub as hub
  from huggingface_hub.errors import HfHubHTTPError

  message = message or f"{LIBRARY} weights with their model card"
  for name in files:
    size = os.path.getsize(os.path.join(folder, name))
    say(f"{'would upload' if dry_run else 'uploading'} {name}  {size:,} bytes")
  if dry_run:
    return f"{hub.HfApi().endpoint}/{repo}"
  token = token or hub.get_token()
  if not token:
    raise ValueError(f"no token of the Hugging Face hub: {_LOGIN}")
  api = hub.HfApi(token=token)
  # Its HTTP library is another one in each major version, but its errors derive from those of that library.
  network: Any = tuple(kind for kind in HfHubHTTPError.__mro__ if kind.__module__ != "builtins")
  try:
    address = api.create_repo(repo, private=private, exist_ok=True)
    if private and not api.model_info(repo).private:
      raise ValueError(f"{repo} is there already and is public; make it private in its settings, or leave "
                       "--private away")
    added = [hub.CommitOperationAdd(name, os.path.join(folder, name)) for name in files]
    api.create_commit(repo, added, commit_message=message)
  except (*network, ConnectionError, RuntimeError) as error:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    hint = f". The token does not allow it: {_LOGIN}" if status in (401, 403) else ""
    raise OSError(f"{repo}: nothing was uploaded ({reason}){hint}") from error
  say(f"{address}, to be loaded as hf://{repo}")
  return str(address)


def check_folder(folder: str) -> list[str]:
  """The files of a folder that is to be uploaded, weights last.

  Raises:
    FileNotFoundError: there is no such folder, or something is missing in it.
    ValueError: there is something in it that is not meant to be shared, naming it.
  """
  if not os.path.isdir(folder):
    raise FileNotFoundError(f"{folder}: no such folder")
  entries = {entry.name: entry for entry in os.scandir(folder)}
  strange = sorted(name for name, entry in entries.items()
                   if name not in ALLOWED or not entry.is_file(follow_symlinks=False))
  if strange:
    shown = ", ".join(strange[:8]) + (", ..." if len(strange) > 8 else "")
    raise ValueError(f"{folder} holds {shown}, which is not uploaded: only files called {', '.join(ALLOWED)} "
                     "are, and only from a folder with nothing else")
  if missing := [name for name in NEEDED if name not in entries]:
    raise FileNotFoundError(f"{folder} has no {', '.join(missing)}; `python -m bionets_jax.weights card` "
                            "writes a folder with all that belongs together")
  weights = os.path.join(folder, WEIGHT_FILE)
  if not is_native(weights):
    raise ValueError(f"{weights} was not written by bionets_jax, and would not load again")
  path = os.path.join(folder, CONFIG_FILE)
  with open(path, encoding="utf-8") as file:
    try:
      library = json.load(file).get("library_name")
    except (ValueError, AttributeError):
      library = None
  if library != LIBRARY:  # a run's own has the same name, and says where things lie on its machine
    raise ValueError(f"{path} is not one of a model card; `python -m bionets_jax.weights card` writes one")
  return sorted(entries, key=lambda name: (name == WEIGHT_FILE, name))
