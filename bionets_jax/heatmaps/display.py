"""From the values of a heatmap to what is shown of it."""

import numpy as np

METHODS = ("grad-cam", "cam")
COLOURS = "viridis"  # rises evenly in lightness, with any colour vision


def normalised(values: np.ndarray, method: str = "grad-cam") -> np.ndarray:
  """Heatmaps (N, h, w) to 0..1, each for itself, float32.

  Args:
    values: (N, h, w), not negative.
    method: 'grad-cam' for (x - min) / (max - min), where a constant map becomes 0; 'cam' for x / max, where a map
      of zeros stays one.

  Raises:
    ValueError: for another shape or method, or values that are not finite.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 3 or not np.isfinite(values).all():
    raise ValueError(f"values of shape {values.shape}: expected finite numbers (N, h, w)")
  if method not in METHODS:
    raise ValueError(f"method={method!r}: give {' or '.join(map(repr, METHODS))}")
  low = values.min((1, 2), keepdims=True) if method == "grad-cam" else np.zeros((len(values), 1, 1))
  span = values.max((1, 2), keepdims=True) - low
  return np.divide(values - low, span, out=np.zeros_like(values), where=span > 0).astype(np.float32)


def enlarged(heatmap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """A heatmap (h, w) bilinearly at (H, W), float32; pixels are areas with their values in the middle.

  Args:
    heatmap: float.
    size: (H, W), not smaller than (h, w).

  Raises:
    ValueError: for another shape.
  """
  from PIL import Image

  heatmap = np.asarray(heatmap, np.float32)
  if heatmap.ndim != 2 or any(new < old for new, old in zip(size, heatmap.shape, strict=True)):
    raise ValueError(f"a heatmap of shape {heatmap.shape} to {tuple(size)}: expected (h, w) and a size not below it")
  return np.asarray(Image.fromarray(heatmap).resize(size[::-1], Image.Resampling.BILINEAR))


def overlay(picture: np.ndarray, heatmap: np.ndarray, opacity: float = 0.5) -> np.ndarray:
  """A picture under a heatmap's colours: uint8 (H, W, 3).

  Args:
    picture: uint8 (H, W, 3), as the network has seen it.
    heatmap: (h, w), 0..1; enlarged to the picture.
    opacity: of the colours, from 0 (the picture) to 1; with 0.5 both count the same, as in kEffNet's figures.

  Raises:
    ValueError: for other shapes, dtypes or ranges.
  """
  import matplotlib

  if getattr(picture, "dtype", None) != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
    raise ValueError(f"picture: {getattr(picture, 'dtype', type(picture).__name__)} {np.shape(picture)}; expected "
                     "uint8 (H, W, 3)")
  if not 0 <= opacity <= 1:
    raise ValueError(f"opacity={opacity}: give a number from 0 to 1")
  heatmap = np.asarray(heatmap)
  if not ((0 <= heatmap) & (heatmap <= 1)).all():
    raise ValueError("heatmap: expected values from 0 to 1; see normalised")
  colours = matplotlib.colormaps[COLOURS](enlarged(heatmap, picture.shape[:2]))[..., :3]
  return np.round((1 - opacity) * picture + opacity * 255 * colours).astype(np.uint8)
