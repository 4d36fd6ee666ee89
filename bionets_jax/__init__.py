"""bionets_jax: bio-inspired units for convolutional networks, in JAX and Flax.

Everything public hangs off this package and is imported on first use, so that
`import bionets_jax as bn` costs nothing and a project that only wants the layers never
imports the trainer, the data readers or the checkpointing behind it.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# public name -> (module that holds it, attribute or None for the module itself)
_LAZY = {
    "ops": ("bionets_jax.ops", None),
    "layers": ("bionets_jax.layers", None),
    "models": ("bionets_jax.models", None),
    "losses": ("bionets_jax.losses", None),
    "surgery": ("bionets_jax.surgery", None),
    "weights": ("bionets_jax.weights", None),
    "create_model": ("bionets_jax.models", "create_model"),
    "list_models": ("bionets_jax.models", "list_models"),
    "transplant": ("bionets_jax.surgery", "transplant"),
    "inherit": ("bionets_jax.surgery", "inherit"),
    "count_parameters": ("bionets_jax.counting", "count_parameters"),
    "count_macs": ("bionets_jax.counting", "count_macs"),
}
__all__ = sorted(_LAZY)

if TYPE_CHECKING:
  from bionets_jax import layers, losses, models, ops, surgery, weights
  from bionets_jax.counting import count_macs, count_parameters
  from bionets_jax.models import create_model, list_models
  from bionets_jax.surgery import inherit, transplant


def __getattr__(name):
  try:
    module, attribute = _LAZY[name]
  except KeyError:
    raise AttributeError(
        f"module 'bionets_jax' has no attribute {name!r}; it has {', '.join(__all__)}"
    ) from None
  value = importlib.import_module(module)
  if attribute is not None:
    value = getattr(value, attribute)
  globals()[name] = value
  return value


def __dir__():
  return sorted(set(globals()) | set(__all__))
