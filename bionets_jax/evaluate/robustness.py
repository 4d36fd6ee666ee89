"""Errors on disturbed images, and how many predictions the disturbance changes."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bionets_jax.evaluate.corruptions import ON_HOST
from bionets_jax.training.evaluation import IN_FLIGHT
from bionets_jax.training.state import Batch, Metrics, Tree
from bionets_jax.training.tasks import Classification
from bionets_jax.weights.preprocessing import normalize


class Kind(NamedTuple):
  """A way to disturb images.

  Attributes:
    axis: what its level is, with its unit.
    levels: those of `--robustness`.
    low, high: levels may be above `low` and up to `high`.
    whole: whether they are whole numbers.
  """

  axis: str
  levels: tuple[float, ...]
  low: float
  high: float
  whole: bool = False


KINDS: Mapping[str, Kind] = {
    "jpeg": Kind("JPEG quality", tuple(range(100, 0, -10)), 0, 100, whole=True),
    "blur": Kind("Gaussian blur, sigma (pixels)", (0.5, 1.0, 1.5, 2.0, 3.0), 0, 100),
    "noise": Kind("Gaussian noise, deviation (of 255)", (5, 10, 20, 40, 80), 0, 255),
    "fgsm": Kind("FGSM, epsilon (of 255)", (1, 2, 4, 8, 16), 0, 255),
}


def check_levels(kind: str, levels: Sequence[float]) -> None:
  """Raises ValueError for a level out of its range, or given twice."""
  limits = KINDS[kind]
  for level in levels:
    if not limits.low < level <= limits.high or (limits.whole and level != int(level)):
      numbers = "whole numbers" if limits.whole else "numbers"
      raise ValueError(f"--{kind}: {level:g} is no level of it; give {numbers} above {limits.low:g} and up "
                       f"to {limits.high:g}")
  if len(set(levels)) < len(levels):
    raise ValueError(f"--{kind}: a level is given twice")


def fgsm_direction(task: Classification, params: Tree, model_state: Tree, batch: Batch) -> jax.Array:
  """The sign of the gradient of the cross-entropy with the true labels, by the pixels.

  Goodfellow et al. 2015, arXiv 1412.6572, Eq. of section 4: one step of epsilon times this is the fast
  gradient sign method. The network is in eval mode.

  Args:
    task, params, model_state: the network.
    batch: image (N, H, W, C) of 0..255, label (N,).

  Returns:
    float32 (N, H, W, C) of -1, 0 and 1.
  """
  def loss(images):
    return task.evaluate(params, model_state, batch | {"image": images})["loss"].sum()
  return jnp.sign(jax.grad(loss)(batch["image"].astype(jnp.float32)))


def fgsm(images: jax.Array, direction: jax.Array, epsilon: float) -> jax.Array:
  """One step from the images within 0..255, as float32; epsilon in units of the 256 levels."""
  return jnp.clip(images.astype(jnp.float32) + epsilon * direction, 0, 255)


class RobustnessStep:
  """(params, model_state, [batch]) -> sums over the batch, for `training.evaluation.evaluate`.

  The batch has `index`, int32 (B,), the number of each example, -1 for none. The sums are named 'top1_error'
  and 'loss' for the images as they are, and 'KIND LEVEL top1_error', '... loss' and '... changed' (100 where
  the predicted class is another than that of the image as it is) for the disturbed ones.

  It is no jitted function: JPEG and the other disturbances of the host lie between one program and the next,
  and they all share the two programs that there are.
  """

  def __init__(self, task: Classification, levels: Mapping[str, Sequence[float]], seed: int):
    """
    Args:
      task: the network.
      levels: kind -> levels.
      seed: of the noise.
    """
    self._levels = levels
    self._seed = seed
    self._measure = jax.jit(_measure_with(task))
    self._direction = jax.jit(lambda *args: fgsm_direction(task, *args))
    self._predict = jax.jit(lambda params, model_state, images: task.model.apply(
        {"params": params, **model_state}, normalize(images, task.mean, task.std), train=False).argmax(-1))

  def __call__(self, params: Tree, model_state: Tree, batches: Sequence[Batch]) -> dict[str, Any]:
    (batch,) = batches
    batch = {**batch, "image": batch["image"].astype(jnp.float32)}
    batch["clean"] = self._predict(params, model_state, batch["image"])
    host = np.asarray(batch["image"]).astype(np.uint8)
    indices = np.asarray(batch.pop("index"))
    sums = {"count": batch["mask"].sum()}
    waiting = collections.deque()

    def measure(name: str, images: jax.Array):
      # More programs in flight would hold their images, and on virtual CPU devices may deadlock.
      waiting.append(self._measure(params, model_state, {**batch, "image": images}))
      sums.update({f"{name}{key}": value for key, value in waiting[-1].items()})
      if len(waiting) > IN_FLIGHT:
        jax.block_until_ready(waiting.popleft())

    measure("", batch["image"])
    del sums["changed"]
    for kind, levels in self._levels.items():
      if kind == "fgsm":
        direction = self._direction(params, model_state, batch)
      for level in levels:
        if kind == "fgsm":
          images = fgsm(batch["image"], direction, level)
        else:
          disturbed = ON_HOST[kind](host, level, indices, self._seed)
          images = jax.device_put(disturbed.astype(np.float32), batch["image"].sharding)
        measure(f"{kind} {level:g} ", images)
    jax.block_until_ready(list(waiting))
    return sums


def _measure_with(task: Classification) -> Callable[[Tree, Tree, Batch], Metrics]:
  def measure(params, model_state, batch):
    labels = jnp.stack([batch["label"], batch["clean"].astype(batch["label"].dtype)])
    # Mapped over labels alone: the network runs once.
    each = jax.vmap(lambda label: task.evaluate(params, model_state, batch | {"label": label}))(labels)
    values = {"top1_error": each["top1_error"][0], "loss": each["loss"][0], "changed": each["top1_error"][1]}
    return {name: jnp.where(batch["mask"] > 0, v, 0.0).sum() for name, v in values.items()}
  return measure


def by_kind(values: Mapping[str, float], levels: Mapping[str, Sequence[float]]) -> dict[str, Any]:
  """{'clean': {...}, 'jpeg': [{'level', 'top1_error', 'loss', 'changed'}, ...], ...} of the step's means."""
  out: dict[str, Any] = {"clean": {key: values[key] for key in ("top1_error", "loss", "bad_records") if key in values}}
  metrics = ("top1_error", "changed", "loss")
  for kind, given in levels.items():
    out[kind] = [{"level": level, **{key: values[f"{kind} {level:g} {key}"] for key in metrics}}
                 for level in given]
  return out


def as_text(results: Mapping[str, Any]) -> str:
  """An aligned table."""
  lines = [("", "level", "error %", "changed %", "loss")]
  clean = results["clean"]
  lines.append(("clean", "", f"{clean['top1_error']:.2f}", "", f"{clean['loss']:.4f}"))
  for kind in KINDS:
    lines += [(kind, f"{row['level']:g}", f"{row['top1_error']:.2f}", f"{row['changed']:.2f}",
               f"{row['loss']:.4f}") for row in results.get(kind, ())]
  widths = [max(len(line[i]) for line in lines) for i in range(5)]
  text = ["  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w)
                    in enumerate(zip(line, widths, strict=True))).rstrip() for line in lines]
  text.insert(1, "-" * len(text[0]))
  return "\n".join(text)
