"""Proves on the machine at hand that runs are exact: python -m bionets_jax.selfcheck."""
