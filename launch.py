"""Starts a run: python launch.py --config=configs/quickstart.py [--workdir=DIR] [--config.KEY=VALUE]

The same command again goes on where the run stopped. Exit status: 0 done, 75 stopped on request
(SIGTERM or Ctrl-C) after saving, so that a scheduler can queue it again, 1 an error, 2 wrong usage.
docs/many_hosts.md says what else a job of several processes may end with.
"""

from bionets_jax.command_line import main

if __name__ == "__main__":
  main()
