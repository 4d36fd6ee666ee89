"""Trained networks on other data, other labels, disturbed images: python -m bionets_jax.evaluate --help."""
