"""Ends a run that has stood still for long: on a machine left alone nobody else would."""

import faulthandler
import os
import sys
import threading
import time

from bionets_jax.training import heartbeat, job

# Longer than anything between two steps takes, compiling the evaluation of a large network on a TPU included.
LIMIT_SECONDS = 1800


def watch(limit: float = LIMIT_SECONDS) -> None:
  """From now on a training loop or an evaluation that makes no step for `limit` seconds ends the process with status 1.

  Before that it prints where every thread stands; in a job the other processes end too.
  """
  threading.Thread(target=_watch, args=(limit,), daemon=True).start()


def _watch(limit: float) -> None:
  while True:
    time.sleep(min(10, limit / 4))
    silent = heartbeat.silence()
    if silent > limit:
      message = f"no step was made for {silent:.0f} s, and so the process ends; its threads stood as above"
      faulthandler.dump_traceback(sys.stderr, all_threads=True)
      print(f"error: {message}", file=sys.stderr, flush=True)
      job.announce(TimeoutError(message))
      os._exit(1)
