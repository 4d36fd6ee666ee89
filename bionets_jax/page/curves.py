"""What is drawn as lines: metrics over the epochs, and errors over the strength of a disturbance."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bionets_jax.evaluate.robustness import KINDS
from bionets_jax.page.markup import Section, absent, folded, paragraph, table
from bionets_jax.report.curves import LOSS, Curve, curve_of
from bionets_jax.report.ledger import Ledger
from bionets_jax.report.workdirs import Run, is_number
from bionets_jax.training.writer import read_metrics
from bionets_jax.weights.run_metric import AP50_VOC07, OF_CLASS

_MOST = 600  # points of a curve
_BESIDE = ("step", "epoch")
_NAMES = {
    "train/loss": "training loss", "eval/loss": "loss on held-out images",
    "train/top1_error": "top-1 error in training (%)", "eval/top1_error": "top-1 error on held-out images (%)",
    "eval/top5_error": "top-5 error on held-out images (%)",
    f"eval/{AP50_VOC07.key}": f"{AP50_VOC07.name} on held-out images (%)",
    f"eval/{AP50_VOC07.beside}": f"{AP50_VOC07.beside_heading} on held-out images",
    "train/learning_rate": "learning rate", "train/grad_norm": "norm of the gradient",
    "time/images_per_second": "images a second",
}


def curves_section(ledger: Ledger) -> Section:
  """Every metric of metrics.jsonl: of an experiment the mean of its seeds, and their range as a band."""
  groups = [(e.name, [_read(run) for run in e.runs]) for e in ledger.experiments]
  groups += [(f"{run.label} (not finished)", [_read(run)]) for run in ledger.unfinished]
  title = "Learning curves"
  keys = dict.fromkeys(key for _, runs in groups for lines in runs for line in lines for key in line)
  keys = [key for key in keys if key not in _BESIDE and not key.startswith(f"eval/{OF_CLASS}")]
  if not keys:
    return absent("curves", title, "no run has a metrics.jsonl, which training writes:",
                  "python launch.py --config=... --workdir=...")
  series = {key: {i: _points(curve) for i, (_, runs) in enumerate(groups)
                  if (curve := curve_of(runs, key)) is not None and len(curve.epochs)} for key in keys}
  held_out = [f"eval/{e.metric.key}" for e in ledger.experiments] + ["eval/top1_error", "eval/loss"]
  data = {
      "runs": [name + (f" ({len(runs)} seeds)" if len(runs) > 1 else "") for name, runs in groups],
      "metrics": [[key, _NAMES.get(key, key)] for key in sorted(keys) if series[key]], "series": series,
      "first": [next((key for key in wanted if series.get(key)), keys[0]) for wanted in ([LOSS], held_out)],
      "log": [LOSS]}
  body = paragraph(
      "Lines are means over the seeds, bands reach from the lowest to the highest seed. Drag over a plot to enlarge "
      f"a part of it. Of curves of more than {_MOST} points {_MOST} are kept, evenly spaced.", "reading")
  return Section("curves", title, body + '<div id="curves-here"></div>', data)


def robustness_section(ledger: Ledger) -> Section:
  """The errors on disturbed images that `python -m bionets_jax.evaluate` has stored."""
  rows, groups = [], {}
  for i, e in enumerate(ledger.experiments):
    for run in e.runs:
      for found in run.evaluations:
        where = f"{found.get('data')} {found.get('split')}, {_number(found.get('examples'))} images"
        name = e.name + (f", seed {run.seed}" if len(e.runs) > 1 else "")
        for kind, axis in KINDS.items():
          if not (levels := _levels(found.get(kind))):
            continue
          panel = groups.setdefault(where, {}).setdefault(
              kind, {"name": kind, "x": axis.axis, "reversed": kind == "jpeg", "series": []})
          panel["series"].append({"name": name, "run": i, "x": [level["level"] for level in levels],
                                  "y": [level["top1_error"] for level in levels], "clean": found["top1_error"]})
          rows += [[name, where, axis.axis, f"{level['level']:g}", f"{level['top1_error']:.2f}",
                    _number(level.get("changed"), 2), f"{found['top1_error']:.2f}"] for level in levels]
  title = "Robustness"
  if not rows:
    return absent("robustness", title, "of no run; this stores it:",
                  "python -m bionets_jax.evaluate WORKDIR --robustness")
  header = ["run", "images", "disturbance", "level", "error %", "changed %", "error without %"]
  caption = "Errors on disturbed images"
  body = (paragraph("Top-1 error against the strength of each disturbance; dotted: without it. In the table 'changed' "
                    "counts the images whose predicted class is another one than without it.", "reading")
          + '<div id="robustness-here"></div>' + folded(caption, table(caption, header, rows, header[:3])))
  data = [{"title": where, "panels": list(panels.values()), "runs": list(dict.fromkeys(
      (one["name"], one["run"]) for panel in panels.values() for one in panel["series"]))}
      for where, panels in groups.items()]
  return Section("robustness", title, body, {"groups": data})


def _read(run: Run) -> list[dict[str, float]]:
  """The lines of a run's metrics.jsonl, without what is no finite number."""
  lines = ({key: float(value) for key, value in line.items() if is_number(value)}
           for line in read_metrics(run.metrics))
  return [line for line in lines if "epoch" in line]


def _points(curve: Curve) -> list[list[float]]:
  """[epochs, means] of a curve, and [lowest, highest] where those are not the same."""
  count = len(curve.epochs)
  kept = np.unique(np.linspace(0, count - 1, min(count, _MOST)).round().astype(int))
  band = [curve.lowest, curve.highest] if (curve.lowest < curve.highest).any() else []
  return [values[kept].tolist() for values in (curve.epochs, curve.mean, *band)]


def _levels(found: Any) -> list[Mapping[str, Any]]:
  return [] if not isinstance(found, list) else [
      row for row in found if isinstance(row, Mapping) and is_number(row.get("level"))
      and is_number(row.get("top1_error"))]


def _number(value: Any, digits: int = 0) -> str:
  return f"{value:,.{digits}f}" if is_number(value) else "?"
