"""Reads the weights that Keras saved, without Keras and without running what a file asks for.

Keras 2 and Keras 3 write three kinds of file:

  .h5           a group for each layer, by its name, as Keras has done since its beginnings; the same inside
                a file of a whole model, beside the description of its layers and the optimizer
  .weights.h5   a group for each layer, by its class and number: layers/conv2d_3/vars/0. Newer Keras 3 writes
                the layer's name beside it; before, nothing but their order tells them apart
  .keras        a zip archive of model.weights.h5, as above, and config.json, which has the names

Such a file may also hold pickled Python (a Lambda layer's); that is in the descriptions, of which nothing
but the names of the layers is looked at.
"""

import json
import os
import re
import zipfile

import numpy as np

from bionets_jax.weights.hdf5 import Hdf5Error, Hdf5File
from bionets_jax.weights.keras_names import (
  VARIABLES,
  efficientnet_layers,
  name_layers,
  repeats_of,
  split_number,
  to_snake_case,
)

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ARCHIVE_MEMBERS = ("config.json", "model.weights.h5")
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # the latter of Keras 2.13 and before
# What lies beside the layers: the state of training. Random seeds are state of dropout layers.
_STATE = re.compile(r"_?(optimizer|metrics|compile_metrics|compiled_metrics|compiled_loss|loss_tracker|loss)")
_SEEDS = "seed_generator"
_MAX_CONFIG = 1 << 26


class KerasFileError(ValueError):
  """The file is not one of Keras' weights that can be read safely; the message says why."""


def read_keras_file(path):
  """Reads the weights of a Keras model.

  Args:
    path: a .h5, .hdf5, .weights.h5 or .keras file of Keras 2 or 3: weights or a whole model. The state of
      an optimizer, of metrics and of random numbers is left out.

  Returns:
    {'stem_conv/kernel': array}, by names of layer and variable, whatever the kind of file, with the shapes
    and dtypes of the file. The kernel of a depthwise convolution is 'kernel', which Keras 2 calls
    'depthwise_kernel'; the only layer 'normalization_3', which Keras numbers because nobody named it, is
    'normalization'. Where a file has no names, the layers of an EfficientNet are named nonetheless, see
    `name_layers`, and others by class and number: 'conv2d_3/kernel'.

  Raises:
    FileNotFoundError: there is no such file.
    KerasFileError: it is damaged, has no weights of Keras, refers to other files, or declares more than it
      holds.
  """
  path = os.fspath(path)
  with open(path, "rb") as file:
    head = file.read(len(HDF5_MAGIC))
  try:
    if head[:2] == b"PK":
      source, config = _open_archive(path)
    else:
      source, config = path, None
    with Hdf5File(source) as file:
      tensors = _read(file, config)
    return _plain_names(tensors)
  except (KerasFileError, Hdf5Error) as error:
    raise KerasFileError(f"{path}: {error}") from None
  except Exception as error:
    # h5py raises OSError, RuntimeError, KeyError, TypeError... on a damaged file.
    raise KerasFileError(
        f"{path}: damaged, cut short, or no file of Keras ({type(error).__name__}: {error})") from error


def write_keras_weights(path, tensors):
  """Writes a weights file that `load_weights` of Keras 2 and of Keras 3 reads. Whole or not at all.

  Args:
    path: of the file, which must end in .h5: Keras goes by that.
    tensors: all of an EfficientNet, under the names that `read_keras_file` gives, those of the
      normalisation of its input included. Keras writes no other weights; it takes these in their order.

  Raises:
    ValueError: another suffix, or not the tensors of an EfficientNet.
  """
  import h5py

  path = os.fspath(path)
  if not path.endswith(".h5") or path.endswith(".weights.h5"):
    raise ValueError(f"{path}: name it *.h5 and not *.weights.h5, which Keras takes for another format")
  layers = _layers_of(tensors)
  temporary = f"{path}.tmp"
  try:
    with h5py.File(temporary, "w") as file:
      file.attrs["layer_names"] = np.array([name.encode() for name in layers])
      # Without these Keras 2 takes the file for one of Keras 1, and turns kernels around.
      file.attrs["keras_version"] = np.bytes_(b"2.15.0")
      file.attrs["backend"] = np.bytes_(b"tensorflow")
      for layer, (kind, variables) in layers.items():
        group = file.create_group(layer)
        theirs = {f"{layer}/{'depthwise_' * (kind == 'depthwise_conv2d')}{variable}:0": f"{layer}/{variable}"
                  for variable in variables}
        group.attrs["weight_names"] = np.array([key.encode() for key in theirs])
        for key, ours in theirs.items():
          group.create_dataset(key, data=np.asarray(tensors[ours]))
    os.replace(temporary, path)
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)


