"""benchmarks/soak.py tells a leak from what comes and goes, and can be asked again about the samples of a run."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "benchmarks"))
import soak  # noqa: E402


def samples(**series):
  """Two hours, every ten seconds; series that are not given do not move."""
  hours = np.arange(1, 721) / 360
  still = {name: np.full(720, 100.0) for name in soak.SERIES} | {"step": 10_000 * hours}
  return [{"hours": hours[i]} | {name: float(values[i]) for name, values in (still | series).items()} for i in range(720)]


def buffers(more):
  """1,000 MiB, and blocks of 25 that are there the more often the later it is."""
  random = np.random.default_rng(0)
  return 1000 + 25.0 * (random.random(720) < np.linspace(0.2, 0.8, 720)) + more


def test_buffers_that_come_and_go_are_no_leak_and_one_below_them_is():
  name = "asked for, main process"
  held = soak.slope(samples(**{name: buffers(0)}), name)
  assert held["per_hour"] > held["error"] and abs(held["least_per_hour"]) < 1 and not held["grows"]
  leak = soak.slope(samples(**{name: buffers(np.linspace(0, 40, 720))}), name)
  assert leak["grows"] and leak["least_per_hour"] == pytest.approx(20, abs=1)
  files = soak.slope(samples(**{"open files": 100 + np.arange(720) // 100}), "open files")
  assert files["grows"]


@pytest.mark.parametrize("leak", [0, 40])
def test_the_samples_of_a_run_are_judged_again(leak, tmp_path, monkeypatch, capsys):
  path = tmp_path / "soak.json"
  series = {"asked for, main process": buffers(np.linspace(0, leak, 720)), "memory, main process": np.arange(1, 721.0)}
  path.write_text(json.dumps({"machine": "of the run", "samples": samples(**series)}))
  monkeypatch.setattr(sys, "argv", ["soak.py", f"--judge={path}"])
  assert soak.main() == (leak > 0)
  assert ("YES" in capsys.readouterr().out) == (leak > 0)
  stored = json.loads(path.read_text())
  assert stored["machine"] == "of the run" and stored["steps"] == 20_000
  assert (tmp_path / "soak.png").stat().st_size > 10_000


@pytest.mark.parametrize("left,status", [(None, 1), (np.ones(720), 0), (1 + np.arange(720) // 200, 1)])
def test_a_pool_that_grows_is_a_leak_unless_nothing_of_it_outlives_a_rest(left, status, tmp_path, monkeypatch, capsys):
  seen = samples(**{"tensorstore's threads": 7 + np.arange(720) // 360, soak.AT_REST: np.ones(720) if left is None else left})
  for i, one in enumerate(seen):
    if left is None or i % 30:  # every five minutes
      del one[soak.AT_REST]
  path = tmp_path / "soak.json"
  path.write_text(json.dumps({"machine": "of the run", "samples": seen}))
  monkeypatch.setattr(sys, "argv", ["soak.py", f"--judge={path}"])
  assert soak.main() == status
  assert (soak.AT_REST in capsys.readouterr().out) == (left is not None)


def test_a_rest_stops_a_process_and_its_children(monkeypatch):
  code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: print(1, flush=True)'])"
  process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
  sleep, states = time.sleep, []

  def look(seconds):
    if seconds != soak.REST_SECONDS:
      return
    for one in (process.pid, *soak.descendants(process.pid)):
      for _ in range(500):  # the signal may take a moment
        state = pathlib.Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
          break
        sleep(0.01)
      states.append(state)

  monkeypatch.setattr(soak, "_pool", lambda pid: 3)
  try:
    process.stdout.readline()  # both are up
    monkeypatch.setattr(soak.time, "sleep", look)
    assert soak.rest(process.pid) == 3 and states == ["T", "T"]
    process.stdout.read(1_000_000)  # it goes on
  finally:
    for one in soak.descendants(process.pid):
      soak._signal(one, signal.SIGKILL)
    process.kill()
    process.wait()
