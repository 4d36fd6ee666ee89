"""Several runs in one program: their states stacked, the step mapped over them.

Runs that differ in their seed do the same work on other numbers. A network that leaves an accelerator half
idle trains several times at once for little more than the price of once. Of one run nothing is stacked, and
its program is the one that it would have alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bionets_jax.training.device_memory import memory_limit, memory_need

Tree = Any


def stack(trees: Sequence[Tree]) -> Tree:
  """The trees along a new first axis; of one tree, that tree."""
  if len(trees) == 1:
    return trees[0]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Tree, count: int) -> list[Tree]:
  """The trees that `stack` was given."""
  if count == 1:
    return [tree]
  return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]


def over_runs(function: Callable, axes: Sequence[int | None]) -> Callable:
  """`function` of one run as a function of several.

  Args:
    function: pure, of as many arguments as there are axes.
    axes: 0 for an argument that each run has for itself, None for one that they share.

  Returns:
    A function with lists for the arguments of axis 0, one element for each run, or what `stack` made of
    such a list. Its results are stacked.
  """

  def apply(*arguments):
    lists = [x for x in arguments if isinstance(x, list)]
    if lists and len(lists[0]) == 1:
      return function(*(x[0] if isinstance(x, list) else x for x in arguments))
    return jax.vmap(function, in_axes=tuple(axes))(
        *(stack(x) if isinstance(x, list) else x for x in arguments))

  apply.__name__ = function.__name__  # by which traces and caches know the program
  return apply


def fits(compiled: Any, device: jax.Device) -> bool:
  """Whether a compiled program's memory is within the device's; True where neither is known."""
  need, limit = memory_need(compiled), memory_limit(device)
  return need is None or limit is None or need.total < limit
