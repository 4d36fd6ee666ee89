"""Compiled programs kept on disk, so that the next start does not compile them again."""

import collections
import functools
import os

import jax

# Here jax keeps what the environment or a caller has chosen already: that stays.
_JAX_OPTION = "jax_compilation_cache_dir"
_SECONDS_OPTION = "jax_persistent_cache_min_compile_time_secs"
# JAX keeps what took a second to compile. A start has some ten programs of a few tenths, which add up.
_SECONDS = 0.1


def use_compile_cache(setting: str) -> str:
  """Turns JAX's persistent compilation cache on.

  Args:
    setting: config.compile_cache: 'auto', 'off' or a folder. 'auto' leaves what JAX was told already
      ($JAX_COMPILATION_CACHE_DIR); else on accelerators it takes `default_folder()`, and on a CPU none: its
      programs hold instructions of that CPU, and a home directory can be that of many machines. Where that
      folder cannot be made, 'auto' goes without: nobody has asked for it.

  Returns:
    The folder that is used, '' for none.

  Raises:
    ValueError: for an empty setting, or a folder that is named and cannot be made.
  """
  check_compile_cache(setting)
  folder = getattr(jax.config, _JAX_OPTION) or ""
  if setting == "auto":
    if not folder and jax.default_backend() != "cpu":
      folder = default_folder()
  else:
    folder = "" if setting == "off" else os.path.abspath(os.path.expanduser(setting))
  if folder == (getattr(jax.config, _JAX_OPTION) or ""):
    return folder
  if folder:
    try:
      os.makedirs(folder, exist_ok=True)
    except OSError as error:
      if setting == "auto":
        return ""
      raise ValueError(f"config.compile_cache={setting!r}: {folder} cannot be made ({error.strerror}); give "
                       "another folder, or 'off'") from error
  from jax.experimental.compilation_cache import compilation_cache

  jax.config.update(_JAX_OPTION, folder or None)
  jax.config.update(_SECONDS_OPTION, min(_SECONDS, getattr(jax.config, _SECONDS_OPTION)))
  compilation_cache.reset_cache()  # JAX opens its cache once; without this a change would have no effect
  return folder


def check_compile_cache(setting: str) -> None:
  """Raises ValueError for a setting that is empty."""
  if not setting:
    raise ValueError("config.compile_cache='': give 'auto', 'off' or a folder")


def default_folder() -> str:
  """$XDG_CACHE_HOME/bionets_jax/compiled, by default ~/.cache/bionets_jax/compiled."""
  base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
  return os.path.join(base, "bionets_jax", "compiled")


_EVENTS = {"/jax/compilation_cache/cache_hits": "found", "/jax/compilation_cache/cache_misses": "new"}
_heard: collections.Counter = collections.Counter()


def cache_counts() -> collections.Counter:
  """Programs of this process that the cache had ('found') and had not ('new'), from the first call on."""
  _listen()
  return collections.Counter(_heard)


@functools.cache
def _listen() -> None:
  def hear(event: str, **_) -> None:
    if name := _EVENTS.get(event):
      _heard[name] += 1

  jax.monitoring.register_event_listener(hear)
