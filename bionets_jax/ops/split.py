"""Parts of a batch that lie on every device alike."""

from typing import Any

import jax

_MOST = 16


def batch_parts(batch: Any, wanted: int) -> int:
  """The largest number of equal parts of a batch that is a power of two, at most `wanted` and at most 16."""
  parts = 1
  if not isinstance(batch, int):  # exported for batches of any size
    return parts
  while parts * 2 <= min(wanted, _MOST) and batch % (parts * 2) == 0:
    parts *= 2
  return parts


def split_batch(x: jax.Array, parts: int) -> list[jax.Array]:
  """(N, ...) as `parts` arrays (N // parts, ...): every parts-th example.

  Not neighbours: a batch that is sharded over devices would have to move for those.
  """
  if parts == 1:
    return [x]
  x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
  return [x[:, i] for i in range(parts)]
