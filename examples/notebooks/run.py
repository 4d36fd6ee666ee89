"""Runs the notebooks and stores what they print and draw in them. `make notebooks`

    python examples/notebooks/run.py [NOTEBOOK...]            # all of this folder by default
    python examples/notebooks/run.py --check [NOTEBOOK...]    # compares with what is stored, writes nothing

Cells are executed one after the other in this process, as far as these notebooks need what Jupyter does: no magics, no
widgets. Text is compared word by word, and the numbers in it exactly, unless a cell has in its metadata

    "tolerance": 1.5      how far a number may be from the stored one: for what a training has come to

Exit status: 0, or 1 if a cell raised or a check found a difference.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import linecache
import os
import pathlib
import re
import sys
import traceback
from typing import Any

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent.parent))  # a checkout that is not installed

# What may be set for other programs would change the numbers: another generator, another backend.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MPLBACKEND"] = "agg"
os.environ.pop("JAX_DEFAULT_PRNG_IMPL", None)

_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d*)?(?:e[-+]?\d+)?(?!\w)")
_DPI = 100
Cell = dict[str, Any]


class CellError(Exception):
  """A cell raised; the message is its traceback."""


def source(cell: Cell) -> str:
  """A cell's text, which the format keeps as lines or as one string."""
  return "".join(cell["source"])


def execute(cells: list[Cell], name: str) -> list[list[Cell]]:
  """The outputs of each code cell, in nbformat's form.

  Args:
    cells: of a notebook.
    name: of the notebook, for tracebacks.

  Raises:
    CellError: if a cell does.
  """
  namespace: dict[str, Any] = {"__name__": "__main__"}
  return [_execute(source(cell), f"{name}, cell {i}", namespace)
          for i, cell in enumerate(cells, 1) if cell["cell_type"] == "code"]


def _execute(code: str, where: str, namespace: dict[str, Any]) -> list[Cell]:
  linecache.cache[where] = (len(code), None, code.splitlines(keepends=True), where)  # tracebacks show the lines
  tree = ast.parse(code, where)
  last = None
  # The value of a last expression is shown, unless a semicolon follows it.
  if tree.body and isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";"):
    last = ast.Expression(tree.body.pop().value)
  text, value = io.StringIO(), None
  try:
    with contextlib.redirect_stdout(text):
      exec(compile(tree, where, "exec"), namespace)
      if last is not None:
        value = eval(compile(last, where, "eval"), namespace)
  except Exception:
    raise CellError(f"{where}:\n{traceback.format_exc()}") from None
  outputs: list[Cell] = []
  if text.getvalue():
    outputs.append({"name": "stdout", "output_type": "stream", "text": _lines(text.getvalue())})
  if value is not None:
    outputs.append({"data": {"text/plain": _lines(repr(value))}, "execution_count": None, "metadata": {},
                    "output_type": "execute_result"})
  return outputs + [
      {"data": {"image/png": png, "text/plain": ["<Figure>"]}, "metadata": {}, "output_type": "display_data"}
      for png in _figures()]


