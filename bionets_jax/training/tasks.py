"""What is learned: how a batch becomes a loss. The loop knows nothing of it but this interface.

A task has a model, an initial state, `frozen` arrays that steps read but nothing trains or saves,
and pure functions from a batch to losses and logits.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bionets_jax import losses
from bionets_jax.layers.ic import SCHEDULED
from bionets_jax.training.mixing import mix
from bionets_jax.training.teacher import Teacher
from bionets_jax.weights.preprocessing import Preprocessing, normalize

Tree = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


CROP_AVERAGES = ("softmax", "logits")


def topk_correct(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
  """(N,) float32: 1 where fewer than k classes score above the label's. NaN is never correct."""
  target = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  classes = jnp.arange(logits.shape[-1])
  # Equal scores rank by class, as in argmax: a network that says the same of all classes is at chance.
  above = ~(logits <= target) | ((logits == target) & (classes < labels[:, None]))
  return (above.sum(-1) < k).astype(jnp.float32)


def mean_alpha(params: Tree) -> Metrics:
  """{'alpha': scalar}, the mean over the network's units; {} if they have none that is learned."""
  alphas = [a for path, a in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "alpha"]
  return {"alpha": jnp.mean(jnp.stack([a.mean() for a in alphas]))} if alphas else {}


def average_crops(logits: jax.Array, kind: str) -> jax.Array:
  """Logits (N, crops, K) as those of the images, (N, K): of the mean softmax, or the mean logits."""
  wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  if kind == "logits":
    return wide.mean(1)
  return jax.nn.logsumexp(jax.nn.log_softmax(wide), axis=1) - jnp.log(float(logits.shape[1]))


class Task:
  """What the loop, the checkpoints and the overview know of what is learned.

  A subclass has `train_losses(params, model_state, frozen, batch, step, rng)` and `evaluate(params, model_state,
  batch)`, as `Classification` has them.

  Attributes:
    model: called with images (1, H, W, C) it makes all of its variables.
    image_shape: (H, W, C).
    mean, std: normalisation of images in 0..1, one number or one per channel.
    frozen: arrays that steps read but nothing trains or saves.
  """

  def __init__(
      self, model: nn.Module, *, image_shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...],
      alpha_schedule: Callable | None = None,
  ):
    """
    Args:
      model, image_shape, mean, std: see above.
      alpha_schedule: step -> alpha, for units whose alpha is 'scheduled'.

    Raises:
      ValueError: if mean or std do not fit the channels, or are not in 0..1.
    """
    Preprocessing(mean, std, image_size=1, resize=1)  # checks their values
    for name, value in (("mean", mean), ("std", std)):
      if len(value) not in (1, image_shape[-1]):
        raise ValueError(f"config.data.{name}={tuple(value)} has {len(value)} numbers for images of "
                         f"{image_shape[-1]} channels; give 1 or {image_shape[-1]}")
    self.model = model
    self.image_shape = tuple(image_shape)
    self.mean, self.std = tuple(mean), tuple(std)
    self.alpha_schedule = alpha_schedule
    self.frozen: Tree = {}

  def init(self, rng: jax.Array) -> tuple[Tree, Tree]:
    """(params, the other collections). Pure: the caller jits it."""
    images = jnp.zeros((1, *self.image_shape), jnp.float32)
    variables = dict(self.model.init(rng, images, train=False))
    return variables.pop("params"), variables

  def at_step(self, model_state: Tree, step: jax.Array) -> Tree:
    """The model state with everything set that a schedule moves."""
    if SCHEDULED not in model_state:
      return model_state
    alphas = jax.tree.map(lambda a: jnp.full_like(a, self.alpha_schedule(step)), model_state[SCHEDULED])
    return {**model_state, SCHEDULED: alphas}

  def stays(self, path: tuple[Any, ...]) -> bool:
    """Whether the parameter of a path (jax.tree_util's keys) is not trained."""
    return False

  def examples(self, params: Tree, model_state: Tree, batch: Batch) -> Batch:
    """What evaluation keeps of each example beside the metrics that it sums: {} or name -> (N, ...)."""
    return {}

  def measure(self, examples: dict[str, np.ndarray]) -> dict[str, float]:
    """On the host, further metrics of a whole split from what `examples` returned of each of its examples."""
    return {}


