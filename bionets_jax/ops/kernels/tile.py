"""What the kernels share: tiles, masks, and the call of a kernel."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

DTYPES = ("float32", "bfloat16", "float16")
# Programs that a grid is cut into where each of them writes partial sums: some for every multiprocessor of
# the largest GPUs (132 to 148), several times over, so that the last ones to end do not leave the others
# waiting.
PROGRAMS = 1536
# Offsets are 32-bit integers.
_MOST_ELEMENTS = 2**31 - 1


def power_of_two(n: int) -> int:
  """The least power of two that is not less than n: the extents that a tile may have."""
  return 1 << max(n - 1, 0).bit_length()


def addressable(*shapes: Sequence[int]) -> bool:
  """Whether 32-bit offsets reach every element of arrays of these shapes, and there is one at all."""
  for shape in shapes:
    if not all(isinstance(size, int) for size in shape):  # exported for batches of any size
      return False
    elements = 1
    for size in shape:
      elements *= size
    if not 0 < elements <= _MOST_ELEMENTS:
      return False
  return True


def call(
    kernel: Callable[..., None], arrays: Sequence[jax.Array], results: Sequence[jax.ShapeDtypeStruct], *,
    grid: Sequence[int], warps: int, interpret: bool, name: str,
) -> list[jax.Array]:
  """Runs a kernel on arrays that it addresses itself: it gets references to whole arrays, not blocks of them.

  Args:
    kernel: function of references to the arrays, then to the results.
    arrays: what it reads.
    results: shapes and dtypes of what it writes, all of it.
    grid: number of programs along at most two axes; `jax.vmap` takes the third.
    warps: of 32 threads, of a program.
    interpret: run it as JAX operations, on any device.
    name: of the kernel in profiles.
  """
  # Imported late: it takes a third of a second, and only some programs have kernels.
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  return pl.pallas_call(
      kernel, out_shape=tuple(results), grid=tuple(grid), name=name, interpret=interpret,
      compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1))(*arrays)


def load(ref: Any, index: Any, mask: jax.Array | None = None) -> jax.Array:
  """The elements at an index, in float32; 0 where the mask is False, whatever lies there."""
  from jax.experimental.pallas import triton

  if mask is None:
    return ref[index].astype(jnp.float32)
  # The interpreter reads before it masks.
  return triton.load(ref.at[index], mask=mask, other=jnp.zeros((), ref.dtype)).astype(jnp.float32)


def store(ref: Any, index: Any, value: jax.Array, mask: jax.Array) -> None:
  """Writes elements, rounded to what the reference holds, where the mask is True."""
  from jax.experimental.pallas import triton

  triton.store(ref.at[index], value.astype(ref.dtype), mask=mask)


def program_id(axis: int) -> jax.Array:
  from jax.experimental import pallas as pl

  return pl.program_id(axis)


def steps(count: int, first: Any, body: Callable[[Any, Any], Any], start: int = 0) -> Any:
  """`lax.fori_loop` from `start` over `count` steps, and no loop where there is one."""
  if count == 1:
    return body(jnp.int32(start), first)
  return lax.fori_loop(start, start + count, body, first)
