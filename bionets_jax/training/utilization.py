"""Model FLOPs utilisation: what the training steps compute, as a share of what the devices could.

A step's floating-point operations are counted from the network (`bionets_jax.counting`), not from the
compiled program: what is computed twice to save memory does not raise the share (Chowdhery et al. 2022,
"PaLM", Appendix B).
"""

import functools
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bionets_jax.counting import count_macs
from bionets_jax.training.setup import Setup
from bionets_jax.training.tasks import Task

# Dense multiply-adds as two operations, 10^12 of them a second, from the vendors' data sheets; matrix units
# with accumulation in float32. The first name that is a word of the device's kind counts. float32 stands for
# what JAX's default precision makes of it: TF32 on NVIDIA GPUs, one pass in bfloat16 on a TPU.
_PEAKS = (
    # name, float16 and bfloat16, float32
    ("B200", 2250.0, 1125.0),
    ("GH200", 989.4, 494.7), ("H200", 989.4, 494.7), ("H100 PCIe", 756.5, 378.0), ("H100 NVL", 835.0, 417.5),
    ("H100", 989.4, 494.7),
    ("A100", 312.0, 156.0), ("A10G", 70.0, 35.0), ("A40", 149.7, 74.8), ("A10", 125.0, 62.5),
    ("L40S", 362.05, 183.0), ("L4", 121.0, 60.0),
    ("TPU v6 lite", 918.0, 918.0), ("TPU v5 lite", 197.0, 197.0), ("TPU v5p?", 459.0, 459.0),
    ("TPU v4", 275.0, 275.0),
)  # fmt: skip
_PROBE_SIDE = 1024
_PROBE_ROUNDS = 5


class Utilization:
  """The share of the devices' peak that a run's steps use.

  Attributes:
    flops: operations of a step for each image.
    peak: of all devices of the mesh, a second.
    source: where `peak` is from, see `peak_flops`.
  """

  def __init__(self, setup: Setup):
    self.flops = step_flops_per_image(setup.task)
    self.peak, self.source = peak_flops(setup.mesh, setup.dtype)

  def share(self, images_per_second: float) -> float:
    """In 0..1, up to round-off of a measured peak."""
    return images_per_second * self.flops / self.peak

  def describe(self) -> str:
    return (f"MFU is of {self.flops / 1e9:,.3g} GFLOP an image and of {self.peak / 1e12:,.3g} TFLOP/s "
            + ("by the data sheet" if self.source == "data sheet" else "that a matmul reached here"))


def step_flops_per_image(task: Task) -> int:
  """Floating-point operations of a training step for each image, a multiply-add as two.

  The backward pass counts as two forward passes: each product has a gradient for either factor. Under WLD the
  teacher's forward pass comes to it. Norms, activations, box sums and the optimiser count nothing.
  """
  forward = 2 * count_macs(task.model, task.image_shape)
  teacher = getattr(task, "teacher", None)
  return 3 * forward + (2 * count_macs(teacher.model, task.image_shape) if teacher else 0)


def peak_flops(mesh: Mesh, dtype: str) -> tuple[float, str]:
  """What the devices of a mesh can do together.

  Args:
    mesh: of devices of one kind.
    dtype: of the computation: 'float32', 'bfloat16' or 'float16'.

  Returns:
    Operations a second, and where the number is from: 'data sheet'; or, for a CPU and for a kind that is not
    in the table, 'matmul', the rate of a product of two matrices of that dtype measured on the spot. A share
    of the latter is no more exact than the quiet of the machine at that moment.
  """
  device = mesh.local_devices[0]
  for name, half, single in _PEAKS:
    if device.platform != "cpu" and re.search(rf"\b{name}\b(?! lite)", device.device_kind):
      return 1e12 * (single if dtype == "float32" else half) * mesh.size, "data sheet"
  # The CPU devices of one process share its cores: one product keeps all of them busy.
  copies = jax.process_count() if device.platform == "cpu" else mesh.size
  return _matmul_rate(device, dtype) * copies, "matmul"


@functools.cache
def _matmul_rate(device: jax.Device, dtype: str) -> float:
  """Operations a second of the fastest of a few products."""
  x = jax.device_put(np.ones((_PROBE_SIDE, _PROBE_SIDE), jnp.dtype(dtype)), device)
  product = jax.jit(jnp.matmul)
  product(x, x).block_until_ready()
  seconds = []
  for _ in range(_PROBE_ROUNDS):
    started = time.perf_counter()
    product(x, x).block_until_ready()
    seconds.append(time.perf_counter() - started)
  return 2 * _PROBE_SIDE**3 / min(seconds)
