"""timm's config.json, as it lies beside its weights on the Hugging Face hub: which network, which images."""

import difflib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from bionets_jax.weights.preprocessing import Preprocessing

CONFIG_FILE = "config.json"
_LARGEST = 8 * 2**20  # bytes; names of 21,000 classes with descriptions take two million
_LARGEST_SIDE = 4096  # pixels; the networks here are evaluated at 800 at most
# timm's name -> ours, and options of create_model
_NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("resnet18", {}),
    "resnet26": ("resnet50", {"stage_sizes": [2, 2, 2, 2]}),
    "resnet34": ("resnet34", {}),
    "resnet50": ("resnet50", {}),
    "resnet101": ("resnet101", {}),
    "resnet152": ("resnet101", {"stage_sizes": [3, 8, 36, 3]}),
    "resnet200": ("resnet101", {"stage_sizes": [3, 24, 36, 3]}),
    "resnext50_32x4d": ("resnet50", {"groups": 32, "base_width": 4}),
    "resnext101_32x4d": ("resnet101", {"groups": 32, "base_width": 4}),
    "resnext101_32x8d": ("resnet101", {"groups": 32, "base_width": 8}),
    "resnext101_32x16d": ("resnet101", {"groups": 32, "base_width": 16}),
    "resnext101_32x32d": ("resnet101", {"groups": 32, "base_width": 32}),
    "resnext101_64x4d": ("resnet101", {"groups": 64, "base_width": 4}),
    "wide_resnet50_2": ("resnet50", {"base_width": 128}),
    "wide_resnet101_2": ("resnet101", {"base_width": 128}),
    # Not its seresnet18 and -34, whose squeezed layers have 8 channels at least.
    "seresnet50": ("resnet50", {"se_reduction": 16}),
    "seresnet101": ("resnet101", {"se_reduction": 16}),
    "seresnet152": ("resnet101", {"stage_sizes": [3, 8, 36, 3], "se_reduction": 16}),
    "seresnext50_32x4d": ("resnet50", {"groups": 32, "base_width": 4, "se_reduction": 16}),
    "seresnext101_32x4d": ("resnet101", {"groups": 32, "base_width": 4, "se_reduction": 16}),
    "seresnext101_32x8d": ("resnet101", {"groups": 32, "base_width": 8, "se_reduction": 16}),
    "seresnext101_64x4d": ("resnet101", {"groups": 64, "base_width": 4, "se_reduction": 16}),
    **{f"tf_efficientnet_b{i}": (f"efficientnet_b{i}", {"flavour": "tf"}) for i in range(8)},
    "tf_efficientnet_b8": ("efficientnet_b7", {"flavour": "tf", "width": 2.2, "depth": 3.6}),
    # torchvision's have another epsilon from B5 on; timm's have not.
    **{f"efficientnet_b{i}": (f"efficientnet_b{i}", {"flavour": "torchvision"} | (
        {"norm_epsilon": 1e-5} if i > 4 else {})) for i in range(8)},
    "mobilenetv1_100": ("mobilenet", {"stem_stride": 2, "act": "relu6"}),
    "mobilenetv1_125": ("mobilenet", {"stem_stride": 2, "act": "relu6", "width": 40}),
}
# What these networks were called before timm 0.9: where the weights are from stood in the name.
_OLD_NAME = re.compile(r"(?:tv|ssl|swsl|ig|gluon)_(?P<a>res\w+?|seres\w+?)(?:_v1b)?|"
                       r"(?P<b>tf_efficientnet_b\d)_(?:ap|ns)|(?P<c>efficientnet_b[23])a")
# Arguments of timm's networks that evaluation with the file's weights does not depend on.
_HARMLESS = ("num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate", "drop_block_rate")


def read_config(
    path: str | os.PathLike, say: Callable[[str], None] = print
) -> tuple[str, dict[str, Any], Preprocessing] | None:
  """What a config.json in the format of timm's hub says of the weights beside it.

  Images are prepared as timm evaluates: at `test_input_size` and `test_crop_pct` where it has them, the
  shorter side resized to size / crop_pct, rounded down. One thing is done otherwise, and said: where timm
  squashes images to a square (one of its published weights), here their centre is taken.

  Args:
    path: of the file.
    say: takes that line.

  Returns:
    (our name, options of create_model, preprocessing); None if it is not in timm's format: a run's, say.

  Raises:
    ValueError: it is damaged, or of a network that is none of ours; nothing of the weights has to be read
      to know that.
  """
  path = os.fspath(path)
  config = _load(path)
  architecture = config.get("architecture") if isinstance(config, dict) else None
  if architecture is None:
    return None
  if not isinstance(architecture, str):
    raise ValueError(f"{path}: architecture is {architecture!r:.60}; expected a name of timm's")
  name, options = _network(architecture, path)
  arguments = config.get("model_args") or {}
  if not isinstance(arguments, dict):
    raise ValueError(f"{path}: model_args is a {type(arguments).__name__}; expected an object")
  for pool in (config.get("global_pool"), arguments.get("global_pool")):
    if pool not in (None, "avg"):
      raise ValueError(f"{path}: global_pool is {pool!r:.60}; the networks here have 'avg'")
  if changed := [key for key, value in arguments.items() if key not in _HARMLESS and value is not None]:
    raise ValueError(f"{path}: model_args has {', '.join(changed[:6])}: what timm makes of a network with "
                     "these arguments is not known here")
  nested = config.get("pretrained_cfg", config)  # timm < 0.9 wrote all on one level
  if not isinstance(nested, dict):
    raise ValueError(f"{path}: pretrained_cfg is a {type(nested).__name__}; expected an object")
  try:
    return name, options, _preprocessing(nested, lambda text: say(f"{path}: {text}"))
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def timm_name(name: str, options: Mapping[str, Any]) -> str:
  """What timm calls `create_model(name, **options)`; '' if it has no such network."""
  given = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
  return next((theirs for theirs, ours in _NETWORKS.items() if ours == (name, given)), "")


