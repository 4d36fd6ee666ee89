"""Training images mixed in pairs: mixup and CutMix, inside the jitted step.

mixup: Zhang et al. 2018, arXiv 1710.09412. CutMix: Yun et al. 2019, arXiv 1905.04899.
"""

import jax
import jax.numpy as jnp

SWITCH = 0.5  # share of the batches that get CutMix where both are on; timm's default


def mix(
    rng: jax.Array, images: jax.Array, labels: jax.Array, num_classes: int, *, mixup: float,
    cutmix: float,
) -> tuple[jax.Array, jax.Array]:
  """Mixes every image of a batch with the one before it, the first with the last.

  One lambda, and in CutMix one box, a batch, as in the code of both papers; they take a random permutation
  as partners. A batch is in random order already, so that its neighbours are as random, and on a batch
  split over devices only one image a device moves, where a permutation gathers all of them.

  mixup: lambda x + (1 - lambda) x' for images and labels, lambda from Beta(mixup, mixup) (Eq. 1).
  CutMix: a box of x' in x, its sides sqrt(1 - lambda) of the image's, its centre any pixel, cut off at the
  border; lambda from Beta(cutmix, cutmix), and then in the labels the share of x that is left
  (Algorithm 1). Every batch is mixed: a lambda near 1 is how little happens in some of them.

  Args:
    rng: key; the same key, the same result.
    images: (N, H, W, C) floats. Normalising before or after comes to the same.
    labels: (N,) integers.
    num_classes: K.
    mixup: parameter of mixup's beta distribution; 0 for no mixup.
    cutmix: likewise of CutMix. With both, each batch gets one of them, with probability 1/2.

  Returns:
    images like the given ones, and labels (N, K) in float32, non-negative and with sum 1.

  Raises:
    ValueError: for a negative parameter, for two zeros, or for images that are integers.
  """
  check_mixing(mixup, cutmix)
  if not (mixup or cutmix):
    raise ValueError("mixup=0 and cutmix=0: there is nothing to mix; leave the call out")
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(f"images of {images.dtype}: give floats, whose mixtures need no rounding")
  which, mixup_key, cutmix_key = jax.random.split(rng, 3)
  size = images.shape[1:3]
  share = kept = jnp.float32(1.0)  # of x in the labels, and per pixel of it in the images
  if mixup:
    share = jax.random.beta(mixup_key, float(mixup), float(mixup), dtype=jnp.float32)
    kept = jnp.broadcast_to(share, size)
  if cutmix:
    outside = _outside_box(cutmix_key, *size, cutmix)
    taken = jax.random.bernoulli(which, SWITCH) if mixup else True
    share = jnp.where(taken, outside.mean(), share)
    kept = jnp.where(taken, outside, kept)
  kept = kept[None, :, :, None].astype(images.dtype)
  one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  return (kept * images + (1 - kept) * jnp.roll(images, 1, axis=0),
          share * one_hot + (1 - share) * jnp.roll(one_hot, 1, axis=0))


def check_mixing(mixup: float, cutmix: float) -> None:
  """Raises ValueError for a parameter below 0, or NaN or infinite."""
  for name, value in (("mixup", mixup), ("cutmix", cutmix)):
    if not 0 <= value < float("inf"):
      raise ValueError(f"config.{name}={value}: give 0 for none, or the parameter of the beta distribution, "
                       "a number above 0 such as 0.2 or 1.0")


def _outside_box(rng: jax.Array, height: int, width: int, alpha: float) -> jax.Array:
  """(H, W) float32: 0 in CutMix's box and 1 outside.

  As in the authors' rand_bbox, to the pixel: half a side is rounded down on both sides of the centre, so
  that the sides of a whole box are even.
  """
  of_lambda, of_rows, of_columns = jax.random.split(rng, 3)
  ratio = jnp.sqrt(1 - jax.random.beta(of_lambda, float(alpha), float(alpha), dtype=jnp.float32))

  def inside(key, length):
    half = (length * ratio).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (), 0, length)
    at = jnp.arange(length)
    return (at >= centre - half) & (at < centre + half)

  box = inside(of_rows, height)[:, None] & inside(of_columns, width)[None]
  return 1 - box.astype(jnp.float32)
