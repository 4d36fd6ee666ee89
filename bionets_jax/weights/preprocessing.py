"""How the images were prepared for a network: part of its weights, not of the reader's code."""

import dataclasses

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """What a network expects: `(image / 255 - mean) / std`, at a size, resized in a way.

  Attributes:
    mean: one number in 0..1 for each channel, or one for all.
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
      if not values or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"{name} {values}: expected numbers in 0..1 (not 0..255), one a channel")
    if min(self.std) == 0:
      raise ValueError(f"std {self.std}: expected positive numbers")
    if not 0 < self.image_size <= self.resize:
      raise ValueError(
          f"image_size {self.image_size}, resize {self.resize}: expected 0 < image_size <= resize"
      )
    if self.interpolation not in INTERPOLATIONS:
      raise ValueError(
          f"interpolation {self.interpolation!r}: expected one of {', '.join(INTERPOLATIONS)}"
      )


_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

TORCHVISION = Preprocessing(_IMAGENET_MEAN, _IMAGENET_STD, image_size=224, resize=256)
# pytorch_resnet_cifar10 normalises CIFAR-10 with ImageNet's numbers.
CIFAR = Preprocessing(_IMAGENET_MEAN, _IMAGENET_STD, image_size=32, resize=32)
