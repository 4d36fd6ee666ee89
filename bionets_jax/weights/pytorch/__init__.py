"""The source of a PyTorch module that is one of our networks, to go beside its weights."""

from bionets_jax.weights.pytorch.source import pytorch_source

__all__ = ["pytorch_source"]
