"""The notebooks run, and print and draw what is stored in them; and the comparison that says so can fail."""

import base64
import copy
import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

FOLDER = pathlib.Path(__file__).parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def runner():
  """examples/notebooks/run.py as a module; it sets what a process of its own should run with."""
  before = dict(os.environ)
  spec = importlib.util.spec_from_file_location("run_notebooks", FOLDER / "run.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  yield module
  os.environ.clear()
  os.environ.update(before)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_gives_what_is_stored(path):
  ended = subprocess.run(
      [sys.executable, str(FOLDER / "run.py"), "--check", str(path)], capture_output=True, text=True, timeout=600)
  assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_outputs_are_whole(path):
  notebook = json.loads(path.read_text(encoding="utf-8"))
  assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
  assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
  code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
  assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))  # run once, from the top
  assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
  for cell in code:
    assert all(output["output_type"] != "error" for output in cell["outputs"])
    text = "".join(cell["source"])
    if "\nprint(" in "\n" + text or "plt.subplots(" in text:  # not inside of a function
      assert cell["outputs"], text
  for number, name in enumerate(("units by hand", "quickstart", "your own model"), 1):
    if path.name.startswith(str(number)):
      assert name in "".join(notebook["cells"][0]["source"])


def test_links_between_them_lead_somewhere():
  assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3"]
  for path in NOTEBOOKS:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    # As Jupyter names them: the words of a heading with hyphens.
    headings = {line.lstrip("# ").replace(" ", "-") for line in text.splitlines() if line.startswith("#")}
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    assert links
    for link in links:
      assert link[1:] in headings if link.startswith("#") else (FOLDER / link).exists(), link


def _png(pixels):
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, format="png")
  return base64.b64encode(data.getvalue()).decode()


def _cells(text="", pixels=None, **metadata):
  outputs = []
  if text:
    outputs.append({"output_type": "stream", "name": "stdout", "text": [text]})
  if pixels is not None:
    outputs.append({"output_type": "display_data", "data": {"image/png": _png(pixels)}, "metadata": {}})
  return [{"cell_type": "code", "metadata": metadata, "outputs": outputs, "source": []}]


def _found(runner, stored, fresh):
  return runner.differences(stored, [cell["outputs"] for cell in fresh])


@pytest.mark.parametrize("old, new, tolerance, same", [
    ("error 2.5 %", "error 2.5 %", 0, True),
    ("error 2.5 %", "error 2.6 %", 0, False),
    ("error 2.5 %", "error 2.6 %", 0.2, True),
    ("error 2.5 %", "error 2.8 %", 0.2, False),
    ("error 2.5 %", "error -2.5 %", 0.2, False),
    ("error  9.5 %", "error 10.5 %", 1, True),       # columns are as wide as their numbers
    ("equal: True", "equal: False", 5, False),
    ("resnet20 1,024", "resnet32 1,024", 99, False),  # a name is no number
    ("1 2", "1 2 3", 9, False),
    ("printed", "", 0, False),
    ("", "printed", 0, False),
])
def test_text_is_compared(runner, old, new, tolerance, same):
  assert (_found(runner, _cells(old, tolerance=tolerance), _cells(new)) == []) == same


def test_pictures_are_compared(runner):
  curve = np.full((200, 300), 255, np.uint8)
  curve[60:140, 50:250] = 0
  shifted, other, blank = np.roll(curve, 2, 1), curve.T.copy(), np.full_like(curve, 255)
  moved = np.roll(curve, 60, 0)
  assert _found(runner, _cells(pixels=curve), _cells(pixels=shifted)) == []
  for stored, fresh, said in ((blank, blank, "stored is blank"), (curve, blank, "drawn is blank"),
                              (curve, other, "size"), (curve, moved, "another one"), (curve, None, "0 were drawn")):
    (message,) = _found(runner, _cells(pixels=stored), _cells(pixels=fresh))
    assert said in message


def test_cells_are_executed_as_jupyter_does(runner):
  cells = [{"cell_type": "code", "source": text} for text in (
      "x = 2\nprint('x', x)", "x + 1", "x + 1;", "None", "def f():\n  return x\nf()")]
  texts = ["".join(runner._texts(outputs)) for outputs in runner.execute(cells, "some")]
  assert texts == ["x 2\n", "3", "", "", "2"]
  drawn = runner.execute([{"cell_type": "code", "source":
                           "import matplotlib.pyplot as plt\nplt.plot([0, 1]);"}], "some")[0]
  assert runner._pictures(drawn) and not runner._texts(drawn)
  with pytest.raises(runner.CellError, match=r"some, cell 2(.|\n)*1 / 0(.|\n)*ZeroDivisionError"):
    runner.execute([cells[0], {"cell_type": "code", "source": "1 / 0"}], "some")


def test_the_command_line(runner, tmp_path, capsys):
  path = tmp_path / "one.ipynb"
  notebook = {"cells": [{"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "outputs": [],
                         "source": ["print(1 + 1)"]}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
  path.write_text(json.dumps(notebook))
  assert runner.main(["--check", str(path)]) == 1 and "1 difference" in capsys.readouterr().out
  assert runner.main([str(path)]) == 0 and runner.main(["--check", str(path)]) == 0
  stored = json.loads(path.read_text())["cells"][0]
  assert stored["outputs"][0]["text"] == ["2\n"] and stored["execution_count"] == 1
  broken = copy.deepcopy(notebook)
  broken["cells"][0]["source"] = ["raise KeyError('gone')"]
  path.write_text(json.dumps(broken))
  assert runner.main([str(path)]) == 1 and "KeyError: 'gone'" in capsys.readouterr().err
  assert json.loads(path.read_text()) == broken  # nothing is written of a notebook that fails
  assert runner.main([str(tmp_path / "absent.ipynb")]) == 1 and "absent.ipynb" in capsys.readouterr().err
