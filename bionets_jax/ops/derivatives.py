"""A switch between derivative rules of our own and JAX's."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
from jax import lax

_plain: contextvars.ContextVar[bool] = contextvars.ContextVar("bionets_jax_plain_derivatives", default=False)


@contextlib.contextmanager
def plain_derivatives() -> Iterator[None]:
  """Within it operations are traced without derivative rules of their own.

  The rules are for reverse mode and faster than what JAX derives; forward mode (`jax.jvp`, `jax.jacfwd`,
  Hessians) needs the operations without them:

      with bn.ops.plain_derivatives():
        hessian = jax.hessian(loss)(params)

  It holds for what is traced within: a function that `jax.jit` has compiled before keeps what it has.
  """
  token = _plain.set(True)
  try:
    yield
  finally:
    _plain.reset(token)


def own_rules() -> bool:
  """Whether an operation is to be traced with its own derivative rules."""
  return not _plain.get()


def varying_alike(*arrays: Any) -> tuple[Any, ...]:
  """Arrays, or trees of them, as what varies over all mesh axes of `jax.shard_map` that any of them varies over.

  A gradient rule of our own gives a kernel that is the same on all devices a part of its gradient on each, which
  shard_map refuses. The transpose of this step is the sum over devices. Outside of shard_map it does nothing.
  """
  def varies(a):
    return jax.typeof(a).manual_axis_type.varying

  axes = frozenset().union(*(varies(a) for a in jax.tree.leaves(arrays)))

  def alike(a):
    missing = axes - varies(a)
    return lax.pcast(a, tuple(sorted(missing)), to="varying") if missing else a

  return jax.tree.map(alike, arrays)
