"""A network with its weights in one line, wherever they come from."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from bionets_jax.counting import abstract_variables
from bionets_jax.models import create_model
from bionets_jax.weights import layouts
from bionets_jax.weights.detectors import is_detector
from bionets_jax.weights.family import Layout
from bionets_jax.weights.guess import guess_network
from bionets_jax.weights.locate import Located, locate
from bionets_jax.weights.native import LAYOUT, find_weights, is_native, load_native
from bionets_jax.weights.preprocessing import Preprocessing
from bionets_jax.weights.pretrained import fill, read_known

_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A network, its weights and what belongs to them.

  Attributes:
    model: the module; `model.apply(variables, images)` gives the logits.
    name, options: `create_model(name, num_classes, **options)` is the model, but for its dtype.
    num_classes: 0 for weights without a head.
    variables: {'params': ..., 'batch_stats': ...}, trees of NumPy arrays; float32 from others' files.
    preprocessing: the input that the network was trained on.
    layout: 'bionets_jax' for our own files, else a name of `weights.layouts`.
    source: as it was asked for.
    path: the file that was read.
    class_names: in the order of the logits; () if the file does not say.
    image_shape: (H, W, C) that the network is evaluated at.
    extras: {key: array} of another library's file: what is no variable of the network.
    eval_transform: how the run that trained it prepared the images of its evaluation, in the words of
      `data.grammar`; None for what `preprocessing` says, as of other libraries' files.
  """

  model: nn.Module
  name: str
  options: Mapping[str, Any]
  num_classes: int
  variables: Mapping[str, Any]
  preprocessing: Preprocessing
  layout: str
  source: str
  path: str
  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]
  extras: Mapping[str, np.ndarray]
  eval_transform: str | None = None

  def about(self) -> dict[str, Any]:
    """What `native.save_native` writes beside the variables."""
    return {
        "model": self.name, "options": dict(self.options), "num_classes": self.num_classes,
        "class_names": list(self.class_names), "image_shape": list(self.image_shape),
        "preprocessing": dataclasses.asdict(self.preprocessing)}


def load(
    source: str | os.PathLike, name: str = "", *, num_classes: int | None = None, dtype: Any = None,
    say: Callable[[str], None] = print, **options: Any,
) -> Loaded:
  """Loads a network with its weights.

      loaded = load('torchvision://ResNet50_Weights.IMAGENET1K_V1')
      logits = loaded.model.apply(loaded.variables, images)

  Args:
    source: a finished run's workdir; a .safetensors, .npz, .pth, .pt, .th, .bin, .h5 or .keras file; or
      'hf://OWNER/REPO' or 'torchvision://...', which are downloaded and kept (see `weights.locate`).
    name: of the network in another library's file. '' for what the source or the file's keys say.
    num_classes: for a check; None for the file's own.
    dtype: of the model's computation.
    say: takes the lines of a download's progress.
    **options: of `create_model` for another library's network, such as `flavour='tf'`, in addition to
      those that the source or the keys say.

  Raises:
    FileNotFoundError: there is nothing there.
    ValueError: the file cannot be read, or is not of this network; see `load_pretrained`.
  """
  return load_located(locate(source, say), name, num_classes=num_classes, dtype=dtype, **options)


def load_located(
    located: Located, name: str = "", *, num_classes: int | None = None, dtype: Any = None, **options: Any
) -> Loaded:
  """`load` of what `locate` has found."""
  path = weight_file(located)
  of = _load_own if is_native(path) else _load_foreign
  return of(located, path, name, num_classes, dtype, options)


def weight_file(located: Located) -> str:
  """The file; of a run's workdir the one in it. FileNotFoundError if there is none."""
  return find_weights(located.path) if os.path.isdir(located.path) else located.path


def load_as(
    located: Located, name: str, options: Mapping[str, Any], *, num_classes: int, channels: int,
    dtype: Any = None,
) -> Loaded:
  """Another library's file as exactly this network: nothing is guessed.

  Args:
    located: where the file comes from.
    name, options, num_classes, dtype: of `create_model`.
    channels: of the images.

  Raises:
    FileNotFoundError, ValueError: as `load_pretrained`.
  """
  path = weight_file(located)
  tensors, layout = read_known(path)
  return _fill(located, path, tensors, layout, name, options, num_classes, channels, dtype)


