"""Evaluates a trained network: python -m bionets_jax.evaluate WORKDIR [--help]."""

import sys

from bionets_jax.evaluate.command_line import main

if __name__ == "__main__":
  sys.exit(main())
