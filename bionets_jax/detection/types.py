"""What detectors are given and what they return, in fixed shapes."""

from typing import NamedTuple

import jax


class Objects(NamedTuple):
  """The objects of a batch of images; G is the most that an image has, the rest is padding.

  boxes: (N, G, 4) in pixels; labels: (N, G) int32; present: (N, G) bool.
  """

  boxes: jax.Array
  labels: jax.Array
  present: jax.Array


class Detections(NamedTuple):
  """The best `limit` detections of each image, by falling score.

  boxes: (N, limit, 4) in pixels; scores: (N, limit); labels: (N, limit) int32; present: (N, limit) bool.
  """

  boxes: jax.Array
  scores: jax.Array
  labels: jax.Array
  present: jax.Array
