"""The page: everything that is known of some runs in one HTML file."""

import base64
import hashlib
import importlib.resources
import string
import sys
import time
from collections.abc import Callable, Sequence

import bionets_jax
from bionets_jax.page import classes, curves, environment, pictures, runs
from bionets_jax.page.markup import Section, embedded, text
from bionets_jax.page.networks import Networks, confusions
from bionets_jax.report.ledger import Ledger, read
from bionets_jax.terminal import printable
from bionets_jax.weights.whole import write_whole

_SCRIPTS = ("elements.js", "lines.js", "plot.js", "curves.js", "confusion.js", "page.js")


def run(
    workdirs: Sequence[str], path: str, *, stored: bool, examples: int, say: Callable[[str], None] = print
) -> int:
  """Writes the page; 1 if there is no run at all, else 0.

  Args:
    workdirs: see `ledger.read`.
    path: of the HTML file.
    stored: True for what the workdirs hold alone: no network is evaluated, and no heatmap made.
    examples: images with heatmaps, of each data set; 0 for none.
    say: told of the progress.

  Raises:
    FileNotFoundError: a workdir is not there.
    OSError: the file cannot be written.
  """
  ledger = read(workdirs)
  for where, problem in ledger.warnings:
    print(printable(f"warning: {where}: {problem}"), file=sys.stderr)
  if not ledger.experiments and not ledger.unfinished:
    print(f"no run in {', '.join(workdirs)}: none of the folders there has the summary.json or config.json of a run",
          file=sys.stderr)
    return 1
  page = make_page(ledger, stored=stored, examples=examples, say=say)
  write_whole({path: page})
  say(f"written to {path}, {len(page.encode()) / 1e6:.1f} MB")
  return 0


def make_page(ledger: Ledger, *, stored: bool, examples: int, say: Callable[[str], None]) -> str:
  """The HTML; see `run`."""
  networks = Networks()
  found, problems = confusions(ledger, stored, say)
  sections = [
      runs.ledger_section(ledger), curves.curves_section(ledger), runs.detectors_section(ledger)]
  classifiers = any(not e.metric.larger for e in ledger.experiments)
  if classifiers:
    sections += [
        classes.confusion_section(found, problems), classes.classes_section(found),
        pictures.heatmaps_section(found, networks, examples, stored, say)]
  sections.append(pictures.filters_section(ledger, networks, say))
  if classifiers:
    sections.append(curves.robustness_section(ledger))
  sections.append(environment.environment_section(ledger))
  there = [section for section in sections if section and not section.absent]
  if others := [section for section in sections if section and section.absent]:
    there.append(Section("others", "Not here", "".join(section.body for section in others)))
  return _fill(there, [e.name for e in ledger.experiments])


def _fill(sections: Sequence[Section], names: Sequence[str]) -> str:
  script = "".join(_file(name) for name in _SCRIPTS)
  # The hash of the one script that may run: none that came with a run's text would.
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  title = "Runs: " + ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
  return string.Template(_file("page.html")).substitute(
      title=text(title if names else "Runs"), style=_file("page.css"), script=script, hash=digest,
      data=embedded({section.name: section.data for section in sections if section.data}),
      links="".join(f'<li><a href="#{section.name}">{text(section.title)}</a></li>' for section in sections),
      sections="".join(
          f'<section id="{section.name}" aria-labelledby="{section.name}-title">'
          f'<h2 id="{section.name}-title">{text(section.title)}</h2>{section.body}</section>' for section in sections),
      made=text(f"Made {time.strftime('%Y-%m-%d %H:%M')} with bionets_jax {bionets_jax.__version__}."))


def _file(name: str) -> str:
  return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