def _layers_of(tensors):
  """`efficientnet_layers` of the tensors; ValueError if they are not its variables."""
  blocks = {match[0] for key in tensors if (match := re.match(r"block[1-7][a-z](?=_dwconv/)", key))}
  repeats = repeats_of(len(blocks))
  layers = efficientnet_layers(repeats or (), head="predictions/kernel" in tensors)
  wanted = {f"{layer}/{variable}" for layer, (_, variables) in layers.items() for variable in variables}
  for what, keys in (("lacks", wanted - tensors.keys()), ("has besides", tensors.keys() - wanted)):
    if keys:
      raise ValueError(f"not the tensors of an EfficientNet of keras.applications: it {what} {len(keys)}, "
                       f"such as {', '.join(sorted(keys)[:6])}")
  return layers


# --- the three kinds of file ----------------------------------------------------------------------------


def _open_archive(path):
  """(bytes of the weights, parsed config.json) of a .keras file."""
  size = os.path.getsize(path)
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    if "model.weights.npz" in names:
      raise KerasFileError("saved with weights_format='npz', which are pickles; save it with Keras' default")
    for name in ARCHIVE_MEMBERS:
      if names.count(name) != 1:
        raise KerasFileError(f"a zip archive with {names.count(name)} members {name}; Keras writes one")
      info = archive.getinfo(name)
      # Keras never compresses; a member that unpacks to more than the file's size is a trap.
      if info.compress_type != zipfile.ZIP_STORED:
        raise KerasFileError(f"member {name} is compressed, which Keras never does")
      if info.file_size > (size if name.endswith(".h5") else min(size, _MAX_CONFIG)):
        raise KerasFileError(f"member {name} claims {info.file_size} bytes")
    config, weights = (archive.read(name) for name in ARCHIVE_MEMBERS)
  return weights, json.loads(config)


def _read(file, config):
  root = file.root
  if file.has(root, "model_weights"):
    root = file.group(root, "model_weights")
  if (layers := _listed(file, root, "layer_names")) is not None:
    return _read_by_name(file, root, layers)
  if not any(file.has(root, name) for name in _CONTAINERS):
    raise KerasFileError(f"an HDF5 file, but not of a Keras model's weights; it holds {file.names(root)[:6]}")
  tensors: dict[str, np.ndarray] = {}
  nameless: list = []
  for name in file.names(root):
    if name == "vars":
      _read_variables(file, file.enter(root, name), "vars", "", tensors)
    elif name in _CONTAINERS:
      _read_layers(file, file.enter(root, name), "", config, tensors, nameless)
    elif not _STATE.fullmatch(name):
      _read_layer(file, file.enter(root, name), name, name, None, tensors, nameless)
  return name_layers(tensors) if nameless else tensors


def _listed(file, group, name):
  """The names in an attribute, or in name0, name1, ...: an attribute holds 64 KiB only. None without any."""
  found = file.strings(group, name)
  if found is not None or f"{name}0" not in group.attrs:
    return found
  found = []
  while (part := file.strings(group, f"{name}{len(found)}")) is not None:
    found.append(part)
  return [one for part in found for one in part]


def _read_by_name(file, root, layers):
  if "top_level_model_weights" not in layers and file.has(root, "top_level_model_weights"):
    layers = [*layers, "top_level_model_weights"]
  tensors: dict[str, np.ndarray] = {}
  for layer in layers:
    group = file.group(root, layer)
    weights = _listed(file, group, "weight_names") or []
    for weight, variable in zip(weights, _variables(layer, weights), strict=True):
      _add(tensors, f"{layer}/{variable}", file.array(group, weight))
  return tensors


