"""Learning curves, with the spread over seeds."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bionets_jax.training.writer import read_metrics
from bionets_jax.weights.run_metric import AP50_VOC07, TOP1_ERROR, Metric

# Okabe and Ito's colours, told apart with any colour vision; line styles repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
BANDS = "lines: means; bands: from the lowest to the highest seed"
LOSS, TRAIN_ERROR, ERROR = "train/loss", "train/top1_error", f"eval/{TOP1_ERROR.key}"
_MARKED = 50  # points that are told apart

Workdirs = Mapping[str, str | Sequence[str]]


class Curve(NamedTuple):
  """A metric over the epochs: mean, lowest and highest of the runs, each of shape (n,)."""

  epochs: np.ndarray
  mean: np.ndarray
  lowest: np.ndarray
  highest: np.ndarray


def plot_runs(workdirs: Workdirs, path: str, *, title: str = "") -> None:
  """Training loss and evaluation error against epochs, one colour a run or sweep.

  Detectors, which have another loss and an average precision, are in a row of panels of their own.

  Args:
    workdirs: label -> workdir with a metrics.jsonl, or a list of those of several seeds: their mean is
      drawn, and a band from the lowest to the highest.
    path: of the PNG; its folder is made.
    title: above the figure.
  """
  metrics = {label: _metric(its_workdirs) for label, its_workdirs in workdirs.items()}
  rows = list(dict.fromkeys(metrics.values())) or [TOP1_ERROR]
  figure = Figure(figsize=(9, 3.6 * len(rows)), layout="constrained")
  panels = dict(zip(rows, figure.subplots(len(rows), 2, squeeze=False), strict=True))
  for i, (label, its_workdirs) in enumerate(workdirs.items()):
    style = dict(color=COLOURS[i % len(COLOURS)], linestyle=STYLES[i // len(COLOURS) % len(STYLES)],
                 linewidth=1.6, label=_label(label, its_workdirs))
    metric = metrics[label]
    loss_axes, error_axes = panels[metric]
    draw(loss_axes, read_curve(its_workdirs, LOSS), **style)
    draw(error_axes, read_curve(its_workdirs, f"eval/{metric.key}"), marked=True, **style)
  for metric, (loss_axes, error_axes) in panels.items():
    loss_axes.set(xlabel="epoch", ylabel="training loss", yscale="log")
    error_axes.set(xlabel="epoch", ylabel=f"{metric.name} on held-out images (%)")
    error_axes.set_ylim(0, 100 if metric.larger else None)
    for axes in (loss_axes, error_axes):
      plain(axes)
    if len(workdirs) > 1 or any("(" in label for label in error_axes.get_legend_handles_labels()[1]):
      error_axes.legend(frameon=False)
  if title:
    figure.suptitle(title)
  if any(not isinstance(its, str) and len(its) > 1 for its in workdirs.values()):
    figure.supxlabel(BANDS, fontsize=8, color="0.3")
  save(figure, path)


def read_curve(workdirs: str | Sequence[str], key: str) -> Curve | None:
  """A metric of one run or of several seeds; None if one of them has none of it.

  Where the runs logged at different steps, those of the one that logged least are taken and the others
  interpolated, as far as all of them go.
  """
  workdirs = [workdirs] if isinstance(workdirs, str) else workdirs
  return curve_of([read_metrics(os.path.join(workdir, "metrics.jsonl")) for workdir in workdirs], key)


def curve_of(metrics: Sequence[Sequence[Mapping[str, Any]]], key: str) -> Curve | None:
  """`read_curve` of what `read_metrics` has read of each run."""
  runs = []
  for lines in metrics:
    points = [(line["epoch"], line[key]) for line in lines if line.get(key) is not None]
    if not points:
      return None
    runs.append(np.array(points, dtype=np.float64).T)
  if not runs:
    return None
  epochs = min((run[0] for run in runs), key=len)
  epochs = epochs[(epochs >= max(run[0][0] for run in runs)) & (epochs <= min(run[0][-1] for run in runs))]
  values = np.stack([np.interp(epochs, *run) for run in runs])
  return Curve(epochs, values.mean(0), values.min(0), values.max(0))


def draw(axes: Axes, curve: Curve | None, *, color: str, marked: bool = False, **style: Any) -> None:
  """The mean as a line, `marked` with its points if these are few, the range as a band; nothing for None."""
  if curve is None:
    return
  marker = "." if marked and len(curve.epochs) <= _MARKED else None
  axes.plot(curve.epochs, curve.mean, color=color, marker=marker, **style)
  if (curve.lowest < curve.highest).any():
    axes.fill_between(curve.epochs, curve.lowest, curve.highest, color=color, alpha=0.2, linewidth=0)


def plain(axes: Axes) -> None:
  axes.grid(alpha=0.3)
  axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, *paths: str) -> None:
  """Writes the figure, in the formats that the names say; text stays text in PDF."""
  for path in paths:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with matplotlib.rc_context({"pdf.fonttype": 42}):
      figure.savefig(path, dpi=150 if figure.get_figwidth() > 6 else 300)


def _metric(workdirs: str | Sequence[str]) -> Metric:
  """By what a run, or the first of several seeds, is evaluated; as a classifier if it has not been yet."""
  first = [workdirs] if isinstance(workdirs, str) else workdirs[:1]
  lines = (line for workdir in first for line in read_metrics(os.path.join(workdir, "metrics.jsonl")))
  return AP50_VOC07 if any(f"eval/{AP50_VOC07.key}" in line for line in lines) else TOP1_ERROR


def _label(label: str, workdirs: str | Sequence[str]) -> str:
  return label if isinstance(workdirs, str) or len(workdirs) < 2 else f"{label} ({len(workdirs)} seeds)"
