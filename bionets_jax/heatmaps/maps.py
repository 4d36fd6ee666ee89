"""CAM and Grad-CAM of any Linen network."""

import abc
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bionets_jax.heatmaps.inside import Inside, shape_of
from bionets_jax.ops import compiler_options

_KEPT = 16  # programs
_INSTEAD = "CAM is for networks that end in a global average pool and one nn.Dense; grad_cam takes any"


class Maps(NamedTuple):
  """One heatmap an image.

  Attributes:
    values: float32 (N, h, w), >= 0, not normalised; h and w are the layer's.
    classes: int32 (N,), the class that each map is of.
    logits: float32 (N, K).
    layer: whose maps were weighted.
  """

  values: np.ndarray
  classes: np.ndarray
  logits: np.ndarray
  layer: str


def grad_cam(
    model: nn.Module, variables: Mapping[str, Any], images: np.ndarray | jax.Array, *, layer: str | None = None,
    classes: int | Sequence[int] | np.ndarray | None = None,
) -> Maps:
  """Gradient-weighted class activation maps of a network in evaluation mode.

      a_k = mean over the pixels of d s_c / d A_k,      M = relu(sum_k a_k A_k)

  with A the layer's maps and s_c the logit of class c. The gradient is that of the sum over the batch: in
  evaluation mode no image acts on another's logits, so that is each image's own.

  Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
  ICCV 2017, equations 1 and 2; IC networks' Figure 3.

  Args:
    model: any Linen module that maps images to logits (N, K).
    variables: of the model.
    images: (N, H, W, C), float, normalised as the network takes them.
    layer: an endpoint ('stage3') or the path of a module ('stage4_block0/conv1'), see `layers`. None for the last
      endpoint of more than one pixel, the output of the last stage; in a network without endpoints for the last
      such map on the way to the logits.
    classes: of each image, or one for all; None for the predicted ones.

  Raises:
    ValueError: images, variables or classes that do not fit; a layer that is not there (with the nearest names),
      gives no maps (N, h, w, channels), is called several times, or on which the logits do not depend.
  """
  wanted = _classes(images, classes)
  program = _program(_Same(model), _GradCam, layer, images.shape)
  return _maps(program(variables, images, wanted), wanted, program.layer)


def cam(
    model: nn.Module, variables: Mapping[str, Any], images: np.ndarray | jax.Array, *,
    classes: int | Sequence[int] | np.ndarray | None = None,
) -> Maps:
  """Class activation maps of a network that ends in a global average pool and one dense layer.

      M = relu(sum_k w[k, c] A_k)

  with A the input of the pool and w the dense layer's kernel; its bias is left out. The mean of the sum plus the
  bias is the logit of class c, which is checked. At this layer Grad-CAM is the same map divided by h w.

  Source: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016; with the relu as in
  the authors' code of kEffNet ("Grouped Pointwise Convolutions Significantly Reduces Parameters in EfficientNet",
  Figures 2 and 3).

  Args:
    model, variables, images, classes: as `grad_cam`.

  Raises:
    ValueError: as `grad_cam`; and for a network that ends in another way, or whose last maps are single pixels.
  """
  wanted = _classes(images, classes)
  program = _program(_Same(model), _Cam, None, images.shape)
  *found, error, size = program(variables, images, wanted)
  if not np.all(error <= program.rounding * size):
    raise ValueError(
        f"{type(model).__name__}: the mean of the maps {program.layer!r} times the last dense layer's kernel is off "
        f"its logits by {np.max(error):.3g}, so there is no global average pool between them; {_INSTEAD}")
  return _maps(found, wanted, program.layer)


def layers(
    model: nn.Module, variables: Mapping[str, Any], image_shape: Sequence[int]
) -> dict[str, tuple[int, ...]]:
  """The layers that `grad_cam` can take, endpoints first: name -> (h, w, channels). Nothing is computed.

  Args:
    model, variables: as `grad_cam`.
    image_shape: (H, W, C).

  Raises:
    ValueError: if they do not fit.
  """
  shapes = jax.eval_shape(lambda x: x, dict(variables))
  return Inside(model, shapes, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)).shapes()


class _Same:
  """A module by its identity: the options of one need not be hashable."""

  def __init__(self, model: nn.Module):
    self.model = model

  def __eq__(self, other):
    return self.model is other.model

  def __hash__(self):
    return id(self.model)


class _Program(abc.ABC):
  """Of images of one shape. `layer` is the name of the maps, known after a call."""

  def __init__(self, model: nn.Module, layer: str | None):
    self._model, self._wanted = model, layer
    self.layer = ""
    self._jitted = jax.jit(self._compute, compiler_options=compiler_options())

  def __call__(self, variables, images, classes):
    return self._jitted(dict(variables), jnp.asarray(images), classes)

  @abc.abstractmethod
  def _compute(self, variables, images, classes):
    """What is compiled; sets `layer`."""


