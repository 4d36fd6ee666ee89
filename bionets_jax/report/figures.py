"""The figures of the results: error or average precision against parameters, and training curves."""

import os
import re
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from bionets_jax.models import base_name, list_models
from bionets_jax.report import curves
from bionets_jax.report.curves import COLOURS, STYLES
from bionets_jax.report.ledger import Experiment
from bionets_jax.report.scatter import Point, scatter
from bionets_jax.weights.run_metric import Metric

_CURVES = 6  # networks that one figure of curves holds
_MARKERS = {"20": "o", "32": "D", "44": "s"}  # as in FP-nets' Figure 3
BLUE, RED = COLOURS[0], COLOURS[1]


def draw_all(experiments: Sequence[Experiment], folder: str) -> list[str]:
  """Draws every figure that the experiments have numbers for, as PNG and as PDF.

  - parameters-DATA: error, of detectors average precision, against parameters, all experiments on a data set.
  - fp-nets-figure-2, fp-nets-figure-3: the same for the networks of FP-nets' Figures 2 and 3, in their
    form, as soon as there is an FP-ResNet of that figure.
  - curves-DATA-NETWORK: training and held-out error against epochs, of a network and those made of it; of
    detectors the average precision of those with this backbone.

  Args:
    experiments: see `ledger.collect`.
    folder: made if absent.

  Returns:
    The paths of the files.
  """
  figures: dict[str, Figure] = {}
  by_data: dict[tuple[str, Metric], list[Experiment]] = {}
  for e in experiments:
    by_data.setdefault((e.data, e.metric), []).append(e)
  for (data, metric), group in by_data.items():
    shared = {e.statistic for e in group}
    statistic = shared.pop() if len(shared) == 1 else "last"
    figures[f"parameters-{data}"] = scatter(
        [_point(e, statistic, e.name, **_unit(e)) for e in group], title=data,
        ylabel=_axis(metric, statistic))
    suffix = "" if data == "cifar10" else f"-{data}"
    for number in (2, 3):
      points = [point for e in group if (point := _of_figure(number, e))]
      if any(point.group == "FP-ResNet" for point in points):
        figures[f"fp-nets-figure-{number}{suffix}"] = scatter(
            points, title=f"FP-nets, Figure {number}: {data}", ylabel=_axis(metric, "best"))
    families: dict[str, list[Experiment]] = {}
    for e in group:
      families.setdefault(_base(e), []).append(e)
    for base, members in families.items():
      for name, part in _parts(base, members):
        if figure := training_curves(part):
          figures[f"curves-{data}-{name}"] = figure
  paths = []
  for name, figure in figures.items():
    files = [os.path.join(folder, f"{name.replace('/', '-')}.{form}") for form in ("png", "pdf")]
    curves.save(figure, *files)
    paths += files
  return paths


def _axis(metric: Metric, statistic: str) -> str:
  if statistic == "test":
    return f"{metric.name} on the test split (%)"
  return f"{metric.extreme if statistic == 'best' else statistic} {metric.name} (%)"


def _base(e: Experiment) -> str:
  """The plain network under a model, so that a network and its twins come into one figure."""
  name = e.first["model"]
  return base_name(name) if name in list_models() else name


def _unit(e: Experiment) -> dict[str, str]:
  """Colour and legend of a network by the unit in it."""
  name = e.first["model"]
  for i, (prefix, unit) in enumerate((("fp_", "FP"), ("ic_", "IC"), ("keffnet", "kEffNet")), start=1):
    if name.startswith(prefix):
      return dict(colour=COLOURS[i], group=unit)
  return dict(colour=COLOURS[0], group="plain")


def _point(e: Experiment, statistic: str, label: str, **style: str) -> Point:
  published = e.paper.get(e.metric.key)
  same = published is not None and not e.departures and e.statistic == statistic
  return Point(e.first["parameters"], e.spread(statistic), label, other=bool(e.departures or not e.paper),
               published=(published, e.paper.get(f"{e.metric.key}_std")) if same else None, **style)


