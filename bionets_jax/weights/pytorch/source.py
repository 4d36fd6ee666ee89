"""Writes `model.py`: a network as a PyTorch module in a file of its own."""

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from bionets_jax.weights.papers import papers_of
from bionets_jax.weights.preprocessing import Preprocessing
from bionets_jax.weights.pytorch.assemble import collect

_WIDTH = 100
_PREPROCESSING = ("mean", "std", "resize", "image_size", "interpolation")

def pytorch_source(
    name: str, options: Mapping[str, Any], num_classes: int | None, image_shape: Sequence[int],
    preprocessing: Preprocessing, class_names: Sequence[str] = (),
) -> str:
  """The text of a Python file that loads and runs a network of ours in PyTorch.

  The file needs torch and NumPy, safetensors for weights of that kind and Pillow for image files; it does
  not need this library. Its `load()` reads what `native.save_native` wrote. Logits agree with ours in
  evaluation and training but for the order of summation; the running variance of batch norms does not,
  since PyTorch's is unbiased. Computed in float32, whatever the network was trained in.

  Args:
    name: one of `list_models()`.
    options: of `create_model`, JSON values. Initialisers have no counterpart: `create()` has random weights
      to be replaced.
    num_classes: size of the logits; 0 or None for features instead.
    image_shape: (H, W, C) of the images that the network is evaluated at; the file takes others too.
    preprocessing: of the images.
    class_names: in the order of the logits; () if they are not known.

  Returns:
    The same text for the same arguments, on any Python.

  Raises:
    ValueError: for an option that `create_model` does not know or that PyTorch's network cannot have, naming
      it; for class names or an image shape that do not fit.
  """
  # Both need jax, which who only reads files should not have to wait for.
  from bionets_jax.models import create_model
  from bionets_jax.weights.pytorch.networks import FLAGS, describe

  options = _json(options)
  if options.pop("dtype", None) not in (None, "float32"):
    raise ValueError("dtype: leave it out; in PyTorch torch.autocast decides what is in half precision")
  shape = _check_shape(image_shape)
  if len(preprocessing.mean) not in (1, shape[2]):
    raise ValueError(f"preprocessing: {len(preprocessing.mean)} means for images of {shape[2]} channels")
  num_classes = num_classes or 0
  if class_names and len(class_names) != num_classes:
    raise ValueError(f"{len(class_names)} class names for {num_classes} classes")
  try:
    network = describe(create_model(name, num_classes, **options), shape[2])
  except TypeError as error:
    raise ValueError(f"{name}: an option of the wrong kind among {options}: {error}") from error

  flags = {key: default for key, (default, _) in FLAGS.items()} | dict(network.flags)
  flags |= {"GREY": shape[2] == 1, "NAMED": bool(class_names)}
  create = _create(network.layers)
  parts = collect(create, ("load", "preprocess", *(["main"] if num_classes else [])), flags)
  config = {
      "model": name, "options": options, "num_classes": num_classes, "image_shape": shape,
      "preprocessing": {key: getattr(preprocessing, key) for key in _PREPROCESSING}}
  constants = [f"{key} = {flags[key]!r}  # {meaning}"
               for key, (_, meaning) in FLAGS.items() if key in parts.names]
  layers, reading = ([text for module, text in parts.definitions if (module == "weights") == wanted]
                     for wanted in (False, True))
  head = [_docstring(name, options, num_classes), *map("\n".join, parts.imports),
          "\n".join([_literal("CONFIG", config), *constants])]
  blocks = ["\n\n".join(head), *layers, create, *reading]
  if class_names:
    blocks.append(_literal("CLASS_NAMES", list(map(str, class_names))))
  if num_classes:
    blocks.append('if __name__ == "__main__":\n  main(sys.argv[1:])')
  return "\n\n\n".join(blocks) + "\n"


def _json(options: Mapping[str, Any]) -> dict[str, Any]:
  for key, value in options.items():
    try:
      json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
      raise ValueError(
          f"{key}={value!r}: give a JSON value; the PyTorch source cannot hold other objects") from error
  return json.loads(json.dumps(dict(options)))


def _check_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
  shape = tuple(image_shape)
  if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
    raise ValueError(f"image_shape={shape}: give height, width and channels")
  return shape


def _docstring(name: str, options: Mapping[str, Any], num_classes: int) -> str:
  sources = []
  for paper in papers_of(name, options):
    where = f"arXiv:{paper.where['eprint']}" if "eprint" in paper.where else paper.where.get("journal", "")
    text = f"* {paper.title}, {paper.year}{where and f' ({where})'}"
    sources.append(textwrap.fill(re.sub("[{}]", "", text), _WIDTH, subsequent_indent="  "))
  replaced = "; model.head is what to replace for other classes" if num_classes else ""
  command = "    python model.py IMAGE...              # prints the most likely classes\n" * bool(num_classes)
  return f'''"""{name} in PyTorch, written by bionets_jax to go beside the weights.

    model = load()                        # from weights.safetensors (or .npz) beside this file
    logits = model(preprocess(images))    # uint8 (N, H, W, C), or PIL images
    model.train()                         # to go on training{replaced}
{command}
Needs torch and NumPy, safetensors for weights of that kind and Pillow for image files.

Sources:
{chr(10).join(sources)}

Code: Apache-2.0.
"""'''


def _create(layers: Mapping[str, str]) -> str:
  rows = "".join(f"\n      {name}={expression}," for name, expression in layers.items())
  return ('def create():\n  """The network, with random weights."""\n'
          f"  return nn.Sequential(OrderedDict({rows}\n  ))")


def _literal(name: str, value: Any) -> str:
  """An assignment of plain data, in lines; pprint's layout is not the same in every Python."""
  return f"{name} = {_plain(value, '')}"


def _plain(value: Any, indent: str) -> str:
  if isinstance(value, str):
    text = repr(value)
    return text if '"' in text else f'"{text[1:-1]}"'
  if not isinstance(value, Mapping | list | tuple):
    return repr(value)
  deeper = indent + "    "
  start, end = "{}" if isinstance(value, Mapping) else "[]" if isinstance(value, list) else "()"
  if isinstance(value, Mapping):
    items = [f"{_plain(key, deeper)}: {_plain(one, deeper)}" for key, one in value.items()]
  else:
    items = [_plain(one, deeper) for one in value]
  line = ", ".join(items) + ("," if start == "(" and len(items) == 1 else "")
  if len(indent + line) + 2 <= _WIDTH - 20 and "\n" not in line and indent:
    return start + line + end
  rows = items if isinstance(value, Mapping) else _fill(items, _WIDTH - len(deeper))
  return "\n".join([start, *(f"{deeper}{row}," for row in rows), indent + end])


def _fill(items: Sequence[str], width: int) -> list[str]:
  """The items in rows of at most `width`, where they fit."""
  rows: list[str] = []
  for item in items:
    if rows and len(rows[-1]) + len(item) + 3 <= width:
      rows[-1] += f", {item}"
    else:
      rows.append(item)
  return rows
