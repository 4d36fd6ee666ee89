"""Command line of the reports: python -m bionets_jax.report SUBCOMMAND [--help].

Exit status: 0 if all is as it should be, 1 if not, 2 for wrong usage.
"""

import argparse
import os
import sys
from collections.abc import Sequence


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

  options = parser.parse_args(arguments)
  if options.json and os.path.isdir(options.json):
    tables.error(f"--json: {options.json} is a folder; name a file")
  if folder := options.json and os.path.dirname(options.json):
    if not os.path.isdir(folder):
      tables.error(f"--json: there is no folder {folder}")
  return options.run(options)


def _paper_tables(options: argparse.Namespace) -> int:
  # Counting runs nothing, so an accelerator that other programs use is left alone.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  from bionets_jax.report import paper_tables
  return paper_tables.run(options.only, options.json)


if __name__ == "__main__":
  sys.exit(main())
