"""Several processes of one job on this machine, one for each GPU or socket, or to try out what many hosts do.

  python -m bionets_jax.training.local_processes 4 -- launch.py --config=... --workdir=...

Each process gets --distributed=127.0.0.1:PORT,RANK,4 and, where CUDA_VISIBLE_DEVICES is set, its share of what
that lists. The first one's output is shown as it is, that of the others with their rank in front. SIGTERM and
Ctrl-C are passed on. When one process ends with an error the others end by themselves, or are killed. The exit
status is that of the process that failed first; without a failure 75 if they were stopped, else 0.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from bionets_jax.training.exit_status import INTERRUPTED

# More than the processes take to end by themselves when one of them has failed.
KILL_SECONDS = 90


def main(argv: Sequence[str]) -> int:
  """Runs `COUNT -- SCRIPT [ARGUMENTS]`; returns the exit status."""
  if len(argv) < 3 or not argv[0].isdigit() or int(argv[0]) < 1 or argv[1] != "--":
    print(__doc__.strip(), file=sys.stderr)
    return 2
  if any(argument.lstrip("-").startswith("distributed") for argument in argv[2:]):
    print("error: leave --distributed out; each process gets its own", file=sys.stderr)
    return 2
  processes: list[subprocess.Popen] = []
  asked: list[int] = []
  def pass_on(number, frame):
    asked.append(number)
    for process in processes:
      if process.poll() is None:
        process.send_signal(number)
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, pass_on)
  try:
    processes += start(int(argv[0]), argv[2:], os.environ)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  for number in list(asked):  # those that came while there was nobody to pass them on to
    pass_on(number, None)
  return wait(processes, asked)


def start(count: int, command: Sequence[str], environment: Mapping[str, str]) -> list[subprocess.Popen]:
  """Starts `count` processes of `python COMMAND`, each with its own --distributed.

  Raises:
    ValueError: if the GPUs in the environment's CUDA_VISIBLE_DEVICES cannot be shared out evenly.
  """
  port = free_port()
  processes = []
  for rank in range(count):
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") if rank else {}
    process = subprocess.Popen(
        [sys.executable, *command, f"--distributed=127.0.0.1:{port},{rank},{count}"],
        env=dict(environment) | share(environment, rank, count), **output)
    if rank:
      threading.Thread(target=_show, args=(process.stdout, rank), daemon=True).start()
    processes.append(process)
  return processes


def free_port() -> int:
  """A port of this machine that nobody listens on."""
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


def share(environment: Mapping[str, str], rank: int, count: int) -> dict[str, str]:
  """The GPUs of one process, as an environment; {} if none are named."""
  devices = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
  if not devices:
    return {}
  if len(devices) % count:
    raise ValueError(f"CUDA_VISIBLE_DEVICES names {len(devices)} devices, which {count} processes cannot share evenly")
  each = len(devices) // count
  return {"CUDA_VISIBLE_DEVICES": ",".join(devices[rank * each:(rank + 1) * each])}


def wait(processes: Sequence[subprocess.Popen], asked: Sequence[int] = ()) -> int:
  """Waits for the end of all, and returns the status of the job.

  Args:
    processes: of the job.
    asked: the signals that were passed on to them, as they come. A process that had no handler yet ends by one.
  """
  ended: list[int] = []  # in the order in which they ended
  left = list(processes)
  kill_at = float("inf")
  while left:
    time.sleep(0.1)
    for process in [p for p in left if p.poll() is not None]:
      left.remove(process)
      ended.append(INTERRUPTED if -process.returncode in asked else process.returncode)
      if process.returncode:
        kill_at = min(kill_at, time.monotonic() + KILL_SECONDS)
    if time.monotonic() > kill_at:
      for process in left:
        process.kill()  # not terminate: JAX takes SIGTERM for a question
  failed = next((status for status in ended if status not in (0, INTERRUPTED)), None)
  if failed is None:
    return INTERRUPTED if INTERRUPTED in ended else 0
  return failed if failed > 0 else 128 - failed  # as a shell has it for a signal


def _show(lines, rank: int) -> None:
  for line in lines:
    print(f"[{rank}] {line}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
