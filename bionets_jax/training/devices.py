"""Processes, devices and the mesh."""

import json
import os
import re
import signal
import sys
import threading
import traceback
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def start_distributed(spec: str) -> None:
  """Joins the other processes of the job. Must come before anything touches a device.

  Args:
    spec: 'off'; 'auto', for TPU pods, SLURM, Open MPI and Kubernetes, which JAX recognises; or
      'host:port,rank,count'.

  Raises:
    ValueError: for another spec.
  """
  if spec == "off":
    return
  # Without this hook an exception in one process leaves the others waiting for five minutes.
  def die(kind, value, trace):
    traceback.print_exception(kind, value, trace)
    sys.stderr.flush()
    os._exit(1)

  match = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", spec)
  if match:
    rank, count = int(match[2]), int(match[3])
    if rank >= count:
      raise ValueError(f"--distributed={spec}: rank {rank} is not below the count {count}")
    jax.distributed.initialize(match[1], num_processes=count, process_id=rank)
  elif spec == "auto":
    jax.distributed.initialize()
  else:
    raise ValueError(f"--distributed={spec!r}: give 'auto', 'off' or 'host:port,rank,count'")
  sys.excepthook = die


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The devices, by default all of all processes, along one axis, 'data'."""
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def check_platform(wanted: str) -> None:
  """Refuses to go on where the device is not the one that the config asks for.

  Raises:
    RuntimeError: with what was found.
  """
  found = jax.default_backend()
  if wanted and found != wanted:
    extra = "cuda13" if wanted == "gpu" else wanted
    raise RuntimeError(
        f"config.device={wanted!r}, but JAX found only {found!r} ({jax.devices()[0].device_kind}). "
        f"Install the accelerator's JAX, pip install \"jax[{extra}]\", "
        "or set config.device=''")


def check_same_everywhere(config: Any) -> None:
  """Refuses to go on where the processes of a job were started with different configs.

  Args:
    config: JSON-serialisable.

  Raises:
    ValueError: in every process.
  """
  if jax.process_count() == 1:
    return
  digest = np.uint32(zlib.crc32(json.dumps(config, sort_keys=True).encode()))
  if len(set(np.ravel(multihost_utils.process_allgather(digest)).tolist())) > 1:
    raise ValueError("the processes of this job were started with different configs; give all of them "
                     "the same --config and the same --config.KEY=VALUE")


def describe_devices(mesh: Mesh) -> str:
  """'8 x NVIDIA H200 (gpu) in 2 processes'."""
  first, processes = mesh.devices.flat[0], jax.process_count()
  text = f"{mesh.size} x {first.device_kind} ({first.platform})"
  return text + (f" in {processes} processes" if processes > 1 else "")


def leave(status: int) -> None:
  """Ends the process. In a job of several, at once: a normal exit would wait for the others."""
  sys.stdout.flush()
  sys.stderr.flush()
  if jax.distributed.is_initialized():
    os._exit(status)
  sys.exit(status)


class StopRequest:
  """Turns SIGTERM and the first Ctrl-C into a question that the loop asks after each step.

  In a job of several processes JAX's own handler passes SIGTERM on, and all of them get the same
  answer at the same step. Outside the main thread signals are left alone.
  """

  def __init__(self):
    self._event = threading.Event()
    self._previous = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      if jax.process_count() > 1:
        handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
      else:
        handlers = {signal.SIGTERM: self._handle, signal.SIGINT: self._handle}
      for number, handler in handlers.items():
        self._previous[number] = signal.signal(number, handler)
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number, frame):
    if self._event.is_set() and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._event.set()

  @property
  def pending(self) -> bool:
    """Whether a signal has come to this process, answered or not."""
    return self._event.is_set()

  def asked(self, step: int) -> bool:
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._event.is_set()
