"""Heatmaps of pictures of any size, prepared as a loaded network expects them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from bionets_jax.data.device_transforms import DEVICE_TRANSFORMS
from bionets_jax.data.grammar import parse_call, split_calls
from bionets_jax.data.transforms import HOST_TRANSFORMS, CenterCrop, TenCrop, resize_to
from bionets_jax.heatmaps.display import METHODS
from bionets_jax.heatmaps.maps import Maps, cam, grad_cam
from bionets_jax.weights.loading import Loaded
from bionets_jax.weights.preprocessing import normalize

_ON_DEVICE_ALONE = DEVICE_TRANSFORMS.keys() - HOST_TRANSFORMS.keys()  # all of them are random
_BATCH = 16  # pictures at a time; a network at 224 x 224 with its gradient takes some GB of them


def of_pictures(
    loaded: Loaded, pictures: Sequence[np.ndarray], method: str = "grad-cam", layer: str | None = None,
    classes: int | Sequence[int] | np.ndarray | None = None,
) -> Maps:
  """Heatmaps of pictures, each prepared by `seen` and normalised as the network's own images were.

  Args:
    loaded: of `weights.load`.
    pictures: uint8 (H, W, 3), of any sizes.
    method: 'grad-cam' or 'cam'.
    layer: see `grad_cam`; 'cam' has its own.
    classes: of each picture, or one for all; None for the predicted ones.

  Returns:
    `Maps`; they lie over the pictures that `seen` returns.

  Raises:
    ValueError: as `grad_cam`, `cam` and `seen`; for a detector; for weights without a head.
  """
  check(loaded)
  if method not in METHODS:
    raise ValueError(f"method={method!r}: give {' or '.join(map(repr, METHODS))}")
  if method == "cam" and layer is not None:
    raise ValueError(f"layer={layer!r}: CAM is of the last maps; grad-cam takes any layer")
  if not len(pictures):
    raise ValueError("pictures: none were given")
  if classes is not None and np.asarray(classes).shape not in ((), (len(pictures),)):
    raise ValueError(f"classes={classes!r:.80}: give one for all, or {len(pictures)} of them, one a picture")
  prep = loaded.preprocessing
  channels = loaded.image_shape[-1]
  images = np.stack([seen(loaded, picture)[..., :channels] for picture in pictures])  # grey: all three are the same
  wanted = None if classes is None else np.broadcast_to(np.asarray(classes), len(images))
  parts = []
  for start in range(0, len(images), _BATCH):
    batch = slice(start, start + _BATCH)
    part, given = images[batch], None if wanted is None else wanted[batch]
    real = len(part)
    if start and real < _BATCH:  # filled up: another size would be compiled anew
      fill = ((0, _BATCH - real),)
      part = np.pad(part, (*fill, (0, 0), (0, 0), (0, 0)))
      given = None if given is None else np.pad(given, fill)
    floats = normalize(part, prep.mean, prep.std)
    if method == "cam":
      maps = cam(loaded.model, loaded.variables, floats, classes=given)
    else:
      maps = grad_cam(loaded.model, loaded.variables, floats, layer=layer, classes=given)
    parts.append(maps._replace(values=maps.values[:real], classes=maps.classes[:real], logits=maps.logits[:real]))
  joined = [np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "classes", "logits")]
  return Maps(joined[0], joined[1], joined[2], parts[0].layer)


def seen(loaded: Loaded, picture: np.ndarray) -> np.ndarray:
  """What the network gets to see of a picture: uint8 (H, W, 3) of its own input size.

  Made by the transform of the run's evaluation, without its random steps and with the central one of ten crops;
  of another library's network by its resizing and central crop. What is not of the input's size then, such as a
  photograph for a network of 32 x 32 pixels, is resized to cover it and cropped. Networks for grey images see
  the luminance, which all three channels hold.

  Args:
    loaded: of `weights.load`.
    picture: uint8 (H, W, 3).

  Raises:
    ValueError: for another shape or dtype, or a picture too narrow to be resized.
  """
  check(loaded)
  if getattr(picture, "dtype", None) != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3 or not picture.size:
    what = f"{picture.dtype} {picture.shape}" if hasattr(picture, "shape") else type(picture).__name__
    raise ValueError(f"a picture is {what}; expected uint8 (H, W, 3)")
  *size, channels = loaded.image_shape
  if channels == 1:
    picture = np.repeat(np.asarray(Image.fromarray(picture).convert("L"))[..., None], 3, axis=-1)
  for step in _steps(loaded):
    picture = step(picture, None)
  return _cover(picture, size)


def check(loaded: Any) -> None:
  """Raises ValueError for what no heatmap can be of: a detector, or weights without a head."""
  if not isinstance(loaded, Loaded):
    raise ValueError(f"a {type(loaded).__name__}: heatmaps are of networks that give an image one score a class; a "
                     "detector gives many boxes theirs. detection.predict draws what it finds")
  if not loaded.num_classes:
    raise ValueError(f"{loaded.path} has no head: there is no score of a class to explain")
  if loaded.image_shape[-1] not in (1, 3):
    raise ValueError(f"{loaded.path} is of a network for images of {loaded.image_shape[-1]} channels; pictures have "
                     "3, or 1")


def _steps(loaded: Loaded) -> list[Any]:
  prep = loaded.preprocessing
  text = loaded.eval_transform
  if text is None:  # as evaluation does: small images stay as they are
    if prep.resize <= 32:
      return []
    text = f"resize({prep.resize}, {prep.interpolation})|center_crop({prep.image_size})"
  try:
    calls = [call for call in split_calls(text) if call.split("(")[0].strip() not in _ON_DEVICE_ALONE]
    steps = [parse_call(call, HOST_TRANSFORMS) for call in calls]
  except (ValueError, AttributeError) as error:
    raise ValueError(f"{loaded.path}: damaged weight file (its eval_transform {text!r:.80}: {error})") from error
  return [CenterCrop(step.size) if isinstance(step, TenCrop) else step for step in steps if not step.is_random]


def _cover(picture: np.ndarray, size: Sequence[int]) -> np.ndarray:
  """The largest central part of the form of `size`, resized to it."""
  have = picture.shape[:2]
  if list(have) == list(size):
    return picture
  scale = max(new / old for new, old in zip(size, have, strict=True))
  height, width = (max(round(old * scale), new) for old, new in zip(have, size, strict=True))
  picture = resize_to(picture, height, width, "bilinear")
  top, left = (height - size[0]) // 2, (width - size[1]) // 2
  return picture[top:top + size[0], left:left + size[1]]
