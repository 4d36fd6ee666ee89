"""How the images were prepared for a network: part of its weights, not of the reader's code."""

import dataclasses

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
_FARTHEST = 10


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """What a network expects: `(image / 255 - mean) / std`, at a size, resized in a way.

  Attributes:
    mean: one number for each channel, or one for all, in the unit in which images are 0..1. Others' files
      may hold any; what is far outside is taken for a mean of images in 0..255.
    std: positive numbers in the same unit.
    image_size: side of the square that the network sees at evaluation.
    resize: length that the shorter side is resized to before the central crop of `image_size`.
    interpolation: 'nearest', 'bilinear' or 'bicubic'.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  image_size: int
  resize: int
  interpolation: str = "bilinear"

  def __post_init__(self):
    for name in ("mean", "std"):
      values = tuple(float(value) for value in getattr(self, name))
      object.__setattr__(self, name, values)
      if not values or not all(abs(value) <= _FARTHEST for value in values):
        raise ValueError(f"{name} {values}: expected numbers for images in 0..1 (not 0..255), one a channel")
    if min(self.std) <= 0:
      raise ValueError(f"std {self.std}: expected positive numbers")
    if not 0 < self.image_size <= self.resize:
      raise ValueError(
          f"image_size {self.image_size}, resize {self.resize}: expected 0 < image_size <= resize"
      )
    if self.interpolation not in INTERPOLATIONS:
      raise ValueError(
          f"interpolation {self.interpolation!r}: expected one of {', '.join(INTERPOLATIONS)}"
      )


def normalize(images, mean, std):
  """Images of 0..255 (..., H, W, C), `(x / 255 - mean) / std` per channel, in float32 at least; traceable."""
  import jax.numpy as jnp  # here: who only reads files does not wait for JAX

  x = images.astype(jnp.promote_types(images.dtype, jnp.float32)) / 255.0
  return (x - jnp.asarray(mean, x.dtype)) / jnp.asarray(std, x.dtype)


_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

TORCHVISION = Preprocessing(_IMAGENET_MEAN, _IMAGENET_STD, image_size=224, resize=256)
# pytorch_resnet_cifar10 normalises CIFAR-10 with ImageNet's numbers.
CIFAR = Preprocessing(_IMAGENET_MEAN, _IMAGENET_STD, image_size=32, resize=32)
# timm's ResNets and SE-ResNets, at the size that they were trained on.
BICUBIC = Preprocessing(_IMAGENET_MEAN, _IMAGENET_STD, image_size=224, resize=256, interpolation="bicubic")
# timm's mobilenetv1_100.ra4_e3600_r224_in1k, as it is evaluated; mobilenetv1_125 is not cropped (resize=256).
TIMM_MOBILENETV1 = Preprocessing((0.5,) * 3, (0.5,) * 3, image_size=256, resize=269, interpolation="bicubic")


def _by_size(*sides):
  return {f"efficientnet_b{i}": Preprocessing(_IMAGENET_MEAN, _IMAGENET_STD, size, resize, "bicubic")
          for i, (size, resize) in enumerate(sides)}


# (image_size, resize) of B0, B1, ... as the libraries evaluate their weights: torchvision's IMAGENET1K_V1,
# timm's tf_efficientnet_*, timm's own; of these the ones with this mean and std. timm resizes to size /
# crop_pct, rounded down.
TORCHVISION_EFFICIENTNETS = _by_size(
    (224, 256), (240, 256), (288, 288), (300, 320), (380, 384), (456, 456), (528, 528), (600, 600))
TF_EFFICIENTNETS = _by_size(
    (224, 256), (240, 272), (260, 292), (300, 331), (380, 412), (456, 488), (528, 560), (600, 632))
TIMM_EFFICIENTNETS = _by_size((224, 256), (256, 256), (288, 288), (320, 320), (384, 384), (448, 448))
