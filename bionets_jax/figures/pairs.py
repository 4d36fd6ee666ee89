"""The filter pairs of FP-blocks: where they are in a network, and how far the two of a pair are apart."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from bionets_jax.layers import DepthwisePair


class Pairs(NamedTuple):
  """The pairs of one layer.

  Attributes:
    path: of the layer, 'stage3_block0/filters'.
    a, b: (k, k, C), pair i is a[..., i] and b[..., i].
  """

  path: str
  a: np.ndarray
  b: np.ndarray

  @property
  def count(self) -> int:
    return self.a.shape[-1]

  def angles(self) -> np.ndarray:
    """Between the filters of each pair as vectors of k^2 weights, (C,) in degrees, 0..180; NaN if one is 0.

    A pair at angle t and one at 180 - t, with one filter negated, have the same response but for its sign.
    """
    a, b = (kernel.reshape(-1, self.count).astype(np.float64) for kernel in (self.a, self.b))
    with np.errstate(invalid="ignore"):
      a, b = a / np.linalg.norm(a, axis=0), b / np.linalg.norm(b, axis=0)
    # As 2 atan(|a - b| / |a + b|): the cosine says little about angles near 0 and 180.
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=0), np.linalg.norm(a + b, axis=0)))


def find_pairs(variables: Mapping[str, Any]) -> list[Pairs]:
  """The pairs of every layer that has some, in the order of the tree; [] of a network without FP-blocks.

  Args:
    variables: {'params': ...}.
  """
  leaves = flatten_dict(variables["params"])
  found = []
  for path, a in leaves.items():
    if path[-1] == "kernel_a" and (b := leaves.get((*path[:-1], "kernel_b"))) is not None:
      found.append(Pairs("/".join(path[:-1]), *(np.asarray(kernel, np.float32)[:, :, 0] for kernel in (a, b))))
  return found


def pair_layers(
    model: nn.Module, variables: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> dict[str, DepthwisePair]:
  """Path -> the layer with its options, free of the network and with stride 1. Traces the network, runs nothing."""
  found: dict[str, DepthwisePair] = {}

  def note(call, args, kwargs, context):
    module = context.module
    if isinstance(module, DepthwisePair) and context.method_name == "__call__":
      found["/".join(module.path)] = module.clone(parent=None, name=None, strides=1)
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    jax.eval_shape(lambda x: model.apply(variables, x), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
  return found


def random_angle_density(degrees: np.ndarray, weights: int) -> np.ndarray:
  """Density, per degree, of the angle between two independent Gaussian vectors.

  It is proportional to sin^(n-2): the angle to a fixed direction of a point that is uniform on the sphere.

  Args:
    degrees: of 0..180.
    weights: n of a vector, 2 or more; k^2 of a k x k filter.
  """
  n = weights
  # The integral of sin^(n-2) over 0..pi is sqrt(pi) Gamma((n-1)/2) / Gamma(n/2).
  log_norm = 0.5 * math.log(math.pi) + math.lgamma((n - 1) / 2) - math.lgamma(n / 2)
  return np.sin(np.radians(degrees)) ** (n - 2) / math.exp(log_norm) * (math.pi / 180)
