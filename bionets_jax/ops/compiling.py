"""Options of XLA with which convolutions are fastest."""

import jax

# What XLA:CPU of jax 0.10 gives to its library YNN, without the convolutions. Those run in one thread where they have
# 32 or 64 filters (3x3 on 56x56x64: 18.7 ms on one or two cores; XLA's own 13.1 on two). In jax 0.12 they do not.
_YNN_WITHOUT_CONVOLUTIONS = {
    "xla_cpu_experimental_ynn_fusion_type":
        "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


def compiler_options(platform: str | None = None) -> dict[str, str]:
  """For `jax.jit(f, compiler_options=...)` of a function that holds whole networks; {} where there is none to set.

  `python benchmarks/networks.py` measures with them. They change round-off, nothing else.

  Args:
    platform: that it is compiled for; default JAX's default backend.
  """
  if (platform or jax.default_backend()) == "cpu" and jax.__version_info__ < (0, 12):
    return dict(_YNN_WITHOUT_CONVOLUTIONS)
  return {}