class _GradCam(_Program):

  def _compute(self, variables, images, classes):
    inside = Inside(self._model, variables, images)
    self.layer, var = inside.find(self._wanted)
    before, after = inside.split(var)
    maps, others = before(variables, images)

    def score(maps):
      logits = after(maps, others)
      chosen = _choose(logits, classes)
      return jnp.take_along_axis(logits, chosen[:, None], 1).sum(), (chosen, logits)

    gradient, (chosen, logits) = jax.grad(score, has_aux=True)(maps)
    weights = _precise(gradient).mean((1, 2), keepdims=True)
    return _map(weights, maps), chosen, logits


class _Cam(_Program):
  """`rounding`, known after a call: the relative error of a logit that passes for round-off."""

  def _compute(self, variables, images, classes):
    inside = Inside(self._model, variables, images)
    params, var = self._head(inside, variables)
    self.layer = inside.name(var)
    exact = jax.default_backend() == "cpu" and var.aval.dtype.itemsize >= 4  # others multiply with fewer bits
    self.rounding = 1e-4 if exact else 2e-2
    logits, maps = inside.values(variables, images, [inside.logits, var])
    chosen = _choose(logits, classes)
    kernel, bias = _precise(params["kernel"]), _precise(params.get("bias", jnp.zeros(logits.shape[1])))
    pooled = _precise(maps).mean((1, 2))
    error = jnp.abs(jnp.dot(pooled, kernel, precision="highest") + bias - logits)
    size = jnp.dot(jnp.abs(pooled), jnp.abs(kernel)) + jnp.abs(bias)
    return _map(kernel.T[chosen][:, None, None], maps), chosen, logits, error, size

  def _head(self, inside, variables):
    """The parameters of the dense layer that gives the logits, and the maps that are pooled before it."""
    kind, number = type(self._model).__name__, shape_of(inside.logits)[1]
    for path, calls in reversed(inside.dense.items()):
      params = functools.reduce(lambda tree, part: tree.get(part, {}), path.split("/"), variables["params"])
      if len(calls) == 1 and getattr(params.get("kernel"), "shape", ())[1:] == (number,):
        break
    else:
      raise ValueError(f"{kind}: no nn.Dense gives its {number} logits; {_INSTEAD}")
    features = shape_of(calls[0])[-1]
    for var in inside.maps_before(calls[0]):
      *_, h, w, channels = shape_of(var)
      if channels == features and h * w > 1:
        return params, var
    raise ValueError(f"{kind}: before its dense layer {path!r} there are no maps of {features} channels and more than "
                     f"one pixel; {_INSTEAD}")


@functools.lru_cache(maxsize=_KEPT)
def _program(same: _Same, kind: type[_Program], layer: str | None, shape: tuple[int, ...]) -> Any:
  del shape  # of the images: which layer is the last may depend on it
  return kind(same.model, layer)


def _map(weights: jax.Array, maps: jax.Array) -> jax.Array:
  return nn.relu((weights * _precise(maps)).sum(-1))


def _precise(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _choose(logits: jax.Array, classes: jax.Array) -> jax.Array:
  return jnp.where(classes < 0, logits.argmax(1), classes)


def _classes(images: Any, classes: Any) -> np.ndarray:
  """int32 (N,), -1 for the predicted class; images are checked as well."""
  if getattr(images, "ndim", 0) != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
    what = f"{images.dtype} {images.shape}" if hasattr(images, "shape") else type(images).__name__
    raise ValueError(f"images: {what}; expected floats (N, H, W, C), normalised as the network takes them")
  if classes is None:
    return np.full(len(images), -1, np.int32)
  given = np.asarray(classes)
  if not np.issubdtype(given.dtype, np.integer) or given.shape not in ((), (len(images),)) or (given < 0).any():
    raise ValueError(f"classes={classes!r:.80}: give a whole number from 0 on, or {len(images)} of them, one an image")
  return np.broadcast_to(given, len(images)).astype(np.int32)


def _maps(found: Sequence[jax.Array], wanted: np.ndarray, layer: str) -> Maps:
  values, classes, logits = (np.asarray(x) for x in found)
  if (wanted >= logits.shape[1]).any():
    raise ValueError(f"classes: there is no class {wanted.max()}; the network has {logits.shape[1]}")
  return Maps(values.astype(np.float32), classes.astype(np.int32), logits.astype(np.float32), layer)
