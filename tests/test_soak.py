"""benchmarks/soak.py tells a leak from what comes and goes, and can be asked again about the samples of a run."""

import json
import pathlib
import sys

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