def write_fields(
    name: str, options: Mapping[str, Any], num_classes: int, preprocessing: Preprocessing,
    class_names: tuple[str, ...] = (), channels: int = 3,
) -> dict[str, Any]:
  """The fields of a config.json by which timm knows a network and its images; {} for none of timm's."""
  architecture = timm_name(name, options)
  if not architecture:
    return {}
  side = preprocessing.image_size
  exact = side / preprocessing.resize
  # timm rounds size / crop_pct down, and so must get no less than `resize` out of as few digits as do.
  crop = next(rounded for rounded in (*(round(exact, n) for n in range(2, 9)), exact * (1 - 1e-12))
              if math.floor(side / rounded) == preprocessing.resize)
  return {
      "architecture": architecture, "num_classes": num_classes, "global_pool": "avg",
      **({"label_names": list(class_names)} if class_names else {}),
      "pretrained_cfg": {
          "input_size": [channels, side, side], "fixed_input_size": False, "crop_pct": crop,
          "crop_mode": "center", "interpolation": preprocessing.interpolation,
          "mean": _each(preprocessing.mean, channels), "std": _each(preprocessing.std, channels),
          "num_classes": num_classes,
          **({"first_conv": "conv1", "classifier": "fc"} if "res" in architecture else
             {"first_conv": "conv_stem", "classifier": "classifier"})}}  # fmt: skip


def _load(path):
  """The JSON value in a file that somebody else wrote."""
  def refuse(constant):
    raise ValueError(f"{constant} is no JSON number")

  if (size := os.path.getsize(path)) > _LARGEST:
    raise ValueError(f"{path}: {size:,} bytes, more than any description of a network")
  try:
    with open(path, encoding="utf-8") as file:
      return json.load(file, parse_constant=refuse)
  except (ValueError, RecursionError) as error:
    reason = "nested too deeply" if isinstance(error, RecursionError) else error
    raise ValueError(f"{path}: damaged ({reason})") from error


def _network(architecture, path):
  old = _OLD_NAME.fullmatch(architecture)
  found = _NETWORKS.get(architecture) or (old and _NETWORKS.get(old["a"] or old["b"] or old["c"]))
  if found:
    return found[0], dict(found[1])
  near = difflib.get_close_matches(architecture, _NETWORKS, n=3, cutoff=0.6)
  nearest = f"; the nearest that are: {', '.join(near)}" if near else ""
  raise ValueError(
      f"{path}: the weights beside it are of timm's {architecture[:60]!r}, which is none of the networks here"
      f"{nearest}")


def _preprocessing(config, say):
  """timm.data.resolve_data_config(use_test_size=True) and transforms_imagenet_eval, which see."""
  def value(*keys, default):
    return next(((key, config[key]) for key in keys if config.get(key) is not None), (keys[-1], default))

  key, size = value("test_input_size", "input_size", default=[3, 224, 224])
  if not (isinstance(size, list) and len(size) == 3 and all(type(n) is int for n in size)):
    raise ValueError(f"{key} is {size!r:.60}; expected three whole numbers: channels, height, width")
  channels, side = size[0], size[1]
  if size[1] != size[2] or not 0 < side <= _LARGEST_SIDE:
    raise ValueError(f"{key} is {size}; expected a square of 1 to {_LARGEST_SIDE} pixels")
  key, crop = value("test_crop_pct", "crop_pct", default=0.875)
  if not _is_number(crop) or not 0.1 <= crop <= 1:
    raise ValueError(f"{key} is {crop!r:.60}; expected a number in 0.1..1, a share of the resized image")
  _, mode = value("crop_mode", default="center")
  if mode == "squash":
    say("timm squashes images to a square for these weights; here the centre of each image is taken")
  elif mode != "center":
    raise ValueError(f"crop_mode is {mode!r:.60}; expected 'center' or 'squash'")
  norm = []
  for key, default in (("mean", [0.485, 0.456, 0.406]), ("std", [0.229, 0.224, 0.225])):
    _, numbers = value(key, default=default)
    if not (isinstance(numbers, list) and all(map(_is_number, numbers)) and len(numbers) == channels):
      raise ValueError(f"{key} is {numbers!r:.60}; expected {channels} numbers, one for each channel")
    norm.append(tuple(numbers))
  _, interpolation = value("interpolation", default="bicubic")
  mean, std = norm
  return Preprocessing(mean, std, side, math.floor(side / crop), interpolation)


def _each(numbers, channels):
  return list(numbers) * channels if len(numbers) == 1 else list(numbers)


def _is_number(value):
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
