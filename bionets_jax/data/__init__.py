"""Data sets, their order, their augmentation, and the batches that the trainer consumes.

  make_pipeline(name=..., ...)     everything at once: what the trainer calls (pipeline.py)
  open_source(name, split, dir)    one split with random access (sources.py)
  parse_transforms(text, table)    'random_resized_crop(224)|flip' (grammar.py)

Worker processes import `stream.py` and what reads and prepares examples on the host, without jax, so
nothing is imported here until it is used.
"""

import importlib

# public name -> module that holds it
_LAZY = {
    "BatchPlan": "order",
    "DEVICE_TRANSFORMS": "device_transforms",
    "EvalPlan": "order",
    "HOST_TRANSFORMS": "transforms",
    "Pipeline": "pipeline",
    "ResidentSet": "resident",
    "Source": "sources",
    "decode_gray": "decode",
    "decode_rgb": "decode",
    "make_pipeline": "pipeline",
    "open_source": "sources",
    "parse_transforms": "grammar",
}
__all__ = sorted(_LAZY)


def __getattr__(name):
  if name not in _LAZY:
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}"
    )
  value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
  globals()[name] = value
  return value


def __dir__():
  return sorted(set(globals()) | set(__all__))
