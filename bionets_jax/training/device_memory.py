"""What a compiled program asks of a device's memory, and what the device has."""

import os
from typing import Any, NamedTuple

import jax


class Need(NamedTuple):
  """Bytes on each device: `held` between the calls of a program, `temporary` within one."""

  held: int
  temporary: int

  @property
  def total(self) -> int:
    return self.held + self.temporary


def memory_need(compiled: Any) -> Need | None:
  """What XLA says that a compiled program needs, arguments and results counted once where they are donated.

  None where XLA does not say.
  """
  stats = compiled.memory_analysis()
  if stats is None:
    return None
  held = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
  return Need(held, stats.temp_size_in_bytes)


def memory_limit(device: jax.Device) -> int | None:
  """Bytes that programs on a device may take together; None where it is not known.

  Of an accelerator what JAX's allocator may take ($XLA_PYTHON_CLIENT_MEM_FRACTION of a GPU's memory, by
  default three quarters). Of a CPU nothing: its memory is the machine's, see `host_memory`.
  """
  stats = device.memory_stats()
  return (stats or {}).get("bytes_limit")


def host_memory() -> int | None:
  """Bytes of memory of this machine; None where the system does not say."""
  try:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  except (ValueError, OSError, AttributeError):
    return None


def mebibytes(size: int) -> str:
  return f"{size / 2**20:,.1f} MiB"
