"""Where the runs were made, with what, and in what they differ."""

import json
import os
from typing import Any

from bionets_jax.page.markup import Section, folded, paragraph, table, text
from bionets_jax.report.ledger import Experiment, Ledger
from bionets_jax.report.workdirs import Run, is_number
from bionets_jax.training.bad_records import BAD_RECORDS
from bionets_jax.training.clock import readable
from bionets_jax.training.config import identity

_SHOWN = 20  # bad records of a run


def environment_section(ledger: Ledger) -> Section:
  """Versions, devices, commits and times of each run; the keys in which their configs differ; bad records."""
  runs = [(e.name, run) for e in ledger.experiments for run in e.runs]
  parts = []
  if runs:
    header = ["run", "seed", "devices", "arithmetic", "jax", "flax", "bionets_jax", "commit", "steps", "skipped steps",
              "bad records", "training", "in all", "folder"]
    rows = [_row(name, run) for name, run in runs]
    told = [i for i in range(len(header)) if any(row[i] != "-" for row in rows)]
    parts.append(table("Each run", [header[i] for i in told], [[row[i] for i in told] for row in rows], {
        "run", "devices", "arithmetic", "jax", "flax", "bionets_jax", "commit", "folder"}))
  if differing := _differences(ledger.experiments):
    header = ["key", *(e.name for e in ledger.experiments)]
    parts.append(table("In what the configs differ", header, differing, set(header)))
  elif len(ledger.experiments) > 1:
    parts.append(paragraph("The configs of these runs do not differ, or are not there."))
  for name, run in runs:
    if found := _bad_records(run):
      caption = f"Bad records of {name}" + ("" if run.seed is None else f", seed {run.seed}")
      more = f", the first {_SHOWN} of {len(found)}" if len(found) > _SHOWN else ""
      header = ["split", "example", "key", "why"]
      parts.append(folded(f"{caption}: {len(found)}", table(
          caption + more, header, found[:_SHOWN], {"split", "key", "why"})))
  parts += [folded(f"Config of {e.name}", f"<pre>{text(json.dumps(e.runs[0].config, indent=2))}</pre>")
            for e in ledger.experiments if e.runs[0].config]
  return Section("environment", "Environment", "".join(parts) or paragraph("No run has finished.", "missing"))


def _row(name: str, run: Run) -> list[str]:
  summary = run.summary
  versions = summary.get("versions") if isinstance(summary.get("versions"), dict) else {}
  bad = summary.get("bad_records")
  return [
      name, _plain(run.seed), _plain(summary.get("devices")), _plain(summary.get("dtype")),
      *(_plain(versions.get(key)) for key in ("jax", "flax", "bionets_jax")), _plain(summary.get("commit"))[:13],
      _count(summary.get("steps")), _count(summary.get("skipped_steps")),
      ", ".join(f"{split} {n}" for split, n in bad.items()) if isinstance(bad, dict) and bad else "0",
      *(readable(summary[key]) if is_number(summary.get(key)) else "-" for key in ("train_seconds", "total_seconds")),
      os.path.relpath(run.workdir)]


def _differences(experiments: list[Experiment]) -> list[list[str]]:
  """[key, value in each experiment's config] where the values are not all the same; those without one have '-'."""
  configs = [identity(e.runs[0].config) if e.runs[0].config else {} for e in experiments]
  keys = sorted({key for config in configs for key in config} - {"seed"})
  rows = []
  for key in keys:
    values = [_value(config.get(key)) for config in configs]
    if len({value for value, config in zip(values, configs, strict=True) if config}) > 1:
      rows.append([key, *values])
  return rows


def _value(value: Any) -> str:
  return "-" if value is None else value if isinstance(value, str) and value else json.dumps(value)


def _bad_records(run: Run) -> list[list[str]]:
  """What bad_records.jsonl says; a line that is damaged ends it."""
  path = os.path.join(run.workdir, BAD_RECORDS)
  rows = []
  if os.path.isfile(path):
    with open(path, encoding="utf-8", errors="replace") as file:
      for line in file:
        try:
          found = json.loads(line)
          rows.append([str(found[key]) for key in ("split", "index", "key", "reason")])
        except (ValueError, KeyError, TypeError, RecursionError):
          break
  return rows


def _plain(value: Any) -> str:
  return "-" if value in (None, "") else str(value)


def _count(value: Any) -> str:
  return f"{value:,}" if is_number(value) else "-"
