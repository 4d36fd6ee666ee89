"""`python -m bionets_jax.report results`: what was reached, beside what the papers print."""

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bionets_jax.report.ledger import STATISTICS, Experiment, Ledger, read
from bionets_jax.report.table import aligned
from bionets_jax.report.workdirs import Run, is_number
from bionets_jax.training.clock import readable
from bionets_jax.training.spread import Spread
from bionets_jax.weights.run_metric import AP50_VOC07, TOP1_ERROR, Metric, network_of

_READING = (
    "{what}: mean ± sample standard deviation (number of seeds). 'last' is after the last step; "
    "'{extreme}' the {extreme} over the epochs, chosen on the images that it is measured on; 'test' of a split "
    "that was looked at once. 'ours' is the one of them that the paper reports, as 'compared' says. Hours "
    "are those of training, for one run.")
_WHAT = {
    TOP1_ERROR: "Errors in per cent",
    AP50_VOC07: "AP50 by VOC2007's rule (overlap of 0.5, mean precision at 11 recalls) and COCO's AP, in per "
                "cent, the larger the better",
}
_ALWAYS_TOP5 = 100  # classes; with fewer, top-5 errors are shown only where a paper gives them
LEFT = {"experiment", "network", "paper's row", "compared", "data", "device", "commit", "class"}


class Table(NamedTuple):
  """Text cells, and sign -> footnote."""

  header: list[str]
  rows: list[list[str]]
  notes: dict[str, str]


def make_table(experiments: Sequence[Experiment]) -> Table:
  """One row an experiment; columns that no row fills are left out, but for those of errors.

  Args:
    experiments: of one metric.
  """
  notes: dict[str, str] = {}  # text -> sign
  columns: dict[str, list[str]] = {}
  for e in experiments:
    prefix = "not compared with the paper: " if e.metric.key in e.paper else ""
    signs = [notes.setdefault(text, _sign(len(notes)))
             for text in [prefix + text for text in e.departures] + e.remarks]
    for name, cell in _cells(e).items():
      if name == "experiment":
        cell = " ".join([cell, *(f"[{sign}]" for sign in signs)])
      columns.setdefault(name, []).append(cell)
  shown = [name for name, cells in columns.items() if any(cells) or name in ("paper", "difference")]
  rows = zip(*([cell or "-" for cell in columns[name]] for name in shown), strict=True)
  return Table(shown, [list(row) for row in rows], {sign: text for text, sign in notes.items()})


def _cells(e: Experiment) -> dict[str, str]:
  paper, summary, key = e.paper, e.first, e.metric.key
  detector = e.metric is AP50_VOC07
  classes = (summary.get("inputs") or {}).get("classes")
  top5 = "top5_error" in paper or (is_number(classes) and classes >= _ALWAYS_TOP5)
  difference = e.difference()
  return {
      "experiment": e.name, "network": network_of(summary) if detector else "",
      "paper's row": ", ".join(str(paper[k]) for k in ("table", "row") if paper.get(k)),
      "paper": _paper(paper, key),
      "compared": e.word(e.statistic) if key in paper else "",
      "ours": _show(e.spread(e.statistic)) if key in paper else "",
      "difference": "" if difference is None else f"{difference:+.2f}",
      **{e.word(statistic): _show(e.spread(statistic)) for statistic in STATISTICS},
      e.metric.beside_heading: _show(e.spread(e.statistic, e.metric.beside)) if detector else "",
      "top-5, paper": _paper(paper, "top5_error"),
      "top-5": _show(e.spread(e.statistic, "top5_error")) if top5 else "",
      "10-crop, paper": _paper(paper, "top1_error_10crop"), "10-crop": _show(e.crops()),
      "10-crop top-5, paper": _paper(paper, "top5_error_10crop"),
      "10-crop top-5": _show(e.crops("top5_error")) if top5 else "",
      "parameters": f"{summary['parameters']:,}", "MACs": _count(summary["macs"]),
      "epochs": f"{summary['epochs']:g}", "data": e.data, "device": _list(e.distinct("devices")),
      "hours": _hours(e),
      "commit": _list(str(c)[:7] + "+" * str(c).endswith("+") for c in e.distinct("commit"))}


