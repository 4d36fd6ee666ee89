"""A network with its weights as one StableHLO file, which runs with jax alone.

    import jax.export
    network = jax.export.deserialize(open('resnet50.stablehlo', 'rb').read())
    logits = network.call(images)  # uint8 (N, 224, 224, 3), 0..255, any N

The reader needs jax and the package flatbuffers, not this one; `jax.jit(network.call)` compiles once for each
batch size. jax promises to read such a file for six months: the releases of that half year do (0.12 reads
0.10.2's), later ones refuse it unless told otherwise (`jax_export_deserialize_expired_versions`), and older
ones may fail (0.10.2 does not read 0.12's). So keep the weights, and export them again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export

from bionets_jax.counting import eval_mode
from bionets_jax.weights.execution import call_order
from bionets_jax.weights.preprocessing import Preprocessing, normalize
from bionets_jax.weights.whole import write_whole

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
INPUTS = ("uint8", "float32")


def export_stablehlo(
    path: str | os.PathLike,
    model: nn.Module,
    variables: Mapping[str, Any],
    preprocessing: Preprocessing,
    image_shape: Sequence[int],
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    inputs: str = "uint8",
    about: Mapping[str, Any] | None = None,
) -> None:
  """Writes the inference of a network: pixels in, logits out. Whole or not at all.

  The function in the file takes images (N, H, W, C) of 0..255, any N >= 1, normalises them as the network
  expects, and returns its logits (N, K) in float32. Resizing and cropping are left to the caller. The
  weights are constants in it.

  Args:
    path: of the file; an existing one is replaced.
    model: maps normalised images to logits; computes in its own dtype. In evaluation mode.
    variables: of the model, all collections.
    preprocessing: its mean and std, of one channel or of all.
    image_shape: (H, W, C) of the images.
    platforms: where it shall run, of `PLATFORMS`.
    inputs: dtype of the images: 'uint8', as decoders give them, or 'float32', still 0..255, for images that
      were resized in floating point.
    about: JSON-serialisable, what the file itself does not tell (class names, how to resize); written beside
      it as `path` + '.json', with what the function takes. None for no such file.

  Raises:
    ImportError: the package flatbuffers is missing.
    ValueError: a platform or dtype that is none, a shape or normalisation that does not fit, or variables
      that are not those of the model.
  """
  shape = tuple(image_shape)
  _check(shape, preprocessing, tuple(platforms), inputs)
  try:
    call_order(model, variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
  except flax.errors.FlaxError as error:
    raise ValueError(f"the variables are not those of this {type(model).__name__}: {error}") from error
  contents = {}
  if about is not None:
    call = {"inputs": {"dtype": inputs, "shape": ["N", *shape], "range": [0, 255]}, "jax": jax.__version__,
            "platforms": list(platforms)}
    contents[f"{os.fspath(path)}.json"] = json.dumps({**about, **call}, indent=2).encode()
  variables = jax.tree.map(jnp.asarray, dict(variables))
  options = eval_mode(model)

  def logits(images):
    x = normalize(images, preprocessing.mean, preprocessing.std)
    found: Any = model.apply(variables, x, **options)
    return found.astype(jnp.float32)

  (batch,) = export.symbolic_shape("b")
  exported = export.export(jax.jit(logits), platforms=tuple(platforms))(
      jax.ShapeDtypeStruct((batch, *shape), inputs))
  contents[os.fspath(path)] = bytes(exported.serialize())
  write_whole(contents)


def _check(
    shape: tuple[int, ...], preprocessing: Preprocessing, platforms: tuple[str, ...], inputs: str
) -> None:
  if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
    raise ValueError(f"image_shape={shape}: give (H, W, C) in pixels")
  for name in ("mean", "std"):
    values = getattr(preprocessing, name)
    if len(values) not in (1, shape[-1]):
      raise ValueError(f"{name}={values} has {len(values)} numbers for images of {shape[-1]} channels")
  if unknown := [name for name in platforms if name not in PLATFORMS]:
    raise ValueError(f"platforms: {unknown[0]!r} is none of {', '.join(PLATFORMS)}")
  if not platforms or len(set(platforms)) != len(platforms):
    raise ValueError(f"platforms={platforms}: give one at least, each once")
  if inputs not in INPUTS:
    raise ValueError(f"inputs={inputs!r}: give one of {', '.join(INPUTS)}")
