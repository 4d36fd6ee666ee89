"""Images on the device between float32 and uint8."""

import jax.numpy as jnp


def as_uint8(image):
  """Returns the image as uint8: float32 in 0..255 is rounded to the nearest level, 1/2 at most away."""
  if image.dtype == jnp.uint8:
    return image
  return jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)
