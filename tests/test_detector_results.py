"""`python -m bionets_jax.report results` of detectors: beside IC networks' Table 5, and by class."""

import json

import pytest
from report_runs import make_detector, make_run, only, report

from bionets_jax.report import curves, ledger
from bionets_jax.report.figures import training_curves
from bionets_jax.report.table import run_table


def columns(table):
  """heading -> cells, of lines of Markdown."""
  header, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
  return dict(zip(header, zip(*rows, strict=True), strict=True))


def tables(markdown):
  """The tables, and the line above each."""
  blocks = [block.splitlines() for block in markdown.split("\n\n")]
  return [(above[-1] if above else "", columns(block))
          for above, block in zip([[], *blocks], blocks, strict=False) if block[0].startswith("|")]


def test_detectors_stand_beside_table_5(tmp_path, capsys):
  for seed, ap in enumerate((78.5, 79.1)):
    make_detector(tmp_path / "ic" / f"seed_{seed}", ap=ap, seed=seed)
  make_detector(tmp_path / "plain", "faster_rcnn,resnet50", 79.0)
  status, text, errors = report(capsys, tmp_path, "--markdown", f"--json={tmp_path}/out.json")
  assert status == 0 and not errors and "top-1" not in text and "lowest" not in text
  (title, found), (of_classes, classes) = tables(text)
  assert title == "Detectors: AP50 %, VOC07"
  assert found["network"] == ("retinanet with ic_resnet50", "faster_rcnn with resnet50")
  assert found["paper's row"][0] == "IC networks, Table 5, RetinaNet, IC-ResNet-50"
  assert found["paper"] == ("78.2", "79.5") and found["compared"] == ("last", "last")
  # By hand: (78.2 + 78.8) / 2, and .6 / sqrt(2) of deviation; larger is better, so the sign is that of a gain.
  assert found["ours"] == found["last"] == ("78.50 ± 0.42 (2)", "78.70")
  assert found["difference"] == ("+0.30", "-0.80") and found["highest"] == ("78.80 ± 0.42 (2)", "79.00")
  assert found["AP %, COCO"] == ("51.80 ± 0.42 (2)", "52.00")
  assert "[a] the paper's number: published by others" in text
  assert of_classes == "AP50 %, VOC07, of each class of voc (last)"
  assert classes["class"] == ("aeroplane", "bicycle") and classes["plain"] == ("83.00", "74.00")
  assert classes["ic"] == ("82.80 ± 0.42 (2)", "73.80 ± 0.42 (2)")
  ours, _ = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["experiments"]
  assert ours["detector"] == "retinanet" and ours["compared_by"] == "ap50_voc07"
  assert ours["difference"] == pytest.approx(0.3) and ours["last"]["class/bicycle"]["mean"] == pytest.approx(73.8)
  assert report(capsys, tmp_path)[1].count("78.80 ± 0.42 (2)") == 1


@pytest.mark.parametrize("changes,why", [
    ({"epochs": 1.0}, "epochs 1; the paper has 12"),
    ({"data": "generated/voc"}, "made-up images, not voc"),
    ({"inputs": dict(train_examples=5_011, eval_examples=4_952)},
     "5,011 images in the train split; the paper has 16,551")])
def test_departures_of_detectors(tmp_path, changes, why):
  experiment = only(make_detector(tmp_path, **changes))
  assert experiment.departures == [why] and experiment.difference() is None


def test_classifiers_and_detectors_never_share_a_table(tmp_path, capsys):
  make_run(tmp_path / "net")
  make_detector(tmp_path / "detector")
  _, text, _ = report(capsys, tmp_path, "--markdown")
  found = dict(tables(text))
  detectors, classifiers = found["Detectors: AP50 %, VOC07"], found["Classifiers: top-1 error %"]
  assert detectors["experiment"] == ("detector",) and "highest" in detectors and "lowest" not in detectors
  assert classifiers["experiment"] == ("net [a]",) and classifiers["lowest"] == ("8.00",)
  # That of classifiers is what it is alone.
  alone = report(capsys, tmp_path / "net", "--markdown")[1]
  assert alone.startswith("| experiment |") and alone.splitlines()[2] in text
  table = run_table({name: json.loads((tmp_path / name / "summary.json").read_text()) for name in ("net", "detector")})
  errors, precisions = table.split("\n\n")
  assert "error %  lowest %" in errors and errors.splitlines()[2].split()[-3:] == ["8.25", "8.00", "1:06:40"]
  assert "AP50 %, VOC07  highest %" in precisions and "retinanet with ic_resnet50" in precisions
  assert precisions.splitlines()[2].split()[-3:] == ["78.20", "78.50", "1:06:40"]


def test_a_detector_without_objects_to_find_is_named(tmp_path, capsys):
  make_detector(tmp_path, last=dict(step=3))
  status, _, errors = report(capsys, tmp_path)
  assert status == 1 and "last.ap50_voc07 is None, not a number" in errors


def test_curves_of_detectors_have_the_whole_range(tmp_path, monkeypatch):
  figures = []
  monkeypatch.setattr(curves, "save", lambda figure, *paths: figures.append(figure))
  precision = [{"step": s, "epoch": float(s), "train/loss": 2 / s, "eval/ap50_voc07": 20.0 * s} for s in (1, 2, 3)]
  error = [{"step": s, "epoch": float(s), "train/loss": 1 / s, curves.ERROR: 30 / s} for s in (1, 2, 3)]
  detector = make_detector(tmp_path / "detector", metrics=precision)
  network = make_run(tmp_path / "net", metrics=error)
  curves.plot_runs({"detector": str(detector), "net": str(network)}, "")
  axes = figures[0].axes
  assert [a.get_ylabel() for a in axes] == [
      "training loss", "AP50 (VOC07) on held-out images (%)", "training loss", "top-1 error on held-out images (%)"]
  assert axes[1].get_ylim() == (0, 100) and axes[3].get_ylim()[0] == 0 and axes[3].get_ylim()[1] < 40
  assert [line.get_ydata().tolist() for a in axes[1::2] for line in a.lines] == [[20, 40, 60], [30, 15, 10]]
  (experiment,) = ledger.collect([str(detector)])
  (drawn,) = training_curves([experiment]).axes
  assert drawn.get_ylabel() == "AP50 (VOC07) (%)" and drawn.get_ylim() == (0, 100)
  assert drawn.lines[0].get_ydata().tolist() == [20, 40, 60]
