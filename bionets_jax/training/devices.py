"""Processes, devices and the mesh."""

import collections
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The devices, by default all of all processes, along one axis, 'data'.

  Raises:
    RuntimeError: if some processes of the job have fewer devices than others; says which.
  """
  devices = jax.devices() if devices is None else devices
  check_same_number(devices)
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


def check_same_number(devices: Sequence[jax.Device]) -> None:
  """Refuses processes with different numbers of devices: one that is missing would go unnoticed.

  Raises:
    RuntimeError: in every process, with the numbers.
  """
  found = collections.Counter(device.process_index for device in devices)
  if len(set(found.values())) > 1:
    most = max(found.values())
    less = ", ".join(f"process {p} has {n}" for p, n in sorted(found.items()) if n < most)
    raise RuntimeError(f"the processes of this job have up to {most} devices, but {less}; look for a device that "
                       "is broken, taken or hidden there (CUDA_VISIBLE_DEVICES), and give all the same number")


def describe_devices(mesh: Mesh) -> str:
  """'8 x NVIDIA H200 (gpu) in 2 processes'."""
  first, processes = mesh.devices.flat[0], jax.process_count()
  text = f"{mesh.size} x {first.device_kind} ({first.platform})"
  return text + (f" in {processes} processes" if processes > 1 else "")
