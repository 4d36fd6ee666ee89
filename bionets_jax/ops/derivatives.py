"""A switch between derivative rules of our own and JAX's."""

import contextlib
import contextvars
from collections.abc import Iterator

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