class Classification(Task):
  """Cross-entropy with the labels."""

  def __init__(
      self,
      model: nn.Module,
      *,
      label_smoothing: float = 0.0,
      mixup: float = 0.0,
      cutmix: float = 0.0,
      crop_average: str = "softmax",
      **kwargs: Any,
  ):
    """
    Args:
      model: maps (N, H, W, C) to logits.
      label_smoothing: mass spread evenly over the classes, in training.
      mixup, cutmix: see `mixing.mix`; 0 for none.
      crop_average: what is averaged over the crops of an image in evaluation, 'softmax' (He et al.,
        Krizhevsky et al.) or 'logits' (fb.resnet.torch).
      **kwargs: of `Task`.
    """
    super().__init__(model, **kwargs)
    self.label_smoothing = label_smoothing
    self.mixup, self.cutmix = mixup, cutmix
    self.crop_average = crop_average

  def train_losses(
      self, params: Tree, model_state: Tree, frozen: Tree, batch: Batch, step: jax.Array,
      rng: jax.Array,
  ) -> tuple[jax.Array, Tree, Metrics]:
    """Losses (N,), the new model state, and metrics as per-example values (N,) or scalars."""
    labels = batch["label"]
    if self.mixup or self.cutmix:
      rng, mixing = jax.random.split(rng)
      images, soft = mix(mixing, batch["image"].astype(jnp.float32), labels, self.model.num_classes,
                         mixup=self.mixup, cutmix=self.cutmix)
      batch = batch | {"image": images, "label": soft}
    logits, new_state = self.model.apply(
        {"params": params, **model_state}, normalize(batch["image"], self.mean, self.std),
        train=True, mutable=list(model_state), rngs={"dropout": rng})
    values, metrics = self.losses(logits, frozen, batch, step)
    metrics["top1_error"] = 100.0 * (1.0 - topk_correct(logits, labels, 1))
    return values, new_state, metrics | mean_alpha(params)

  def losses(
      self, logits: jax.Array, frozen: Tree, batch: Batch, step: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    """Losses (N,) of logits (N, K), and further metrics."""
    return losses.cross_entropy(logits, batch["label"], self.label_smoothing), {}

  def evaluate(self, params: Tree, model_state: Tree, batch: Batch) -> Metrics:
    """Per-example values (N,) of `logits`: loss, top1_error and, from six classes on, top5_error."""
    logits = self.logits(params, model_state, batch)
    metrics = {
        "loss": losses.cross_entropy(logits, batch["label"]),
        "top1_error": 100.0 * (1.0 - topk_correct(logits, batch["label"], 1))}
    if logits.shape[-1] > 5:
      metrics["top5_error"] = 100.0 * (1.0 - topk_correct(logits, batch["label"], 5))
    return metrics

  def logits(self, params: Tree, model_state: Tree, batch: Batch) -> jax.Array:
    """(N, K) in eval mode.

    batch['image'] is (N, H, W, C), or (N, crops, H, W, C) with predictions averaged over the crops.
    """
    images = normalize(batch["image"], self.mean, self.std)
    crops = images.shape[1:-3]  # () or (10,)
    logits = self.model.apply(
        {"params": params, **model_state}, images.reshape(-1, *images.shape[-3:]), train=False)
    return average_crops(logits.reshape(-1, *crops, logits.shape[-1]), self.crop_average) if crops else logits


class WeakLogitDistillation(Classification):
  """WLD: the student starts as its teacher and is held near it, ever more loosely.

  The teacher runs in eval mode on the same augmented batch, under its own normalisation. Its
  variables are `frozen`: steps read them, no optimiser and no checkpoint sees them.
  """

  def __init__(self, model: nn.Module, teacher: Teacher, *, distill_weight: Callable,
               temperature: float, tolerance: float, distill: str, hinge: str, **kwargs):
    """
    Args:
      model: the student, whose variables include the teacher's.
      teacher: the network to start from.
      distill_weight: step -> lambda.
      temperature, tolerance, distill, hinge: see `losses.wld_loss`.
      **kwargs: of `Classification`.
    """
    super().__init__(model, **kwargs)
    self.teacher = teacher
    self.frozen = teacher.variables
    self.distill_weight = distill_weight
    self.options = dict(temperature=temperature, tolerance=tolerance, distill=distill, hinge=hinge)

  def teacher_logits(self, frozen: Tree, images: jax.Array) -> jax.Array:
    """Logits of the frozen teacher for uint8 images."""
    pre = self.teacher.preprocessing
    return jax.lax.stop_gradient(
        self.teacher.model.apply(frozen, normalize(images, pre.mean, pre.std), train=False))

  def initial_gap(
      self, params: Tree, model_state: Tree, frozen: Tree, batch: Batch
  ) -> tuple[jax.Array, jax.Array]:
    """The largest difference of any logit between student and teacher, and the largest logit.

    Both in eval mode and in float32, whatever the computation's dtype: half precision rounds the two
    differently where XLA fuses them differently. 0 before the first step if both have the same
    normalisation.
    """
    pixels = batch["image"].reshape(-1, *batch["image"].shape[-3:])  # the crops of an image, if any
    pre = self.teacher.preprocessing
    wide = dict(dtype=jnp.float32)
    student = self.model.clone(**wide).apply(
        {"params": params, **model_state}, normalize(pixels, self.mean, self.std), train=False)
    teacher = self.teacher.model.clone(**wide).apply(
        frozen, normalize(pixels, pre.mean, pre.std), train=False)
    return jnp.abs(student - teacher).max(), jnp.abs(teacher).max()

  def losses(self, logits, frozen, batch, step):
    teacher = self.teacher_logits(frozen, batch["image"])
    weight = self.distill_weight(step)
    values = losses.wld_loss(
        logits, teacher, batch["label"], distill_weight=weight,
        label_smoothing=self.label_smoothing, **self.options)
    kind = "kl" if self.options["distill"] == "printed" else self.options["distill"]
    metrics = {
        "cross_entropy": losses.cross_entropy(logits, batch["label"]),
        "distillation": losses.distillation(
            logits, teacher, temperature=self.options["temperature"], kind=kind),
        "distill_weight": weight}
    return values, metrics
