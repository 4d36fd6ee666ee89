"""docs/performance.md and README.md say what the files in benchmarks/results say, and quote nothing else."""

import json
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


sys.path.insert(0, str(ROOT / "benchmarks"))
import performance_page as script  # noqa: E402
from performance_tables import KINDS  # noqa: E402

PAGE = script.PAGE.read_text(encoding="utf-8")


def test_the_pages_are_what_the_files_say():
  for path in script.PAGES:
    page = path.read_text(encoding="utf-8")
    assert script.rendered(page) == page, "run python benchmarks/performance_page.py"
  assert len(script.MARKED.findall(PAGE)) >= 5
  assert PAGE.count("<!-- end -->") == len(script.MARKED.findall(PAGE))


def test_no_measurement_stands_outside_the_markers():
  prose = script.MARKED.sub("", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))
  assert not re.findall(r"\d[\d.,]*\s?(?:x\b|×|%|ms\b|s\b|img|images|[GMT]B\b|[GT]F|times)", prose)


def test_what_the_page_names_exists():
  for name in re.findall(r"benchmarks/\w+\.py", PAGE):
    assert (ROOT / name).exists(), name
  code = (ROOT / "benchmarks" / "networks.py").read_text(encoding="utf-8")
  for flag in ("--compile", "--profile", "--data", "--family", "--json"):
    assert flag not in PAGE or f'"{flag}"' in code, flag


RATIO = {"median": 1.234, "low": 1.1, "high": 1.375}
MACHINE = {"devices": "cpu", "cores": 2, "processor": "P", "jax": "9.9", "torch": "8.8"}
NETWORKS = {"machine": MACHINE, "rounds": 7, "families": {"cifar": {"networks": {"ic_resnet20_cifar": {
    "batch": 128, "sides": {
        "ours": {"ms": 512.4, "images per second": 249.8, "of peak": 0.255, "vs torch": RATIO,
                 "vs plain": RATIO},
        "torch": {"ms": 400.0, "images per second": 2.46, "of peak": 0.3}}}}}}}


def test_tables_goals_and_numbers(tmp_path):
  (tmp_path / "networks_cifar.json").write_text(json.dumps(NETWORKS))
  page = ("a <!-- networks: networks_cifar.json -->old<!-- end --> "
          "<!-- units: units.json -->1.0<!-- end -->\n<!-- goals: cpu --><!-- end -->\n"
          "<!-- number: networks_cifar.json families/*/networks/ic_resnet20_cifar/sides/ours/vs plain/median"
          " .1f -->9<!-- end -->x")
  text = script.rendered(page, tmp_path)
  lines = text.splitlines()
  assert lines[1] == "cpu, 2 cores of P, JAX 9.9, PyTorch 8.8; 7 rounds"
  ours, theirs = (line.split(" | ") for line in lines[5:7])
  assert ours[:6] == ["| `ic_resnet20_cifar`", "bionets_jax", "128", "512", "250", "26 %"]
  assert ours[6:] == ["**1.23** (1.10-1.38)", "", "**1.23** (1.10-1.38) |"]
  assert theirs[3:6] == ["400", "2.5", "30 %"]
  assert lines[8] == script.NOTHING  # there is no units.json
  rows = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in lines if line.startswith("| IC")}
  assert rows["IC-ResNet-20's step against PyTorch's"] == ["≤ 1.30", "1.23", "yes |"]
  assert rows["IC-ResNet-50's step against ResNet-50's"] == ["≤ 1.08", script.NOTHING, " |"]
  assert text.endswith(".1f -->1.2<!-- end -->x")
  assert script.rendered(text, tmp_path) == text


def test_goals_of_several_shapes_and_of_rates(tmp_path):
  sides = {kind: {"vs torch": {"median": value}} for kind, value in (("plain ours", 1.2), ("k ours", 1.6))}
  (tmp_path / "mbconv.json").write_text(json.dumps({"shapes": {"a": {"backward": sides}}}))
  rate = {"ours": {"images per second": 1630.4}, "tf.data antialias": {"time vs ours": {"median": 0.994}}}
  (tmp_path / "input.json").write_text(json.dumps({"rate": rate}))
  lines = {line.split(" ")[1]: line for line in script.goals(tmp_path).splitlines()[2:]}
  assert lines["MBConv"].endswith("| ≤ 1.40 | 1.20 to 1.60 | 1 of 2 |")
  assert lines["JPEGs"].endswith("| ≥ 630 | 1,630 | yes |")
  assert lines["time"].endswith("| ≥ 1.00 | 0.99 | no |")


RATE = {"images per second": 1630.4, "time vs ours": RATIO}
OTHERS = {
    "detection": ({"rounds": 3, "batch": 2, "size": [256, 320], "detectors": {"retinanet": {
        "ours": {"ms": 901.4, "images per second": 2.219}, "torchvision": {"ms": 700.0}, "vs torchvision": RATIO}}},
        "| `retinanet` | 2 | 256x320 | 901 | 2.22 | 700 | **1.23** (1.10-1.38) |"),
    "units": ({"rounds": 7, "units": {"fp": {"8x8": {
        "error": 0.0, "forward": {"ours": {"vs torch": RATIO}}, "backward": {"ours": {"vs plain": RATIO}}}}}},
        "| fp | 8x8 | **1.23** (1.10-1.38) |  |  |  |  | **1.23** (1.10-1.38) |"),
    "memory": ({"networks": {
        "resnet20_cifar": {"family": "c", "batch": 8, "ours": 2**21, "remat": 2**20, "torch": 2**22},
        "ic_resnet20_cifar": {"family": "c", "batch": 8, "ours": 3 * 2**20, "remat": 2**20, "torch": 2**23}}},
        "| `ic_resnet20_cifar` | 8 | 3 | 1.50 | 1 | 0.33 | 8 | 2.00 |"),
    "startup": ({"rounds": 3, "model": "resnet20_cifar", "batch": 64, "cases": {
        "ours cold": {"seconds": 12.34, "vs eager": RATIO, "phases": {"imports": 2.02, "compile": 7.0}}}},
        "| ours cold | 12.3 | **1.23** (1.10-1.38) | imports 2.0, compile 7.0 |"),
    "input": ({"rounds": 5,
               "files": {"number": 9, "images": "made up", "pixels": "500x375", "mean KB": 100.1},
               "rate": {"ours": RATE}, "stalls": {"images per second": 1200.0, "taken at": {
                   "90%": {"waited": 0.012, "least": 0.0, "most": 0.034}}}},
        "| 90% of 1,200 images/s | 1.2 % | 0.0 % | 3.4 % |")}


@pytest.mark.parametrize("kind", OTHERS)
def test_the_other_tables(kind):
  content, row = OTHERS[kind]
  assert KINDS[kind](content | {"machine": MACHINE}).splitlines()[-1] == row


def test_what_the_page_asks_for_must_be_there(tmp_path):
  (tmp_path / "networks_cifar.json").write_text(json.dumps(NETWORKS))
  with pytest.raises(ValueError, match="0 numbers at 'families/none'"):
    script.rendered("<!-- number: networks_cifar.json families/none .2f --><!-- end -->", tmp_path)
  with pytest.raises(ValueError, match="give number, goals, steps, units"):
    script.rendered("<!-- network: networks_cifar.json --><!-- end -->", tmp_path)
