"""Checks that runs are exact on this machine: python -m bionets_jax.selfcheck [--help]."""

import sys

from bionets_jax.selfcheck.command_line import main

if __name__ == "__main__":
  sys.exit(main())
