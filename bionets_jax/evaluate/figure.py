"""Errors against the strength of a disturbance, as a PNG."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from bionets_jax.evaluate.robustness import KINDS
from bionets_jax.report.curves import COLOURS, STYLES


def plot(results: Mapping[str, Any], path: str, title: str) -> None:
  """A panel for each disturbance: top-1 error and changed predictions, with the error without it.

  Args:
    results: see `robustness.by_kind`.
    path: of the PNG.
    title: above the figure.
  """
  kinds = [kind for kind in KINDS if kind in results]
  figure = Figure(figsize=(0.6 + 2.9 * len(kinds), 3.4), layout="constrained")
  panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
  for axes, kind in zip(panels, kinds, strict=True):
    levels = [row["level"] for row in results[kind]]
    for i, (key, label) in enumerate((("top1_error", "top-1 error"), ("changed", "predictions changed"))):
      axes.plot(levels, [row[key] for row in results[kind]], marker="os"[i], markersize=4, linewidth=1.6,
                color=COLOURS[i], linestyle=STYLES[i], label=label)
    axes.axhline(results["clean"]["top1_error"], color=COLOURS[-1], linestyle=":", linewidth=1.2,
                 label="top-1 error, clean")
    axes.set(xlabel=KINDS[kind].axis, ylabel="images (%)", ylim=(0, 100))
    axes.tick_params(labelleft=True)
    if kind == "jpeg":
      axes.invert_xaxis()  # as in the others, more is lost to the right
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
  handles, labels = panels[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
  figure.suptitle(title, fontsize="medium")
  figure.savefig(path, dpi=150)
