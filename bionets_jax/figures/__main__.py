"""python -m bionets_jax.figures NAME... [--help]"""

import sys

from bionets_jax.figures.command_line import main

if __name__ == "__main__":
  sys.exit(main())
