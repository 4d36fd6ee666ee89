"""Whether an operation runs as a kernel: by a switch, and by a table of shapes where one was measured faster.

On other devices than NVIDIA GPUs the operations keep their XLA forms whatever is chosen: a choice is made
when a function is traced, and decides what it compiles to on a GPU. Without derivative rules of our own
(`ops.plain_derivatives`) nothing is chosen, so that forward mode has JAX's rules to go by.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax

from bionets_jax.ops.derivatives import own_rules

MODES = ("auto", "on", "off", "interpret")

# For each operation the shapes on which its kernel was faster than XLA's form, forward and backward together:
# `key` of the shape -> smallest batch. Empty, because nothing was measured yet. On the GPU in question,
# python benchmarks/kernels.py prints the lines that belong here.
WINS: dict[str, dict[tuple, int]] = {"depthwise": {}, "product": {}, "normalize": {}, "grouped": {}, "ic": {}}

_mode: contextvars.ContextVar[str] = contextvars.ContextVar("bionets_jax_gpu_kernels", default="auto")


@contextlib.contextmanager
def gpu_kernels(mode: str) -> Iterator[None]:
  """Within it operations are traced with kernels, or without.

      with gpu_kernels("off"):
        step = jax.jit(train_step).lower(state, batch).compile()

  It holds for what is traced within: a function that `jax.jit` has compiled before keeps what it has.

  Args:
    mode: 'auto' (the default), kernels on GPUs for the shapes in `WINS`, where there is one device: XLA
      cannot divide a kernel among several, and would gather their parts of the batch; 'on', for all shapes that
      they support; 'off', none; 'interpret', as 'on', but as JAX operations on any device, which is slow and
      for tests.

  Raises:
    ValueError: on another mode.
  """
  if mode not in MODES:
    raise ValueError(f"gpu_kernels({mode!r}): give one of {', '.join(map(repr, MODES))}")
  token = _mode.set(mode)
  try:
    yield
  finally:
    _mode.reset(token)


def key(x: Any, *more: Any) -> tuple:
  """What a shape is looked up by: dtype, all extents of x but the batch, and what else distinguishes it."""
  return (str(x.dtype), *x.shape[1:], *more)


def chosen(name: str, x: Any, *more: Any, supported: bool) -> str:
  """How an operation is to be traced: '' (XLA's form), 'gpu' (a kernel where there is one) or 'interpret'.

  Args:
    name: in `WINS`.
    x: its input, an array or its shape and dtype; the batch first.
    more: as in `key`.
    supported: whether the kernel takes these arguments.
  """
  mode = _mode.get()
  if mode == "off" or not supported or not own_rules():
    return ""
  if mode == "auto":
    least = WINS[name].get(key(x, *more))
    return "gpu" if least is not None and x.shape[0] >= least and jax.device_count() == 1 else ""
  return "interpret" if mode == "interpret" else "gpu"


def either(how: str, kernel: Callable[..., Any], plain: Callable[..., Any], *arrays: Any) -> Any:
  """Calls one of two functions of the same arrays that return the same shapes and dtypes.

  To be used inside of derivative rules, not around functions that have some: JAX would keep what both need.

  Args:
    how: from `chosen`.
    kernel: the function with kernels; it gets `interpret` as a keyword.
    plain: the function without.
    arrays: arguments of both, arrays or trees of them.
  """
  if not how:
    return plain(*arrays)
  if how == "interpret":
    return kernel(*arrays, interpret=True)
  return lax.platform_dependent(
      *arrays, cuda=lambda *arrays: kernel(*arrays, interpret=False), default=plain)
