"""Several processes as one job: how they come together, and what they check of each other."""

import json
import os
import re
import socket
import sys
import threading
import time
import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bionets_jax.training import job

USAGE = "give 'auto', 'off' or 'host:port,rank,count', e.g. --distributed=10.0.0.1:1234,0,2"
JOIN_SECONDS = 300
# After this much silence a process counts as dead, also if it is only stopped. Together with what the others
# then need to end it has to stay below a minute.
HEARTBEAT_SECONDS = 30
# How long a file that the first process has written may take to be seen on another host (NFS caches).
VISIBLE_SECONDS = 30


def start(spec: str, seconds: int = JOIN_SECONDS) -> None:
  """Joins the other processes of the job. Must come before anything touches a device.

  Args:
    spec: 'off'; 'auto', for TPU pods, SLURM, Open MPI and Kubernetes, which JAX recognises; or
      'host:port,rank,count' with the address of the first process, that of rank 0.
    seconds: how long to wait for the others; then the process ends with status 1 and a message.

  Raises:
    ValueError: for another spec.
    RuntimeError: if the job is not one; with what is wrong.
  """
  address, rank, count = parse(spec)
  if spec == "off":
    return
  if rank == 0:
    _check_port(spec, int(address.rsplit(":", 1)[1]))
  limit = threading.Timer(seconds, _give_up, (spec, seconds))
  limit.daemon = True
  limit.start()
  try:
    # Its own limit comes later: it aborts, with a stack of XLA's.
    jax.distributed.initialize(
        address, num_processes=count, process_id=rank, initialization_timeout=seconds + 60,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        # With an address JAX would still look for a cluster, and give each process of SLURM's one device.
        cluster_detection_method="deactivate" if address else None)
  except Exception as error:  # noqa: BLE001 (of gRPC, of a cluster's client, of a metadata server)
    text = str(error).split("\n")[0]
    if "coordinator_address should be defined" in text:
      text = ("JAX finds no TPU pod, SLURM, Open MPI or Kubernetes (for which it needs the package "
              "'kubernetes'); give host:port,rank,count instead")
    raise RuntimeError(f"--distributed={spec}: {text}") from error
  finally:
    limit.cancel()
  job.enter()


def parse(spec: str) -> tuple[str | None, int | None, int | None]:
  """(host:port, rank, count), or None three times for 'auto' and 'off'; ValueError for what is neither."""
  if spec in ("auto", "off"):
    return None, None, None
  match = re.fullmatch(r"([^,\s]+):(\d+),(\d+),(\d+)", spec)
  if not match:
    raise ValueError(f"--distributed={spec!r}: {USAGE}")
  host, port, rank, count = match[1], *map(int, match.groups()[1:])
  if ":" in host and not (host.startswith("[") and host.endswith("]")):
    raise ValueError(f"--distributed={spec}: put an IPv6 address in brackets, as in [::1]:1234,0,2")
  if not 0 < port < 2**16:
    raise ValueError(f"--distributed={spec}: the port {port} is not one of 1 to 65535")
  if rank >= count:
    raise ValueError(f"--distributed={spec}: the rank {rank} is not below the count {count}; "
                     f"{count} processes have the ranks 0 to {count - 1}" if count else
                     f"--distributed={spec}: the count must be 1 or more")
  return f"{host}:{port}", rank, count


def check_same_everywhere(value: Any, message: str) -> None:
  """Refuses to go on where the processes of a job have different values of what should be the same.

  Args:
    value: JSON-serialisable.
    message: what to say then.

  Raises:
    ValueError: in every process.
  """
  if jax.process_count() == 1:
    return
  digest = np.uint32(zlib.crc32(json.dumps(value, sort_keys=True).encode()))
  if len(set(np.ravel(multihost_utils.process_allgather(digest)).tolist())) > 1:
    raise ValueError(message)


def check_shared(path: str) -> None:
  """Refuses to go on where a process does not see a file that the first one has written.

  Raises:
    ValueError: in every process, naming those.
  """
  if jax.process_count() == 1:
    return
  multihost_utils.sync_global_devices("written")
  end = time.monotonic() + VISIBLE_SECONDS
  while not (seen := os.path.exists(path)) and time.monotonic() < end:
    time.sleep(0.5)
  blind = np.flatnonzero(~np.ravel(multihost_utils.process_allgather(np.bool_(seen))))
  if blind.size:
    raise ValueError(f"the first process has written {path}, and process {', '.join(map(str, blind))} of "
                     f"{jax.process_count()} does not see it: the workdir must be a folder that all hosts share")


def _check_port(spec: str, port: int) -> None:
  """Raises RuntimeError if the first process cannot be reached at its port; JAX crashes there."""
  with socket.socket() as tried:
    tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is left of an earlier job is no obstacle
    try:
      tried.bind(("", port))
    except OSError as error:
      raise RuntimeError(f"--distributed={spec}: the port {port} of this host cannot be used ({error.strerror}); "
                         "give all processes another one") from error


def _give_up(spec: str, seconds: int) -> None:
  """Says who has not come, as far as can be known, and ends the process."""
  address, rank, count = parse(spec)
  where = f"{address}" if address else "the first one"
  if rank:
    host, port = address.rsplit(":", 1)
    try:
      socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
      text = f"{address} answers, but another process is missing, or one of this rank is there already"
    except OSError as error:
      text = f"{address} does not answer ({error}): is the process of rank 0 running there, and the port open?"
  else:
    text = (f"not all{f' {count}' if count else ''} processes have reached {where}: is each of them running, with "
            "a rank of its own, the same count and the same address, and is the port open?")
  print(f"error: --distributed={spec}: the processes have not come together within {seconds} s "
        f"(--join_timeout); {text}", file=sys.stderr, flush=True)
  os._exit(1)