def _figures() -> list[str]:
  """The open figures as PNG in base64; closes them."""
  from matplotlib import pyplot

  found = []
  for number in pyplot.get_fignums():
    data = io.BytesIO()
    pyplot.figure(number).savefig(data, format="png", dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
    found.append(base64.b64encode(data.getvalue()).decode())
  pyplot.close("all")
  return found


def _lines(text: str) -> list[str]:
  return text.splitlines(keepends=True)


def differences(stored: list[Cell], fresh: list[list[Cell]]) -> list[str]:
  """What the stored outputs of a notebook's cells lack, or have otherwise than a run has just given them.

  Args:
    stored: all cells of the notebook.
    fresh: what `execute` returned for them.
  """
  found = []
  numbered = [(i, cell) for i, cell in enumerate(stored, 1) if cell["cell_type"] == "code"]
  for (i, cell), outputs in zip(numbered, fresh, strict=True):
    tolerance = cell["metadata"].get("tolerance", 0)
    old, new = ("".join(_texts(part)) for part in (cell["outputs"], outputs))
    if message := _text_difference(old, new, tolerance):
      found.append(f"cell {i}: {message}")
    pictures = [_pictures(part) for part in (cell["outputs"], outputs)]
    if len(pictures[0]) != len(pictures[1]):
      found.append(f"cell {i}: {len(pictures[0])} pictures are stored, {len(pictures[1])} were drawn")
      continue
    for a, b in zip(*pictures, strict=True):
      if message := _picture_difference(a, b):
        found.append(f"cell {i}: {message}")
  return found


def _texts(outputs: list[Cell]) -> list[str]:
  return ["".join(o["text"] if o["output_type"] == "stream" else o["data"]["text/plain"]) for o in outputs
          if "image/png" not in o.get("data", {})]


def _pictures(outputs: list[Cell]) -> list[str]:
  return ["".join(o["data"]["image/png"]) for o in outputs if "image/png" in o.get("data", {})]


def _text_difference(old: str, new: str, tolerance: float) -> str:
  """'' if the words are the same and the numbers within the tolerance."""
  # Columns are as wide as their numbers.
  words = [re.sub(r"[\s-]+", " ", _NUMBER.sub("#", text)).strip() for text in (old, new)]
  pairs = list(zip(*(map(_value, _NUMBER.findall(text)) for text in (old, new)), strict=False))
  if words[0] == words[1] and all(abs(a - b) <= tolerance for a, b in pairs):
    return ""
  return f"stored\n{old}\nand now\n{new}\n(numbers may differ by {tolerance})"


def _value(number: str) -> float:
  return float(number.replace(",", ""))


def _picture_difference(old: str, new: str) -> str:
  """'' if neither picture is blank, and the two have about the same size and, made small, look alike."""
  import numpy as np
  from PIL import Image

  images = [Image.open(io.BytesIO(base64.b64decode(png))).convert("L") for png in (old, new)]
  for image, which in zip(images, ("stored", "drawn"), strict=True):
    if np.asarray(image).std() < 2:
      return f"the picture that was {which} is blank"
  sizes = np.array([image.size for image in images])
  if (abs(sizes[0] - sizes[1]) > 0.05 * sizes[0]).any():
    return f"the picture's size was {images[0].size}, and is {images[1].size} now"
  # A label may be a pixel longer, a curve run a little higher: of blocks of 16 pixels, the mean difference in grey.
  small = [np.asarray(image.resize(tuple(sizes[0] // 16), Image.Resampling.BOX), float) for image in images]
  mean = abs(small[0] - small[1]).mean()
  return f"the picture is another one: {mean:.0f} of 255 levels of grey on average" if mean > 6 else ""


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("notebooks", nargs="*", type=pathlib.Path, metavar="NOTEBOOK")
  parser.add_argument("--check", action="store_true", help="compare with what is stored, write nothing")
  options = parser.parse_args(arguments)
  status = 0
  for path in options.notebooks or sorted(FOLDER.glob("*.ipynb")):
    try:
      notebook = json.loads(path.read_text(encoding="utf-8"))
      fresh = execute(notebook["cells"], path.name)
    except (OSError, ValueError, KeyError, CellError) as error:
      print(f"error: {path}: {error}", file=sys.stderr)
      status = 1
      continue
    if options.check:
      found = differences(notebook["cells"], fresh)
      print(f"{path.name}: {len(found) or 'no'} difference{'' if len(found) == 1 else 's'}", *found, sep="\n")
      status |= bool(found)
      continue
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for i, (cell, outputs) in enumerate(zip(cells, fresh, strict=True), 1):
      cell["outputs"], cell["execution_count"] = outputs, i
      for output in outputs:
        if output["output_type"] == "execute_result":
          output["execution_count"] = i
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path.name}: {len(cells)} cells")
  return status


if __name__ == "__main__":
  sys.exit(main())
