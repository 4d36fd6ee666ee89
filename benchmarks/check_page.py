"""Opens a page of `python -m bionets_jax.report html` in headless Chromium, and fails on errors or requests.

  python benchmarks/check_page.py report.html [--pictures=DIR]

It is opened in light and dark, 1400 and 400 pixels wide. A message on the console, an exception, a request for
anything but the file itself, or a page that is wider than its window is an error; so is a plot that does not answer to
dragging and keys, a table that does not sort, or text that is hard to read (check_page.js). Exit status: 0 fine, 1 not,
2 no such file or no Chromium ($CHROMIUM names another).
"""

import argparse
import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

VIEWS = [("light", 1400), ("light", 400), ("dark", 1400), ("dark", 400)]
_SECONDS = 60
_WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
_ACTS = pathlib.Path(__file__).with_suffix(".js")


def chromium() -> str | None:
  """The browser's path, if there is one."""
  return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, (
      "chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Browser:
  """A page in headless Chromium, over the pipe of its DevTools protocol."""

  def __init__(self, path: str):
    # Chromium reads from 3 and writes to 4.
    (its_in, ours_out), (ours_in, its_out) = os.pipe(), os.pipe()
    self._folder = tempfile.mkdtemp()
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={self._folder}",
                "--remote-debugging-pipe", "about:blank"]
    self._process = subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$@" 3<&{its_in} 4>&{its_out}', "sh", path, *switches],
        pass_fds=(its_in, its_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(its_in)
    os.close(its_out)
    self._write, self._read = os.fdopen(ours_out, "wb", 0), os.fdopen(ours_in, "rb")
    self._number, self._session = 0, None
    self.events: list[dict[str, Any]] = []
    self._watch = threading.Timer(_SECONDS, self._process.kill)
    self._watch.start()
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **parameters: Any) -> dict[str, Any]:
    """The result of a command; what happens meanwhile goes to `events`."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": parameters}
    self._write.write(json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
    while True:
      answer = self._receive()
      if answer.get("id") == self._number:
        if "error" in answer:
          raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]
      self.events.append(answer)

  def wait_for(self, method: str) -> None:
    while not any(event.get("method") == method for event in self.events):
      self.events.append(self._receive())

  def evaluate(self, script: str) -> Any:
    found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
    if "exceptionDetails" in found:
      raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", "exception"))
    return found["result"].get("value")

  def close(self) -> None:
    self._watch.cancel()
    self._process.kill()
    self._process.wait()
    self._write.close()
    self._read.close()
    shutil.rmtree(self._folder, ignore_errors=True)

  def _receive(self) -> dict[str, Any]:
    parts = bytearray()
    while (byte := self._read.read(1)) != b"\0":
      if not byte:
        raise RuntimeError(f"Chromium ended, or did not answer for {_SECONDS} seconds")
      parts += byte
    return json.loads(parts)


def problems(
    page: pathlib.Path, browser: Browser, theme: str, width: int, picture: pathlib.Path | None
) -> Iterator[str]:
  """What is wrong with the page in one view."""
  browser.events.clear()
  browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
  browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
  address = page.resolve().as_uri()
  browser.call("Page.navigate", url=address)
  browser.wait_for("Page.loadEventFired")
  if picture:
    shot = browser.call("Page.captureScreenshot", captureBeyondViewport=True, clip={
        "x": 0, "y": 0, "width": width, "scale": 1,
        "height": browser.evaluate("document.documentElement.scrollHeight")})
    picture.write_bytes(base64.b64decode(shot["data"]))
  if (wider := browser.evaluate(_WIDER)) > 0:
    yield f"{wider} pixels wider than its window"
  browser.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
  yield from browser.evaluate(_ACTS.read_text(encoding="utf-8"))
  if (wider := browser.evaluate(_WIDER)) > 0:
    yield f"{wider} pixels wider than its window with everything unfolded"
  for event in browser.events:
    what, details = event.get("method"), event.get("params", {})
    if what == "Runtime.exceptionThrown":
      yield details["exceptionDetails"].get("exception", {}).get("description", "an exception")
    elif what == "Runtime.consoleAPICalled":
      yield f"console: {[argument.get('value') for argument in details['args']]}"
    elif what == "Log.entryAdded":
      yield f"log: {details['entry']['text']}"
    elif what == "Network.requestWillBeSent" and not details["request"]["url"].startswith(("data:", address)):
      yield f"request: {details['request']['url']}"


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("page", type=pathlib.Path)
  parser.add_argument("--pictures", type=pathlib.Path, help="folder for a picture of each view; made if absent")
  options = parser.parse_args()
  if not options.page.is_file():
    parser.error(f"there is no file {options.page}")
  if not (path := chromium()):
    print("there is no Chromium here", file=sys.stderr)
    return 2
  if options.pictures:
    options.pictures.mkdir(parents=True, exist_ok=True)
  status = 0
  with contextlib.closing(Browser(path)) as browser:
    for theme, width in VIEWS:
      picture = options.pictures / f"{options.page.stem}_{theme}_{width}.png" if options.pictures else None
      found = list(problems(options.page, browser, theme, width, picture))
      print(f"{options.page}, {theme}, {width} pixels: {'; '.join(found) or 'fine'}")
      status = 1 if found else status
  return status


if __name__ == "__main__":
  sys.exit(main())