def _variables(layer, weights):
  """'kernel' for 'model/conv/kernel:0' in the layer 'conv'; whole names where one layer is a whole model."""
  paths = [re.sub(r":\d+$", "", weight).split("/") for weight in weights]
  if all(layer in path[:-1] for path in paths):
    paths = [path[len(path) - path[::-1].index(layer):] for path in paths]
  else:  # Keras 2 may have numbered the scope, not the layer
    while paths and min(map(len, paths)) > 1 and len({path[0] for path in paths}) == 1:
      paths = [path[1:] for path in paths]
  names = ["/".join(path) for path in paths]
  kernels = [name for name in names if name.endswith("kernel")]
  return ["kernel" if kernels == [name] == ["depthwise_kernel"] else name for name in names]


def _read_layers(file, group, prefix, config, tensors, nameless):
  """Adds the layers in a group of v3: conv2d, conv2d_1, ... with their names, if the file has them."""
  described = _described(config)
  classes: dict = {}
  for key in file.names(group):
    kind, number = split_number(key)
    classes.setdefault(kind, []).append((number, key))
  for kind, members in classes.items():
    known = described.get(kind, [])
    # The order counts and not the number: Keras 2.13 counts layers twice.
    for i, (_, key) in enumerate(sorted(members)):
      layer = file.enter(group, key)
      vars_ = file.group(layer, "vars") if file.has(layer, "vars") else None
      name = (file.strings(vars_, "name") or [None])[0] if vars_ is not None else None
      inner = None
      if len(known) == len(members):
        name, inner = name or known[i][0], known[i][1]
      if name is None:
        name = f"{kind}_{i}" if i else kind
        if vars_ is not None and file.names(vars_):
          nameless.append(name)
      _read_layer(file, layer, f"{prefix}{name}", kind, inner, tensors, nameless)


def _read_layer(file, group, name, kind, config, tensors, nameless):
  """Adds the variables of one layer, and of those inside it."""
  for key in file.names(group):
    if key == "vars":
      _read_variables(file, file.enter(group, key), name, kind, tensors)
    elif key in _CONTAINERS:
      _read_layers(file, file.enter(group, key), f"{name}/", config, tensors, nameless)
    elif key != _SEEDS:
      inner, _ = split_number(key)
      _read_layer(file, file.enter(group, key), f"{name}/{key}", inner, None, tensors, nameless)


def _read_variables(file, group, name, kind, tensors):
  """Adds what is numbered in a group, by names where its class says them."""
  numbers = sorted(file.names(group), key=lambda number: (len(number), number))
  known = VARIABLES.get(kind, ())
  if kind in ("batch_normalization", "normalization") and len(numbers) != len(known):
    known = ()  # one without gamma, say; which, nobody can tell
  for i, number in enumerate(numbers):
    variable = known[i] if number == str(i) and i < len(known) else number
    _add(tensors, f"{name}/{variable}", file.array(group, number))


# --- names ----------------------------------------------------------------------------------------------


def _described(config):
  """{class: [(name, config)]} of the layers in the description of a model, in its order; {} without one."""
  found: dict = {}
  inner = config.get("config") if isinstance(config, dict) else None
  layers = inner.get("layers") if isinstance(inner, dict) else None
  for layer in layers if isinstance(layers, list) else ():
    about = layer.get("config") if isinstance(layer, dict) else None
    name = about.get("name") if isinstance(about, dict) else None
    if not isinstance(name, str) or not isinstance(layer.get("class_name"), str):
      return {}
    found.setdefault(to_snake_case(layer["class_name"].split(">")[-1]), []).append((name, layer))
  return found


def _add(tensors, key, array):
  if key in tensors:
    raise KerasFileError(f"it has two tensors {key}")
  tensors[key] = array


def _plain_names(tensors):
  """Takes off the number that Keras gave the one layer that EfficientNet leaves unnamed."""
  if not tensors:
    raise KerasFileError("it holds no weights")
  normalizations = {layer for key in tensors if (layer := key.rpartition("/")[0]).startswith("normalization")}
  if len(normalizations) != 1 or not re.fullmatch(r"normalization_\d+", (layer := normalizations.pop())):
    return tensors
  return {key.replace(layer, "normalization", 1) if key.startswith(f"{layer}/") else key: array
          for key, array in tensors.items()}