def check_fit(
    variables: Mapping[str, Any], template: Mapping[str, Any], path: str, name: str
) -> None:
  """Raises ValueError where a tree of arrays has not the leaves and shapes of another, naming them."""
  have, want = ({"/".join(k): tuple(v.shape) for k, v in layouts.flatten(tree).items()}
                for tree in (variables, template))
  off = sorted(k for k in have.keys() | want.keys() if have.get(k) != want.get(k))
  if off:
    shown = "\n  ".join(f"{k}: {have.get(k, 'absent')} in the file, {want.get(k, 'absent')} in the network"
                        for k in off[:_SHOWN])
    more = f"\n  ... and {len(off) - _SHOWN} more" if len(off) > _SHOWN else ""
    raise ValueError(f"{path} does not fit {name}, {len(off)} of {len(want)} leaves:\n  {shown}{more}")


def _load_own(
    located: Located, path: str, name: str, num_classes: int | None, dtype: Any, options: dict[str, Any]
) -> Loaded:
  return load_read(located, path, *load_native(path), name, num_classes, dtype, options)


def load_read(
    located: Located, path: str, variables: Mapping[str, Any], about: Mapping[str, Any], name: str,
    num_classes: int | None, dtype: Any, options: Mapping[str, Any],
) -> Loaded:
  """`load` of a file of ours of which `load_native` has read the variables and the description."""
  if is_detector(about):
    raise ValueError(f"{path} holds a detector ({about['model']}); bionets_jax.detection.load loads it")
  if options:
    raise ValueError(f"{', '.join(options)}: {path} was written by a run and says itself what its network is")
  if name and name != about["model"]:
    raise ValueError(f"{path} holds {about['model']!r}, not {name!r}")
  if num_classes is not None and num_classes != about["num_classes"]:
    raise ValueError(f"{path} has {about['num_classes']} classes, not {num_classes}")

  def create(*args, **options):
    return of_few_blocks(create_model(*args, dtype=dtype, **options), variables)

  model, preprocessing = build_own(path, variables, about, create)
  return Loaded(
      model, about["model"], about["options"], about["num_classes"], variables, preprocessing, LAYOUT,
      located.source, path, tuple(about["class_names"]), tuple(about["image_shape"]), {},
      about.get("eval_transform"))


def build_own(
    path: str, variables: Mapping[str, Any], about: Mapping[str, Any], create: Callable[..., nn.Module]
) -> tuple[nn.Module, Preprocessing]:
  """The network that a file of ours is of, and its input.

  Args:
    path: of the file, for messages.
    variables, about: what `load_native` has read there.
    create: called with the network's name, num_classes= and its options; sees to `of_few_blocks`.

  Raises:
    ValueError: there is no such network, or the variables are not its own.
  """
  try:
    model = create(about["model"], num_classes=about["num_classes"], **about["options"])
    preprocessing = Preprocessing(**about["preprocessing"])
    template = abstract_variables(model, tuple(about["image_shape"]))
  except Exception as error:  # Flax and JAX have errors of their own for sizes that cannot be
    what = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    raise ValueError(f"{path}: its description is not of a network that this version knows: "
                     f"{what}{str(error)[:500]}") from error
  check_fit(variables, template, path, about["model"])
  for key, value in layouts.flatten(variables).items():
    if "float" not in value.dtype.name:
      raise ValueError(f"{path}: {'/'.join(key)} has dtype {value.dtype.name}; expected floating point")
    if not np.isfinite(value).all():
      raise ValueError(f"{path}: {'/'.join(key)} holds NaN or infinite values")
  return model, preprocessing