def _of_figure(number: int, e: Experiment) -> Point | None:
  """A point of FP-nets' Figure 2 or 3, drawn as there; None for networks that are not in it."""
  match = re.fullmatch(r"(fp_)?resnet(20|32|44)_cifar", e.first["model"])
  options = dict(e.runs[0].config.get("model", {}).get("options", {}))
  if not match:
    return None
  unit, depth = match.groups()
  bits = options.pop("fp_layers", "001") if unit else ""
  if options or (number == 2 and depth not in (("32",) if unit else ("20", "32"))) or (
      number == 3 and bits not in ("", "001")):
    return None
  label = (bits if number == 2 else f"FP-ResNet-{depth}") if unit else f"ResNet-{depth}"
  colour, group = (RED, "FP-ResNet") if unit else (BLUE, "ResNet")
  return _point(e, "best", label, colour=colour, group=group, marker=_MARKERS[depth])


def training_curves(experiments: Sequence[Experiment]) -> Figure | None:
  """Error on held-out images (full lines) and on training images (thin, broken) against epochs.

  One colour a network, means over the seeds, bands from the lowest to the highest. Of detectors the average
  precision, which is not measured on training images. None if no run has its metrics.jsonl any more.

  Args:
    experiments: of one metric.
  """
  metric = experiments[0].metric
  figure = Figure(figsize=(3.4, 2.9), layout="constrained")
  axes = figure.subplots()
  late, last = [], 0.0
  for i, e in enumerate(experiments):
    workdirs, colour = [run.workdir for run in e.runs], COLOURS[i % len(COLOURS)]
    found = curves.read_curve(workdirs, f"eval/{metric.key}")
    if found is None:
      continue
    n = f" ({len(workdirs)} seeds)" if len(workdirs) > 1 else ""
    curves.draw(axes, found, color=colour, marked=True, linewidth=1.3, label=f"{e.name}{n}")
    train = None if metric.larger else curves.read_curve(workdirs, curves.TRAIN_ERROR)
    curves.draw(axes, train, color=colour, linewidth=0.7, linestyle=STYLES[1])
    for curve in (found, train):
      if curve is not None and len(curve.epochs):
        # What comes before is steep and would leave no room for the rest.
        late += curve.highest[curve.epochs >= 0.1 * curve.epochs[-1]].tolist()
        last = max(last, curve.epochs[-1])
  if not late:
    return None
  axes.set(xlabel="epoch", ylabel=f"{metric.name} (%)", xlim=(0, 1.015 * last),
           ylim=(0, 100 if metric.larger else 1.05 * max(late) or 1))
  curves.plain(axes)
  axes.plot([], [], color="0.4", linewidth=1.3, label="held-out images")
  if not metric.larger:
    axes.plot([], [], color="0.4", linewidth=0.7, linestyle=STYLES[1], label="training images")
  _small(axes)
  figure.legend(loc="outside upper center", ncols=2, fontsize=6.5, frameon=False, handlelength=2)
  if any(len(e.runs) > 1 for e in experiments):
    figure.supxlabel(curves.BANDS, fontsize=6.5, color="0.3")
  return figure


def _small(axes) -> None:
  axes.tick_params(labelsize=7)
  for label in (axes.xaxis.label, axes.yaxis.label):
    label.set_size(8)


def _parts(base: str, members: list[Experiment]) -> Iterable[tuple[str, list[Experiment]]]:
  """Figures' worth of a family, each with the plain network first."""
  plain = [e for e in members if e.first["model"] == base][:_CURVES - 1]
  others = [e for e in members if e not in plain]
  room = _CURVES - len(plain)
  chunks = [others[i:i + room] for i in range(0, len(others), room)] or [[]]
  for i, chunk in enumerate(chunks):
    yield base + (f"-{i + 1}" if len(chunks) > 1 else ""), plain + chunk
