"""Writes the numbers of docs/performance.md and of README.md from the JSON files in benchmarks/results.

    python benchmarks/performance_page.py

The pages have prose, and between markers what this script puts there:

    <!-- networks: FILE.json -->...<!-- end -->              a table, of a kind of KINDS
    <!-- number: FILE.json PATH FORMAT -->...<!-- end -->    one number: keys joined by '/', as in '.2f'

A file that is not there gives a note that nothing was measured; a test holds pages and files together.
"""

import json
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from performance_tables import KINDS, table

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
PAGES = PAGE, ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"<!-- (\w+): (.+?) -->(.*?)<!-- end -->", re.DOTALL)
NOTHING = "(not measured yet)"


class Goal(NamedTuple):
  """What is to be reached: in words, the file, the paths of the numbers in it (see `values`), the limit."""

  text: str
  file: str
  path: str
  limit: float
  at_least: bool = False  # else at most

  def reached(self, number: float) -> bool:
    """Of the number as it is printed."""
    number, limit = (float(_printed(x).replace(",", "")) for x in (number, self.limit))
    return number >= limit if self.at_least else number <= limit


def _printed(number: float) -> str:
  return f"{number:.2f}" if number < 10 else f"{number:,.0f}"


_RESNET_SHAPES = "28x28x128|14x14x256|7x7x512|56>28x128|28>14x256|14>7x512"
_CIFAR = "families/cifar/networks"
GOALS = (
    Goal("IC layer with gradients against the plain convolution, ResNet-50's shapes", "units.json",
         f"units/ic/{_RESNET_SHAPES}/backward/ours/vs plain/median", 1.2),
    Goal("the same, 56x56x64", "units.json", "units/ic/56x56x64/backward/ours/vs plain/median", 1.4),
    Goal("IC-ResNet-50's step against ResNet-50's", "networks_resnet50.json",
         "families/resnet50/networks/ic_resnet50/sides/ours/vs plain/median", 1.08),
    Goal("IC-ResNet-20's step against ResNet-20's", "networks_cifar.json",
         f"{_CIFAR}/ic_resnet20_cifar/sides/ours/vs plain/median", 1.3),
    Goal("IC-ResNet-20's step against PyTorch's", "networks_cifar.json",
         f"{_CIFAR}/ic_resnet20_cifar/sides/ours/vs torch/median", 1.3),
    Goal("FP core, forward, against PyTorch's", "units.json", "units/fp/*/forward/ours/vs torch/median", 0.5),
    Goal("FP core with gradients against PyTorch's", "units.json",
         "units/fp/*/backward/ours/vs torch/median", 1.1),
    Goal("FP-ResNet-20's step ('001') against ResNet-20's", "networks_cifar.json",
         f"{_CIFAR}/fp_resnet20_cifar/sides/ours/vs plain/median", 1.0),
    Goal("kConv with gradients against PyTorch's, kEffNet-B0's shapes", "units.json",
         "units/kconv/*/backward/ours/vs torch/median", 0.9),
    Goal("MBConv block with gradients against PyTorch's, dense and grouped", "mbconv.json",
         "shapes/*/backward/plain ours|k ours/vs torch/median", 1.4),
    Goal("ResNet-50's step against PyTorch's", "networks_resnet50.json",
         "families/resnet50/networks/resnet50/sides/ours/vs torch/median", 1.3),
    Goal("ResNet-20's step, set on the device, against PyTorch's", "networks_resident.json",
         f"{_CIFAR}/resnet20_cifar/sides/ours/vs torch/median", 1.5),
    Goal("JPEGs read, cropped, resized and flipped a second by one core", "input.json",
         "rate/ours/images per second", 630.0, at_least=True),
    Goal("time of tf.data for the same, antialiased, against ours", "input.json",
         "rate/tf.data antialias/time vs ours/median", 1.0, at_least=True),
)

