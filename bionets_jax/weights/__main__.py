"""Weights in and out: python -m bionets_jax.weights SUBCOMMAND [--help]."""

import sys

from bionets_jax.weights.command_line import main

if __name__ == "__main__":
  sys.exit(main())
