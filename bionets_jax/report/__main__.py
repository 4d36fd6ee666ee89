"""Command line of the reports: python -m bionets_jax.report SUBCOMMAND [--help].

Exit status: 0 if all is as it should be, 1 if not, 2 for wrong usage.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from bionets_jax.terminal import run_command


def main(arguments: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m bionets_jax.report", description="Tables and figures.")
  commands = parser.add_subparsers(dest="command", required=True, metavar="SUBCOMMAND")

  tables = commands.add_parser(
      "paper-tables", help="parameters and multiply-adds in the papers' tables beside ours",
      description="Counts every network of the papers' tables and compares. Status 1 if a number is off.")
  tables.add_argument("--only", choices=("ic", "fp", "keffnet"), action="append", default=[],
                      help="this paper only; may be given again")
  tables.add_argument("--json", metavar="FILE", help="also write the numbers to FILE")
  tables.set_defaults(run=_paper_tables)

  results = commands.add_parser(
      "results", help="the errors, of detectors the average precisions, of finished runs beside the papers'",
      description="A row for each experiment, its seeds together, beside the number that its config gives "
                  "from the paper. A file caveat.txt in a folder says what a reader must know of the runs in "
                  "it: it becomes a note, and no difference to the paper is taken. Status 1 if there is no "
                  "run.")
  results.add_argument("workdirs", metavar="WORKDIR", nargs="+",
                       help="of a run, a sweep or a study, or a folder of them")
  results.add_argument("--markdown", action="store_true", help="the table as Markdown")
  results.add_argument("--json", metavar="FILE", help="also write the numbers, seed by seed, to FILE")
  results.add_argument("--figures", metavar="DIR",
                       help="also draw errors against parameters, and training curves, in DIR")
  results.set_defaults(run=_results)

  page = commands.add_parser(
      "html", help="everything that is known of some runs as one HTML page",
      description="Writes one HTML file that needs nothing else, and no network: the table of 'results', learning "
                  "curves, which classes are taken for which, heatmaps, filters, robustness, and where the runs were "
                  "made. Networks whose weights and data are here are evaluated for it, one run of each experiment, "
                  "and nothing is written to their workdirs; what bionets_jax.evaluate has stored there is taken as "
                  "it is. Status 1 if there is no run.")
  page.add_argument("workdirs", metavar="WORKDIR", nargs="+",
                    help="of a run, a sweep or a study, or a folder of them")
  page.add_argument("--out", metavar="FILE", default="report.html", help="of the page (default: report.html)")
  page.add_argument("--stored", action="store_true",
                    help="what the workdirs hold alone: no network is evaluated, and no heatmap made")
  page.add_argument("--examples", type=int, default=8, metavar="N",
                    help="images with heatmaps, of each data set (default: 8; 0 for none)")
  page.set_defaults(run=_html)

  options = parser.parse_args(arguments)
  wrong = commands.choices[options.command].error
  if options.command == "html":
    _check_page(options, wrong)
    return options.run(options)
  if options.json and os.path.isdir(options.json):
    wrong(f"--json: {options.json} is a folder; name a file")
  if folder := options.json and os.path.dirname(options.json):
    if not os.path.isdir(folder):
      wrong(f"--json: there is no folder {folder}")
  if options.command == "results":
    _check_workdirs(options.workdirs, wrong)
    if options.figures and os.path.exists(options.figures) and not os.path.isdir(options.figures):
      wrong(f"--figures: {options.figures} is a file; name a folder")
  return options.run(options)


def _check_workdirs(workdirs: Sequence[str], wrong: Callable[[str], NoReturn]) -> None:
  for workdir in workdirs:
    if not os.path.isdir(workdir):
      wrong(f"there is no folder {workdir}")


def _check_page(options: argparse.Namespace, wrong: Callable[[str], NoReturn]) -> None:
  _check_workdirs(options.workdirs, wrong)
  if os.path.isdir(options.out):
    wrong(f"--out: {options.out} is a folder; name a file")
  if not os.path.isdir(folder := os.path.dirname(options.out) or "."):
    wrong(f"--out: there is no folder {folder}")
  if options.examples < 0:
    wrong(f"--examples={options.examples}: give a number of images, 0 for none")


def _paper_tables(options: argparse.Namespace) -> int:
  # Counting runs nothing, so an accelerator that other programs use is left alone.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  from bionets_jax.report import paper_tables
  return paper_tables.run(options.only, options.json)


def _results(options: argparse.Namespace) -> int:
  from bionets_jax.report import results
  return results.run(options.workdirs, markdown=options.markdown, json_path=options.json,
                     figures=options.figures)


def _html(options: argparse.Namespace) -> int:
  from bionets_jax.page import write
  return run_command(
      lambda say: write.run(options.workdirs, options.out, stored=options.stored, examples=options.examples, say=say),
      stopped="stopped; nothing was written")


if __name__ == "__main__":
  sys.exit(main())