# README's table: name, file, path of the network's ratios.
STEPS = tuple(
    (name, f"networks_{family}.json", f"families/{family}/networks/{network}/sides/ours") for name, family, network in (
        ("ResNet-20, batch 128", "cifar", "resnet20_cifar"), ("IC-ResNet-20", "cifar", "ic_resnet20_cifar"),
        ("FP-ResNet-20 '001'", "cifar", "fp_resnet20_cifar"), ("ResNet-50, 224 pixels, batch 8", "resnet50", "resnet50"),
        ("IC-ResNet-50", "resnet50", "ic_resnet50"), ("EfficientNet-B0, batch 8", "efficientnet", "efficientnet_b0"),
        ("kEffNet-B0", "efficientnet", "keffnet_b0")))


def rendered(page: str, results: pathlib.Path = RESULTS) -> str:
  """The page with everything between its markers made from the files in `results`.

  Raises:
    ValueError: for a marker that says nothing, or a path that is not in its file.
  """
  def fill(match: re.Match) -> str:
    kind, arguments, _ = match.groups()
    if kind == "number":
      file, rest = arguments.split(" ", 1)
      path, form = rest.rsplit(" ", 1)
      text = NOTHING
      if (results / file).exists():
        text = format(single(read(results / file), path, file), form)
    elif kind == "goals":  # of the files that GOALS names
      text = f"\n{goals(results)}\n"
    elif kind == "steps":  # of those that STEPS names
      text = f"\n{steps(results)}\n"
    elif kind in KINDS:
      found = results / arguments
      text = f"\n{KINDS[kind](read(found)) if found.exists() else NOTHING}\n"
    else:
      raise ValueError(f"{match[0][:60]}: give number, goals, steps, {' or '.join(KINDS)}")
    return f"<!-- {kind}: {arguments} -->{text}<!-- end -->"

  return MARKED.sub(fill, page)


def read(path: pathlib.Path) -> Any:
  return json.loads(path.read_text(encoding="utf-8"))


def values(content: Any, path: str) -> Iterator[tuple[str, float]]:
  """(path, number) for every place that a path leads to; a part is a key, 'one|other', or '*' for each."""
  first, _, rest = path.partition("/")
  for key, value in content.items() if isinstance(content, dict) else ():
    if first == "*" or key in first.split("|"):
      if rest:
        yield from ((f"{key}/{inner}", number) for inner, number in values(value, rest))
      else:
        yield key, value


def single(content: Any, path: str, file: str) -> float:
  found = dict(values(content, path))
  if len(found) != 1:
    raise ValueError(f"{file} has {len(found)} numbers at {path!r}, and the page asks for one")
  return next(iter(found.values()))


def goals(results: pathlib.Path) -> str:
  """Every goal with what was measured: one number, or the range of several and how many reach it."""
  rows = [["ratio of times, or rate", "goal", "measured", "reached"]]
  for goal in GOALS:
    path = results / goal.file
    found = [number for _, number in values(read(path), goal.path)] if path.exists() else []
    measured, reached = NOTHING, ""
    if found:
      within = sum(map(goal.reached, found))
      measured = " to ".join(dict.fromkeys(map(_printed, (min(found), max(found)))))
      reached = "yes" if within == len(found) else f"{within} of {len(found)}" if within else "no"
    rows.append([goal.text, f"{'≥' if goal.at_least else '≤'} {_printed(goal.limit)}", measured, reached])
  return table(rows)


def steps(results: pathlib.Path) -> str:
  """Training steps against PyTorch's, and against that of the plain network where it is another."""
  rows = [["training step", "vs PyTorch", "vs the plain network"]]
  for name, file, path in STEPS:
    content = read(results / file) if (results / file).exists() else {}
    found = [dict(values(content, f"{path}/{against}/median")) for against in ("vs torch", "vs plain")]
    rows.append([name, *(_printed(next(iter(one.values()))) if one else "" for one in found)])
  return table(rows)


def main() -> int:
  for path in PAGES:
    page = path.read_text(encoding="utf-8")
    new = rendered(page)
    if new != page:
      path.write_text(new, encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {'written' if new != page else 'nothing new'}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
