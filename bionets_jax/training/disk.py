"""Files and folders as a checkpoint needs them: brought to the disk, removed, with errors in a line."""

import errno
import os
import re
import shutil


def check_room(folder: str, need: int) -> None:
  """Raises OSError where the file system has less room than `need` bytes; some do not say how much."""
  room = shutil.disk_usage(folder)
  if room.total and room.free < need:
    raise OSError(errno.ENOSPC, f"No space left on device: {need:,} bytes are needed, {room.free:,} are free", folder)


def names_in(folder: str) -> list[str]:
  """What is in a folder; [] if there is none."""
  try:
    return os.listdir(folder)
  except FileNotFoundError:
    return []


def remove(path: str) -> None:
  """Removes a file, a link or a folder with everything in it, as far as that can be done."""
  if os.path.islink(path) or os.path.isfile(path):
    os.remove(path)
  else:
    shutil.rmtree(path, ignore_errors=True)


def to_disk(path: str) -> None:
  """Returns when every file and folder of a tree is on the disk itself."""
  for folder, _, names in os.walk(path):
    for name in names:
      sync(os.path.join(folder, name))
    sync(folder)


def sync(path: str) -> None:
  """Returns when a file, or the names in a folder, are on the disk itself."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def reason(error: BaseException) -> str:
  """What an error is about, in a line."""
  if (number := system_error(error)) is not None:
    file = getattr(error, "filename", None)
    return (getattr(error, "strerror", None) or os.strerror(number)) + (f" ({file})" if file else "")
  lines = str(error).strip().splitlines() or [""]
  return f"{type(error).__name__}: {lines[0][:300]}"


def system_error(error: BaseException) -> int | None:
  """errno of an OSError, or of the one that tensorstore has put into words."""
  if isinstance(error, OSError) and error.errno:
    return error.errno
  match = re.search(r"os_error_code='(\d+)'", str(error))
  return int(match[1]) if match else None
