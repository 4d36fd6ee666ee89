"""The papers' figures, drawn from the units themselves and from trained networks.

`python -m bionets_jax.figures --list` names them.
"""
