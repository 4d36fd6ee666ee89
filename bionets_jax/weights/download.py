"""Downloads one file with a known checksum: whole or not at all, and from where it broke off."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

TIMEOUT = 30.0  # seconds without a byte from the server
PAUSES = (1.0, 2.0, 5.0, 10.0)  # seconds before the next attempt, once the server has answered at all
REPORT_EVERY = 5.0  # seconds between lines of progress
_CHUNK = 1 << 20
_SLACK = 1.05  # of the published size, which is rounded


class Unreachable(OSError):
  """The server cannot be reached, or keeps breaking off; the message says how."""


class _Broken(Exception):
  """This attempt came to nothing; another one may not."""


def download(url: str, path: str, *, sha256: str, size: float, say: Callable[[str], None] = print) -> None:
  """Fetches `url` to `path`.

  Several processes may ask for the same file at once: one fetches, the others wait. What has arrived stays
  beside it as PATH.part until it is complete, and the next call goes on from there.

  Args:
    url: http or https.
    path: of the file; its folder is made.
    sha256: the first hexadecimal digits of its SHA-256.
    size: bytes, roughly; a server that sends more is not believed.
    say: takes a line of progress every few seconds.

  Raises:
    Unreachable: no answer, or one that broke off again and again.
    FileNotFoundError: the server says that there is no such file, or refuses it.
    ValueError: what came is not the file that was published; nothing of it stays.
  """
  os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
  with _alone(path, say) as part:
    if os.path.isfile(path):
      return  # another process has fetched it meanwhile; who uses it compares its checksum
    started = time.monotonic()
    resumed = os.path.isfile(part) and os.path.getsize(part) > 0
    found = sha256_of(part) if resumed else ""
    if not found.startswith(sha256):  # else it was stopped just before it got its name
      say(f"fetching {url} ({_mb(size)}) to {path}")
      found = _receive(url, part, size, say)
    if resumed and not found.startswith(sha256):
      say("what was left of an earlier attempt was not the beginning of this file; fetching it anew")
      os.remove(part)
      found = _receive(url, part, size, say)
    if not found.startswith(sha256):
      os.remove(part)
      raise ValueError(
          f"{url}: the SHA-256 of the file that came is {found[:16]}..., the published one begins with "
          f"{sha256}. It was removed. A proxy or mirror may have sent something else in its place")
    os.replace(part, path)
    took = _clock(time.monotonic() - started)
    say(f"fetched {_mb(os.path.getsize(path))} in {took}, the checksum is right")


def sha256_of(path: str) -> str:
  """The SHA-256 of a file, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _alone(path: str, say: Callable[[str], None]) -> Iterator[str]:
  """Yields the path of the unfinished file, which no other process writes to meanwhile."""
  with open(f"{path}.lock", "a", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      say(f"another process is fetching {path}; waiting for it")
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a file system without locks: then each process has an unfinished file of its own
      part = f"{path}.{socket.gethostname()}-{os.getpid()}.part"
      try:
        yield part
      finally:
        with contextlib.suppress(FileNotFoundError):
          os.remove(part)
      return
    yield f"{path}.part"


def _receive(url: str, part: str, size: float, say: Callable[[str], None]) -> str:
  """Fills `part`, from where it ends; returns the SHA-256 of the whole."""
  answered = False
  for pause in (*PAUSES, None):
    try:
      return _attempt(url, part, size, say)
    except (_Broken, Unreachable) as error:
      answered = answered or isinstance(error, _Broken)
      if pause is None or not answered:  # without a network there is nothing to wait for
        have = os.path.getsize(part)
        kept = f"; {_mb(have)} of it are kept, and the same command goes on from there" if have else ""
        raise Unreachable(f"{error}{kept}") from error
      say(f"{error}; trying again in {pause:g} s")
      time.sleep(pause)
  raise AssertionError  # the last pause is None


def _attempt(url: str, part: str, size: float, say: Callable[[str], None]) -> str:
  digest = hashlib.sha256()
  with open(part, "ab+") as file:
    file.seek(0)
    while chunk := file.read(_CHUNK):
      digest.update(chunk)
    done = file.tell()
    with contextlib.closing(_open(url, done, file)) as response:
      if done and response.status != 206:  # it sends the whole file again
        file.truncate(0)
        done, digest = 0, hashlib.sha256()
      length = response.headers.get("Content-Length", "")
      total = done + int(length) if length.isdecimal() else None
      progress = _Progress(done, total or size, say)
      while chunk := _read(response):
        file.write(chunk)
        digest.update(chunk)
        done += len(chunk)
        progress.at(done)
        if done > size * _SLACK:
          os.remove(part)
          raise ValueError(f"{url}: the server sends more than the {_mb(size)} that were published; stopped, "
                           "and removed what had come")
  if total is not None and done < total:
    raise _Broken(f"{url}: the connection ended after {_mb(done)} of {_mb(total)}")
  return digest.hexdigest()


def _open(url: str, done: int, file: Any) -> Any:
  """The server's answer with what follows the first `done` bytes, or with everything."""
  import urllib.error
  import urllib.request

  headers = {"User-Agent": "bionets_jax", "Accept-Encoding": "identity"}
  if done:
    headers["Range"] = f"bytes={done}-"
  try:
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
  except urllib.error.HTTPError as error:
    what = f"{url}: the server says {error.code} {error.reason}"
    error.close()
    if error.code == 416:  # nothing follows: a wrong file, or a whole one, which a new attempt will tell
      file.truncate(0)
    if error.code in (408, 416, 429) or error.code >= 500:
      raise _Broken(what) from None
    raise FileNotFoundError(what) from error
  except (OSError, http.client.HTTPException) as error:
    reason = getattr(error, "reason", error)
    raise Unreachable(f"{url} cannot be reached ({reason or type(error).__name__})") from error


def _read(response: Any) -> bytes:
  try:
    return response.read(_CHUNK)
  except (OSError, http.client.HTTPException) as error:
    raise _Broken(f"the connection broke ({error or type(error).__name__})") from error


class _Progress:
  """Says every few seconds how far a download is."""

  def __init__(self, done: int, total: float, say: Callable[[str], None]):
    self._first, self._total, self._say = done, total, say
    self._started = self._reported = time.monotonic()
    if done:
      say(f"going on after {_mb(done)}")

  def at(self, done: int) -> None:
    now = time.monotonic()
    if now - self._reported < REPORT_EVERY or now == self._started:
      return
    self._reported = now
    rate = (done - self._first) / (now - self._started)
    left = max(0.0, self._total - done) / rate
    self._say(f"{done / self._total:4.0%} of {_mb(self._total)}, {rate / 1e6:.1f} MB/s, {_clock(left)} left")


def _mb(size: float) -> str:
  return f"{size / 1e6:,.1f} MB"


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  return f"{minutes}:{seconds:02d}"
