"""Networks with random weights, made without compiling anything."""

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bionets_jax.counting import abstract_variables


def random_variables(model, image_shape, spread=0.5):
  """Normal, but for variances. To compile an initialisation would take longer than the tests."""
  flat = flatten_dict(abstract_variables(model, image_shape), sep="/")
  random = np.random.default_rng(0)
  return unflatten_dict(
      {path: random.normal(0, spread, leaf.shape).astype(np.float32)**(2 if path.endswith("/var") else 1)
       for path, leaf in flat.items()}, sep="/")
