"""Options of XLA with which convolutions are fastest, or give the same bits every time."""

import jax

# What XLA:CPU of jax 0.10 gives to its library YNN, without the convolutions. Those run in one thread where they have
# 32 or 64 filters (3x3 on 56x56x64: 18.7 ms on one or two cores; XLA's own 13.1 on two). In jax 0.12 they do not.
_YNN_WITHOUT_CONVOLUTIONS = {
    "xla_cpu_experimental_ynn_fusion_type":
        "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


# No atomic additions in an order of chance, and no choice of algorithms by timing them, which another start could
# make otherwise.
_SAME_BITS_ON_A_GPU = {"xla_gpu_deterministic_ops": True}


def compiler_options(platform: str | None = None, *, deterministic: bool = False) -> dict[str, str | bool]:
  """For `jax.jit(f, compiler_options=...)` of a function that holds whole networks; {} where there is none to set.

  `python benchmarks/networks.py` measures with them. They change round-off, nothing else.

  Args:
    platform: that it is compiled for; default JAX's default backend.
    deterministic: whether a GPU is to give the same bits in every run and after every start. On others it does
      nothing: a CPU does so anyway, a TPU has no algorithms that do not.
  """
  platform = platform or jax.default_backend()
  if platform == "cpu" and jax.__version_info__ < (0, 12):
    return dict(_YNN_WITHOUT_CONVOLUTIONS)
  return dict(_SAME_BITS_ON_A_GPU) if deterministic and platform == "gpu" else {}
