"""bionets_jax: bio-inspired units for convolutional networks, in JAX and Flax.

Everything public hangs off this package and is imported on first use, so that
`import bionets_jax as bn` costs nothing and a project that only wants the layers never
imports the trainer, the data readers or the checkpointing behind it.
"""

from typing import TYPE_CHECKING

from bionets_jax.late import late_attributes

__version__ = "0.1.0"

# public name -> module that holds it, or that it is
_LATE = {
    **{name: f"bionets_jax.{name}" for name in ("ops", "layers", "models", "losses", "surgery", "weights")},
    **dict.fromkeys(("create_model", "list_models"), "bionets_jax.models"),
    **dict.fromkeys(("transplant", "inherit"), "bionets_jax.surgery"),
    **dict.fromkeys(("count_parameters", "count_macs"), "bionets_jax.counting"),
}
__all__ = sorted(_LATE)

if TYPE_CHECKING:
  from bionets_jax import layers, losses, models, ops, surgery, weights
  from bionets_jax.counting import count_macs, count_parameters
  from bionets_jax.models import create_model, list_models
  from bionets_jax.surgery import inherit, transplant

__getattr__ = late_attributes(__name__, _LATE, __all__)


def __dir__():
  return sorted(set(globals()) | set(__all__))
