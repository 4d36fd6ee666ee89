"""One run at a time in a workdir."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def locked(workdir: str) -> Iterator[None]:
  """Holds `workdir` while the context lasts; the system lets go of it whenever the process ends.

  Raises:
    RuntimeError: if another process holds it, naming that.
    OSError: if it cannot be written, or `.lock` is a link: it is written over, wherever that leads.
  """
  path = os.path.join(workdir, ".lock")

  def direct(name: str, mode: int) -> int:
    return os.open(name, mode | os.O_NOFOLLOW, 0o666)

  with open(path, "a+", encoding="utf-8", opener=direct) as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise RuntimeError(
          f"{workdir} is in use by {file.read().strip() or 'another process'}; wait for it, stop it, or "
          "choose another --workdir") from None
    except OSError:
      pass  # a file system without locks
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    yield
