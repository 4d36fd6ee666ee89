"""Runs as one HTML file that needs nothing else: python -m bionets_jax.report html WORKDIR... [--help]."""