def as_text(ledger: Ledger, now: float | None = None) -> str:
  """The tables with their notes, what else was evaluated, and what has not finished."""
  def lines_of(header, rows):
    lines = aligned([header, *rows], [i for i, h in enumerate(header) if h in LEFT])
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
  parts = []
  for title, metric, experiments in groups(ledger.experiments):
    table = make_table(experiments)
    parts += ["\n".join([title] * bool(title) + lines_of(table.header, table.rows)),
              "\n".join([reading(metric), *(f"[{sign}] {note}" for sign, note in table.notes.items())])]
    parts += ["\n".join([heading, *lines_of(*rows)]) for heading, *rows in class_tables(experiments)]
  if others := evaluation_rows(ledger.experiments):
    parts.append("\n".join(["Evaluations", *aligned(others, left=range(5))]))
  if ledger.unfinished:
    parts.append("\n".join(["Not finished", *aligned(waiting_rows(ledger, now), left=(0, 2, 3))]))
  return "\n\n".join(parts)


def as_markdown(ledger: Ledger, now: float | None = None) -> str:
  """The same as Markdown."""
  def table(header, rows, left):
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (
        header, ["---" if h in left else "---:" for h in header], *rows))
  parts = []
  for title, metric, experiments in groups(ledger.experiments):
    cells = make_table(experiments)
    parts += [title] * bool(title) + [table(cells.header, cells.rows, LEFT), reading(metric)]
    parts += ["\n".join(f"- [{sign}] {note}" for sign, note in cells.notes.items())] * bool(cells.notes)
    for heading, header, rows in class_tables(experiments):
      parts += [heading, table(header, rows, LEFT)]
  if others := evaluation_rows(ledger.experiments):
    parts.append(table(others[0], others[1:], others[0][:5]))
  if ledger.unfinished:
    header = ["not finished", "steps", "last line", "what to do"]
    parts.append(table(header, waiting_rows(ledger, now), {header[0], *header[2:]}))
  return "\n\n".join(parts)


def as_json(ledger: Ledger) -> dict[str, Any]:
  """The same for programs, in full precision, with the values of each seed."""
  return {
      "experiments": [_experiment_json(e) for e in ledger.experiments],
      "unfinished": [
          {"workdir": run.workdir, "seed": run.seed}
          | dict(zip(("step", "checkpoint", "steps"), run.progress(), strict=True))
          for run in ledger.unfinished],
      "warnings": [{"path": path, "problem": problem} for path, problem in ledger.warnings]}


def _experiment_json(e: Experiment) -> dict[str, Any]:
  def spreads(statistic):
    metrics = dict.fromkeys(k for run in e.runs for k in run.summary.get(statistic, {}) if k != "step")
    return {m: s._asdict() for m in metrics if (s := e.spread(statistic, m))} or None
  detector = e.metric is AP50_VOC07
  crops = {m: s._asdict() for m in ("top1_error", "top5_error") if (s := e.crops(m))}
  keys = ("model", "task", "data", "parameters", "macs", "epochs", "steps", "batch_size")
  of_run = ("last", "best", "test", "train_seconds", "total_seconds", "devices", "dtype", "commit",
            "versions", "inputs")
  return {
      "name": e.name, **{k: e.first.get(k) for k in keys},
      **({"detector": e.first.get("detector"), "compared_by": e.metric.key} if detector else {}),
      "paper": e.paper, "statistic": e.statistic,
      "difference": e.difference(), "departures": e.departures, "remarks": e.remarks,
      **{statistic: spreads(statistic) for statistic in STATISTICS}, "ten_crop": crops or None,
      "runs": [{"workdir": run.workdir, "seed": run.seed,
                **{k: run.summary.get(k) for k in of_run},
                # A million counts of a thousand classes stay in the evaluation's own file.
                "evaluations": [{k: v for k, v in e.items() if k != "confusion"} for e in run.evaluations]}
               for run in e.runs]}


def run(
    workdirs: Sequence[str], *, markdown: bool = False, json_path: str | None = None,
    figures: str | None = None,
) -> int:
  """Prints the table, writes the JSON file and the figures; 1 if there is no run at all, else 0.

  Args:
    workdirs: see `ledger.read`.
    markdown: the table as Markdown.
    json_path: of the JSON file, if one is wanted.
    figures: folder for the figures, if they are wanted; made if absent.

  Raises:
    FileNotFoundError: if a workdir is not there.
  """
  ledger = read(workdirs)
  for path, problem in ledger.warnings:
    print(f"warning: {path}: {problem}", file=sys.stderr)
  if json_path:
    with open(json_path, "w", encoding="utf-8") as file:
      json.dump(as_json(ledger), file, indent=2)
      file.write("\n")
  if not ledger.experiments and not ledger.unfinished:
    print(f"no run in {', '.join(workdirs)}: none of the folders there has the summary.json or config.json "
          "of a run", file=sys.stderr)
    return 1
  print(as_markdown(ledger) if markdown else as_text(ledger))
  if figures:
    from bionets_jax.report.figures import draw_all
    for path in draw_all(ledger.experiments, figures):
      print(f"wrote {path}", file=sys.stderr)
  return 0


