"""Learning curves as a PNG."""

import os
from collections.abc import Mapping

from matplotlib.figure import Figure

from bionets_jax.training.writer import read_metrics

# Okabe and Ito's colours, told apart with any colour vision; line styles repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")


def plot_runs(workdirs: Mapping[str, str], path: str, *, title: str = "") -> None:
  """Training loss and evaluation error against epochs, one colour a run.

  Args:
    workdirs: label -> workdir with a metrics.jsonl.
    path: of the PNG; its folder is made.
    title: above the figure.
  """
  figure = Figure(figsize=(9, 3.6), layout="constrained")
  loss_axes, error_axes = figure.subplots(1, 2)
  for i, (label, workdir) in enumerate(workdirs.items()):
    lines = read_metrics(os.path.join(workdir, "metrics.jsonl"))
    style = dict(color=COLOURS[i % len(COLOURS)], linestyle=STYLES[i // len(COLOURS) % len(STYLES)],
                 linewidth=1.6, label=label)
    for axes, key, marker in ((loss_axes, "train/loss", None), (error_axes, "eval/top1_error", ".")):
      points = [(line["epoch"], line[key]) for line in lines if line.get(key) is not None]
      if points:
        axes.plot(*zip(*points, strict=True), marker=marker, **style)
  loss_axes.set(xlabel="epoch", ylabel="training loss", yscale="log")
  error_axes.set(xlabel="epoch", ylabel="top-1 error on held-out images (%)")
  error_axes.set_ylim(bottom=0)
  for axes in (loss_axes, error_axes):
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
  if len(workdirs) > 1:
    error_axes.legend(frameon=False)
  if title:
    figure.suptitle(title)
  os.makedirs(os.path.dirname(path), exist_ok=True)
  figure.savefig(path, dpi=150)
