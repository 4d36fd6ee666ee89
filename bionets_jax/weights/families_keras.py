"""keras.applications' EfficientNets: what is called how in them, and how they take their images.

Their weights are the original ones, converted; and a network that is built for one size of image pads as the
original does, 'SAME'. One that is built for any size pads alike in all, as our flavour 'keras'. Both have the
same weights, and compute the same where every map that a stride stands on has even sides.
"""

import dataclasses

import numpy as np

from bionets_jax.weights import preprocessing as prep
from bionets_jax.weights.family import Flavour, Layout

_NORMALIZATION = "normalization/"
# keras.applications says of its ImageNet weights that their normalisation has the square roots of ImageNet's
# deviations, and puts a layer behind it that divides by these roots once more. The layer has no weights.
_IMAGENET_VARIANCE = np.array(prep.BICUBIC.std, np.float32)

_LEAVES = {
    "conv": (("params", "kernel", "kernel", (0, 1, 2, 3)),),
    "conv with bias": (
        ("params", "kernel", "kernel", (0, 1, 2, 3)),
        ("params", "bias", "bias", (0,)),
    ),
    "depthwise": (("params", "kernel", "kernel", (0, 1, 3, 2)),),  # (H, W, C, 1) -> (H, W, 1, C)
    "norm": (
        ("params", "scale", "gamma", (0,)),
        ("params", "bias", "beta", (0,)),
        ("batch_stats", "mean", "moving_mean", (0,)),
        ("batch_stats", "var", "moving_variance", (0,)),
    ),
    "dense": (
        ("params", "kernel", "kernel", (0, 1)),
        ("params", "bias", "bias", (0,)),
    ),
}


def _modules():
  """Blocks have letters in place of numbers: block2a_expand_conv is the first of stage 2."""
  rows = [("stem_conv", "stem_conv", "conv"), ("stem_bn", "stem_bn", "norm"),
          ("top_conv", "top_conv", "conv"), ("top_bn", "top_bn", "norm"), ("head", "predictions", "dense")]
  parts = (("expand_conv", "expand_conv", "conv"), ("expand_bn", "expand_bn", "norm"),
           ("depthwise_conv", "dwconv", "depthwise"), ("depthwise_bn", "bn", "norm"),
           ("se/reduce_conv", "se_reduce", "conv with bias"),
           ("se/expand_conv", "se_expand", "conv with bias"),
           ("project_conv", "project_conv", "conv"), ("project_bn", "project_bn", "norm"))
  for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz"):
    rows += [(f"stage{{s}}_block{i}/{ours}", f"block{{s}}{letter}_{theirs}", kind)
             for ours, theirs, kind in parts]
  return tuple(rows)


def _read_inputs(extras, published):
  """`published` with the mean and deviation of the file's own normalisation."""
  keys = [_NORMALIZATION + name for name in ("mean", "variance")]
  if missing := [key for key in keys if key not in extras]:
    raise ValueError(f"it has no {missing[0]}, by which Keras prepares the images")
  mean, variance = (np.asarray(extras[key], np.float32).reshape(-1) for key in keys)
  if not (np.isfinite(mean).all() and np.isfinite(variance).all() and (variance > 0).all()):
    raise ValueError(f"{keys[0]} {mean} and variance {variance} are no statistics of images")
  if variance.shape == (3,) and np.allclose(variance, _IMAGENET_VARIANCE, rtol=1e-5):
    variance = variance * _IMAGENET_VARIANCE
  return dataclasses.replace(published, mean=_decimals(mean), std=_decimals(np.sqrt(variance)))


def _write_inputs(preprocessing):
  """The normalisation of a network that Keras builds with weights=None."""
  mean, std = np.broadcast_arrays(np.float32(preprocessing.mean), np.float32(preprocessing.std))
  return {f"{_NORMALIZATION}mean": np.array(mean), f"{_NORMALIZATION}variance": np.square(std),
          f"{_NORMALIZATION}count": np.zeros((), np.int64)}


def _decimals(values):
  """float32 numbers as the shortest decimals that stand for them: 0.485, not 0.48500001430511475."""
  return tuple(float(str(np.float32(value))) for value in values)


KERAS_EFFICIENTNET = Layout(
    name="keras_efficientnet",
    marks=("stem_conv/kernel", "block1a_dwconv/kernel", "block1a_se_reduce/kernel", "top_conv/kernel"),
    modules=_modules(),
    preprocessing=prep.BICUBIC,
    leaves=_LEAVES,
    # Keras publishes the sizes and no way of cropping. The weights' authors resize to 32 more, bicubic; timm
    # evaluates the same weights like that.
    flavours={
        "tf": Flavour("keras.applications' for one size of image", prep.TF_EFFICIENTNETS, 1e-3),
        "keras": Flavour("keras.applications' for any size of image", prep.TF_EFFICIENTNETS, 1e-3),
    },
    own_flavour="tf",
    counter="",
    extras=(_NORMALIZATION + "(mean|variance|count)",),
    separator="/",
    read_inputs=_read_inputs,
    write_inputs=_write_inputs,
)