def groups(experiments: Iterable[Experiment]) -> list[tuple[str, Metric, list[Experiment]]]:
  """(title, metric, the experiments that are compared by it); errors that stand alone need no title."""
  found: dict[Metric, list[Experiment]] = {}
  for e in experiments:
    found.setdefault(e.metric, []).append(e)
  return [("" if list(found) == [TOP1_ERROR] else f"{metric.runs}: {metric.heading}", metric, group)
          for metric, group in found.items()]


def reading(metric: Metric) -> str:
  """How the numbers of a table are to be read."""
  return _READING.format(what=_WHAT[metric], extreme=metric.extreme)


def class_tables(experiments: Iterable[Experiment]) -> list[tuple[str, list[str], list[list[str]]]]:
  """(title, header, rows) of the APs of each class, for each data set and statistic."""
  tables: dict[str, list[tuple[str, dict[str, Spread | None]]]] = {}
  for e in experiments:
    if found := e.of_classes():
      title = f"{e.metric.heading}, of each class of {e.data} ({e.word(e.statistic)})"
      tables.setdefault(title, []).append((e.name, found))
  return [
      (title, ["class", *(name for name, _ in group)],
       [[c, *(_show(found.get(c)) or "-" for _, found in group)]
        for c in dict.fromkeys(c for _, found in group for c in found)])
      for title, group in tables.items()]


def evaluation_rows(experiments: Iterable[Experiment]) -> list[list[str]]:
  """Rows for what `python -m bionets_jax.evaluate` left, with a header; [] for nothing."""
  rows = []
  for e in experiments:
    for what, found in sorted(e.evaluations().items()):
      cells = [_show(Spread.of([x[k] for x in found if is_number(x.get(k))]))
               for k in ("top1_error", "top5_error")]
      seeds = f"{len(found)} of {len(e.runs)}"
      rows.append([cell or "-" for cell in (e.name, *what, seeds, *cells)])
  header = ["experiment", "data", "split", "transform", "average", "images", "seeds", "top-1", "top-5"]
  return [header, *rows] if rows else []


def waiting_rows(ledger: Ledger, now: float | None = None) -> list[list[str]]:
  """Of each run that has not finished: folder, steps, when it last logged, and what to do."""
  rows = []
  for run in ledger.unfinished:
    step, saved, total = run.progress()
    length = f"{total:,}" if total else run.config.get("duration", "?")
    rows.append([os.path.relpath(run.workdir), f"{step:,} / {length}", _age(run, now),
                 "its command, given again, " + ("begins it" if saved is None and not step else
                 "begins it again" if saved is None else f"goes on from step {saved:,}")])
  return rows


def _age(run: Run, now: float | None) -> str:
  if not os.path.exists(run.metrics):
    return "nothing logged"
  seconds = (time.time() if now is None else now) - os.path.getmtime(run.metrics)
  return f"logged {readable(max(seconds, 0))} ago"


def _paper(paper: dict[str, Any], key: str) -> str:
  """'7.85 ± 0.22 (8)', with the digits that the config has."""
  if paper.get(key) is None:
    return ""
  std, seeds = paper.get(f"{key}_std"), paper.get("seeds")
  return str(paper[key]) + (f" ± {std}" if std is not None else "") + (
      f" ({seeds})" if seeds is not None and std is not None else "")


def _show(value: Spread | None) -> str:
  return "" if value is None else str(value)


def _hours(e: Experiment) -> str:
  seconds = [run.summary.get("train_seconds") for run in e.runs]
  return "" if not all(map(is_number, seconds)) else f"{Spread.of(seconds).mean / 3600:.3g}"


def _count(number: int) -> str:
  for unit, name in ((1e9, "G"), (1e6, "M")):
    if number >= unit:
      return f"{number / unit:.4g} {name}"
  return f"{number:,}"


def _list(values: Iterable[Any]) -> str:
  return " / ".join(dict.fromkeys(str(v) for v in values if v))


def _sign(index: int) -> str:
  """'a' ... 'z', 'aa' ..."""
  return (_sign(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)
