"""Files that are there whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Mapping
from typing import Any, BinaryIO


def write_whole(contents: Mapping[Any, bytes | str]) -> None:
  """Writes files that belong together; each gets its name when all of them are written.

  Args:
    contents: path, a str or os.PathLike, -> what is in the file; text as UTF-8.

  Raises:
    OSError: naming the file; nothing is left of it then.
  """
  temporary = {os.fspath(path): f"{os.fspath(path)}.tmp" for path in contents}
  for path in temporary:
    if os.path.isdir(path):
      raise IsADirectoryError(errno.EISDIR, "there is a folder of this name", path)
  try:
    for (path, name), content in zip(temporary.items(), contents.values(), strict=True):
      try:
        with _open_new(name) as file:
          file.write(content.encode() if isinstance(content, str) else content)
          file.flush()
          os.fsync(file.fileno())  # else a crash of the machine may leave the name without the content
      except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    for path, name in temporary.items():
      os.replace(name, path)
  finally:
    for name in temporary.values():
      with contextlib.suppress(OSError):
        os.remove(name)


def _open_new(path: str) -> BinaryIO:
  """A file that was not there before: a link of this name, wherever it leads, is replaced and not followed."""
  with contextlib.suppress(FileNotFoundError):
    os.remove(path)
  return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")
