"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) on the host, equal to torchvision's to the pixel.

`count` operations, drawn with replacement from 14, are applied one after the other, all with the
same magnitude, in either direction where they have two. torchvision's defaults hold: 31 steps of
magnitude, nearest neighbour, black where an image has been moved away.
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAX_MAGNITUDE = 30
# In torchvision's order. Those of SIGNED have a direction, half of the time the negative one.
OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color",
    "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)
GEOMETRIC = OPERATIONS[1:6]
BLENDED = OPERATIONS[6:10]
SIGNED = GEOMETRIC + BLENDED


def check(count, magnitude):
  """Raises ValueError unless these are a RandAugment's."""
  if not isinstance(count, int) or count < 1:
    raise ValueError(f"The number of operations must be a whole number >= 1, got {count!r}.")
  if not isinstance(magnitude, int) or not 0 <= magnitude <= MAX_MAGNITUDE:
    raise ValueError(
        f"The magnitude must be a whole number from 0 to {MAX_MAGNITUDE}, got {magnitude!r}."
    )


def strength(operation, magnitude, height, width):
  """What a magnitude of 0..30 means to an operation.

  Args:
    operation: of OPERATIONS.
    magnitude: int.
    height, width: of the image.

  Returns:
    Float: slope (ShearX, ShearY), pixels, degrees, change of the factor (BLENDED), bits kept
    (Posterize), threshold (Solarize); 0 where there is none.
  """
  ends = {
      "ShearX": (0.0, 0.3), "ShearY": (0.0, 0.3),
      "TranslateX": (0.0, 150.0 / 331.0 * width), "TranslateY": (0.0, 150.0 / 331.0 * height),
      "Rotate": (0.0, 30.0), "Solarize": (255.0, 0.0), **dict.fromkeys(BLENDED, (0.0, 0.9)),
  }
  if operation == "Posterize":
    return 8.0 - round(magnitude / (MAX_MAGNITUDE / 4))
  if operation not in ends:
    return 0.0
  # As torch.linspace counts: a step in float32, from the nearer end, rounded to float32 once more.
  # Thresholds, angles and pixels meet whole numbers later, where the last bit can show.
  low, high = map(np.float32, ends[operation])
  step = float((high - low) / np.float32(MAX_MAGNITUDE))
  if magnitude < (MAX_MAGNITUDE + 1) // 2:
    return float(np.float32(float(low) + step * magnitude))
  return float(np.float32(float(high) - step * (MAX_MAGNITUDE - magnitude)))


def source_matrix(operation, strength, height, width):
  """Where a GEOMETRIC operation takes a pixel from.

  Args:
    operation: of GEOMETRIC.
    strength: signed; slope, pixels or degrees.
    height, width: of the image.

  Returns:
    (a, b, c, d, e, f): the pixel at (x, y) comes from (a x + b y + c, d x + e y + f).
  """
  if operation in ("ShearX", "ShearY"):
    # torchvision goes by way of degrees; exactly this way, for the same last bit.
    slope = math.tan(math.radians(math.degrees(math.atan(strength))))
    return (1.0, slope, 0.0, 0.0, 1.0, 0.0) if operation == "ShearX" else (1.0, 0.0, 0.0, slope, 1.0, 0.0)
  if operation == "TranslateX":
    return (1.0, 0.0, -float(int(strength)), 0.0, 1.0, 0.0)
  if operation == "TranslateY":
    return (1.0, 0.0, 0.0, 0.0, 1.0, -float(int(strength)))
  # PIL's Image.rotate: counter-clockwise about the centre.
  angle = -math.radians(strength % 360.0)
  cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
  x, y = width / 2, height / 2
  return (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)


def apply_operation(image, operation, strength):
  """Applies one operation to a PIL image of mode RGB or L; `strength` is signed."""
  if operation in GEOMETRIC:
    matrix = source_matrix(operation, strength, image.height, image.width)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
  if operation in BLENDED:
    return getattr(ImageEnhance, operation)(image).enhance(1.0 + strength)
  if operation == "Posterize":
    return ImageOps.posterize(image, int(strength))
  if operation == "Solarize":
    return ImageOps.solarize(image, strength)
  if operation == "AutoContrast":
    return ImageOps.autocontrast(image)
  return ImageOps.equalize(image) if operation == "Equalize" else image


@dataclasses.dataclass(frozen=True)
class RandAugment:
  """Applies `count` random operations of the same magnitude (0 to 30)."""

  count: int
  magnitude: int

  usage = "rand_augment(count, magnitude)"
  is_random = True

  def __post_init__(self):
    check(self.count, self.magnitude)

  def output_size(self, size):
    return size

  def __call__(self, image, rng):
    height, width, channels = image.shape
    pil = Image.fromarray(image[..., 0] if channels == 1 else image)
    for _ in range(self.count):
      operation = OPERATIONS[int(rng.random() * len(OPERATIONS))]
      backwards = rng.random() < 0.5
      amount = strength(operation, self.magnitude, height, width)
      pil = apply_operation(pil, operation, -amount if backwards and operation in SIGNED else amount)
    return np.asarray(pil).reshape(image.shape)
