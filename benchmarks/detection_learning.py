"""Whether detectors learn: RetinaNet and Faster R-CNN, plain and with IC units, from nothing, on a CPU.

    python benchmarks/detection_learning.py [--json=FILE] [--workdir=DIR]

Makes the study `configs/shapes_detection.py:all` (2,000 made-up pictures to train on, 200 others to measure with) and
prints what each of the four reaches and in which time. Exit status 1 if an average precision at an overlap of 0.5 (area
under the curve) is below 80 %. Beside the JSON file, with .png in its place, the curves, and behind `_pictures.png` what
each detector finds in some of the held-out pictures. The same command with the same --workdir goes on where it stopped.

What it does not show: photographs, pretrained backbones, full widths. The pictures are easy, and one seed is no
comparison of units.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import timing

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STUDY = "configs/shapes_detection.py:all"
ENOUGH = 80.0  # percent
SHOWN = 4  # pictures


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", help="default: a temporary one")
  parser.add_argument("--json", metavar="FILE", help="and plots beside it")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    workdir = options.workdir or os.path.join(scratch, "run")
    subprocess.run([sys.executable, "launch.py", f"--config={STUDY}", f"--workdir={os.path.abspath(workdir)}"],
                   cwd=ROOT, check=True)
    with open(os.path.join(workdir, "summary.json"), encoding="utf-8") as file:
      summaries = json.load(file)
    rows = [row(name, summary) for name, summary in summaries.items()]
    show(rows)
    if options.json:
      timing.write(options.json, {"machine": timing.machine(), "runs": rows})
      stem = os.path.splitext(options.json)[0]
      from bionets_jax.report.curves import plot_runs

      plot_runs({name: os.path.join(workdir, name) for name in summaries}, f"{stem}.png", title="Detectors on shapes")
      pictures({name: os.path.join(workdir, name) for name in summaries}, f"{stem}_pictures.png")
  return int(any(one["ap50"] < ENOUGH for one in rows))


def row(name: str, summary: dict) -> dict:
  """What a finished run reached; minutes from its start to its end, compiling and evaluating included."""
  last = summary["last"]
  return {"run": name, "parameters": summary["parameters"], "steps": summary["steps"], "epochs": summary["epochs"],
          **{key: last[key] for key in ("ap50", "ap50_voc07", "ap75", "ap")},
          "classes": {key.removeprefix("class/"): value for key, value in last.items() if key.startswith("class/")},
          "minutes": (summary["total_seconds"] + summary["start_seconds"]["total"]) / 60}


def show(rows: list[dict]) -> None:
  table = [["run", "parameters", "epochs", "AP50", "VOC07", "AP75", "COCO AP", "minutes"]]
  table += [[one["run"], f"{one['parameters']:,}", f"{one['epochs']:g}",
             *(f"{one[key]:.1f}" for key in ("ap50", "ap50_voc07", "ap75", "ap", "minutes"))] for one in rows]
  print(timing.table(table), flush=True)


def pictures(workdirs: dict[str, str], path: str) -> None:
  """A row of held-out pictures for each run, with what it finds."""
  import numpy as np
  from matplotlib.figure import Figure

  from bionets_jax import detection
  from bionets_jax.data.sources import open_source
  from bionets_jax.detection.drawing import draw

  source = open_source("generated/shapes", "test")
  figure = Figure(figsize=(3 * SHOWN, 2.4 * len(workdirs)), layout="constrained")
  for axes, (name, workdir) in zip(
      figure.subplots(len(workdirs), SHOWN, squeeze=False), workdirs.items(), strict=True):
    detector = detection.load(workdir)
    find = detection.Finder(detector, least=0.5)
    for i, one in enumerate(axes):
      image = np.asarray(source.read(i)[0])
      one.imshow(draw(image, *find(image), detector.class_names))
      one.set_axis_off()
    axes[0].set_title(name, loc="left", fontsize=10)
  figure.savefig(path, dpi=100)


if __name__ == "__main__":
  sys.exit(main())