def of_few_blocks(backbone: nn.Module, variables: Mapping[str, Any]) -> nn.Module:
  """The backbone; ValueError if it has more blocks than there are arrays: to build them would take for ever."""
  stages = getattr(backbone, "stage_sizes", None)
  if stages is None:
    stages = [math.ceil(backbone.depth * stage[1]) for stage in backbone.stages]
  if (blocks := sum(stages)) > (arrays := len(layouts.flatten(variables))):
    raise ValueError(f"{blocks} blocks, and the file has {arrays} arrays")
  return backbone


def _load_foreign(
    located: Located, path: str, name: str, num_classes: int | None, dtype: Any, options: dict[str, Any]
) -> Loaded:
  tensors, layout = read_known(path)
  known = located.name, dict(located.options)
  if not located.name:
    known = guess_network(tensors) or ("", {})
  if not name and not known[0]:
    raise ValueError(
        f"{path} ({layout.name} layout): its keys and shapes do not say which network it is; give its name, one "
        "of bionets_jax.list_models(), and options that are not the defaults")
  if not name or name == known[0]:
    name, options = known[0], known[1] | options
  options = _flavour(layout, name, options)
  channels, classes = _first_and_last(layout, tensors)
  if num_classes is not None:
    classes = num_classes
  return _fill(located, path, tensors, layout, name, options, classes, channels, dtype)


def _fill(
    located: Located, path: str, tensors: Mapping[str, np.ndarray], layout: Layout, name: str,
    options: Mapping[str, Any], num_classes: int, channels: int, dtype: Any
) -> Loaded:
  try:
    model = create_model(name, num_classes, dtype=dtype, **options)
    template = abstract_variables(model, (224, 224, channels))
  except ValueError as error:
    raise ValueError(f"{path} ({layout.name} layout): {error}") from error
  except TypeError as error:
    raise ValueError(f"{path} ({layout.name} layout): an option of the wrong type, among "
                     f"{dict(options) | {'num_classes': num_classes, 'dtype': dtype}}: {error}") from error
  pretrained = fill(template, tensors, layout, path, model=model, model_name=name)
  # What the source publishes of one network is more than what its family has in common.
  preprocessing = located.preprocessing or pretrained.preprocessing
  if len(preprocessing.mean) not in (1, channels):
    raise ValueError(
        f"{path} ({layout.name} layout): a network for images of {channels} channels; how these are normalised "
        "nobody publishes. weights.load_pretrained reads the variables, to be used with your own preprocessing")
  side = preprocessing.image_size
  return Loaded(
      model, name, dict(options), num_classes, pretrained.variables, preprocessing, pretrained.layout,
      located.source, path, (), (side, side, channels), pretrained.extras)


def _flavour(layout: Layout, name: str, options: dict[str, Any]) -> dict[str, Any]:
  """The options, with flavour and epsilon where the layout leaves no choice."""
  if not layout.flavours:
    return options
  if "flavour" not in options and (len(layout.flavours) == 1 or layout.own_flavour):
    options = options | {"flavour": layout.own_flavour or next(iter(layout.flavours))}
  flavour = layout.flavours.get(options.get("flavour", ""))
  if flavour is None:
    return options  # load_pretrained says which there are
  epsilon = flavour.other_epsilons.get(name, flavour.epsilon)
  return options if _epsilon(name, options) == epsilon else {"norm_epsilon": epsilon} | options


def _epsilon(name: str, options: dict[str, Any]) -> float | None:
  try:
    return create_model(name, **options).norm_options()[0]
  except (ValueError, TypeError, AttributeError):  # of other networks, or options that are none: said later
    return None


def _first_and_last(layout: Layout, tensors: Mapping[str, np.ndarray]) -> tuple[int, int]:
  """Channels of the images and number of classes, 0 without a head."""
  sizes = []
  for leaf, axis, default in (("stem_conv", -2, 3), ("head", -1, 0)):
    slot = layouts.slot(layout, ("params", leaf, "kernel"))
    array = tensors.get(slot.key) if slot else None
    ours = slot.from_foreign(array) if array is not None else None
    sizes.append(int(ours.shape[axis]) if ours is not None and ours.ndim >= 2 else default)
  return sizes[0], sizes[1]
