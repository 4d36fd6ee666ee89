"""Draws heatmaps: python -m bionets_jax.heatmaps --weights=SOURCE IMAGE ... [--help]."""

import sys

from bionets_jax.heatmaps.command_line import main

if __name__ == "__main__":
  sys.exit(main())
