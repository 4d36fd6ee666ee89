"""The bytes of an image file."""

import os
import stat

# A pipe is opened at once, and does not wait for who writes to it.
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)


def read_image_file(path: str) -> bytes:
  """All of a file, or of what a link leads to.

  Raises:
    OSError: it cannot be read, or is a folder.
    ValueError: it is a device or a pipe, which need never end.
  """
  with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _AT_ONCE)) as file:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
      raise ValueError("a device or a pipe, no file")
    return file.read()
