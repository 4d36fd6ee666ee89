"""GPU kernels of the operations that XLA runs in several passes. `choice` says when they are used."""
