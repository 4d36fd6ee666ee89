"""The ledger, and what else is known of finished and running runs, as tables."""

from bionets_jax.page.markup import Section, absent, folded, paragraph, table, text
from bionets_jax.report import results
from bionets_jax.report.ledger import Ledger


def ledger_section(ledger: Ledger) -> Section:
  """A row an experiment beside the paper's number, with its notes; other evaluations; what has not finished."""
  parts = []
  for title, metric, experiments in results.groups(ledger.experiments):
    cells = results.make_table(experiments)
    parts += [table(title or "Top-1 errors in per cent", cells.header, cells.rows, results.LEFT),
              paragraph(results.reading(metric), "reading")]
    if cells.notes:
      notes = "".join(f"<li>[{text(sign)}] {text(note)}</li>" for sign, note in cells.notes.items())
      parts.append(f'<ul class="notes">{notes}</ul>')
  if not ledger.experiments:
    parts.append(paragraph("No run has finished.", "missing"))
  if rows := results.evaluation_rows(ledger.experiments):
    header, *rows = rows
    parts.append(table("Evaluations of finished runs", header, rows, header[:5]))
  if ledger.unfinished:
    header = ["not finished", "steps", "last line", "what to do"]
    parts.append(table("Runs that have not finished", header, results.waiting_rows(ledger),
                       {header[0], *header[2:]}))
  if ledger.warnings:
    rows = [[path, problem] for path, problem in ledger.warnings]
    parts.append(folded(f"Warnings: {len(rows)}", table(
        "What could not be read, or was left out", ["file", "problem"], rows, {"file", "problem"})))
  return Section("ledger", "Runs", "".join(parts))


def detectors_section(ledger: Ledger) -> Section | None:
  """The average precision of each class; None where no run is a detector's."""
  tables = results.class_tables(ledger.experiments)
  if not tables:
    if not any(e.metric.larger for e in ledger.experiments):
      return None
    return absent("detectors", "Average precision of each class", "evaluation in training measures it:",
                  "python launch.py --config=... --workdir=...")
  body = "".join(table(title, header, rows, {"class"}) for title, header, rows in tables)
  return Section("detectors", "Average precision of each class", body)
