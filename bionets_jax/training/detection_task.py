"""Detection as a task of the training loop."""

import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bionets_jax.detection.average_precision import Picture, average_precision
from bionets_jax.detection.images import normalized
from bionets_jax.detection.types import Objects
from bionets_jax.training.tasks import Batch, Metrics, Task, Tree, mean_alpha
from bionets_jax.weights.run_metric import AP50_VOC07, OF_CLASS


class Detection(Task):
  """A detector's own losses; evaluated by the average precision over a whole split.

  Batches hold, of N images that are padded to one size and of G objects each: image uint8 (N, H, W, C); size
  float32 (N, 2), height and width of what is no padding; scale float32 (N, 2), by how much height and width were
  enlarged; boxes float32 (N, G, 4) in pixels of the padded image; label int32 (N, G); present, difficult bool
  (N, G); index int32 (N,), the example's number in its split; in evaluation also mask float32 (N,).
  """

  def __init__(
      self, model: nn.Module, *, class_names: tuple[str, ...], frozen: str = "", train_norm: bool = False,
      difficult: bool = False, **kwargs: Any,
  ):
    """
    Args:
      model: of `detection.create_detector`.
      class_names: of the labels.
      frozen: a regular expression; parameters whose path ('backbone/stage1_block0/conv1/kernel') it is found in
        stay as they are, and nothing is differentiated for them.
      train_norm: whether BatchNorm uses and follows the statistics of the batch; if not it keeps those that it
        has, while its scale and bias are trained.
      difficult: whether objects that are marked as difficult are to be found in training. They never count in
        evaluation.
      **kwargs: of `Task`.
    """
    super().__init__(model, **kwargs)
    self.class_names = tuple(class_names)
    self.train_norm, self.difficult = train_norm, difficult
    self._frozen = re.compile(frozen) if frozen else None

  def stays(self, path: tuple[Any, ...]) -> bool:
    return bool(self._frozen and self._frozen.search("/".join(str(k.key) for k in path)))

  def train_losses(
      self, params: Tree, model_state: Tree, frozen: Tree, batch: Batch, step: jax.Array, rng: jax.Array,
  ) -> tuple[jax.Array, Tree, Metrics]:
    """Losses (N,), the new model state, and 'loss_NAME' (N,) for each of the detector's."""
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: jax.lax.stop_gradient(x) if self.stays(path) else x, params)
    wanted = batch["present"] if self.difficult else batch["present"] & ~batch["difficult"]
    drawn, rng = jax.random.split(rng)
    found, new_state = self.model.apply(
        {"params": params, **model_state}, self._images(batch), Objects(batch["boxes"], batch["label"], wanted),
        batch["size"], train=self.train_norm, rng=drawn, method="losses", mutable=list(model_state),
        rngs={"dropout": rng})
    return sum(found.values()), new_state, {f"loss_{name}": x for name, x in found.items()} | mean_alpha(params)

  def evaluate(self, params: Tree, model_state: Tree, batch: Batch) -> Metrics:
    """Nothing: no mean over images says how good a detector is."""
    return {}

  def examples(self, params: Tree, model_state: Tree, batch: Batch) -> Batch:
    """Detections and objects of each image, in pixels of the image as it was before it was made to fit.

    'finite', (N,) bool, is whether all numbers are that the detector's parts gave: a score that is NaN is below any
    threshold, so that it is in no detection.
    """
    found, parts = self.model.apply(
        {"params": params, **model_state}, self._images(batch), batch["size"], method="detect",
        mutable=["intermediates"], capture_intermediates=_is_part)
    finite = [jnp.isfinite(x).reshape(len(batch["mask"]), -1).all(-1)
              for x in jax.tree.leaves((parts, found.boxes, found.scores))]
    scale = jnp.tile(batch["scale"][:, None, ::-1], 2)  # of x, y, x, y
    keys = ("label", "present", "difficult", "index", "mask")
    return {"found_boxes": found.boxes / scale, "found_scores": found.scores, "found_labels": found.labels,
            "found": found.present, "finite": jnp.stack(finite).all(0), "boxes": batch["boxes"] / scale,
            **{key: batch[key] for key in keys}}

  def measure(self, examples: dict[str, np.ndarray]) -> dict[str, float]:
    """Average precisions in percent: the mean over the classes by each protocol, and 'class/NAME', VOC07's of each.

    What has no objects to be found is left out. Where an image's predictions are not finite, neither is the mean that
    runs are compared by.
    """
    if not examples["finite"][examples["mask"] > 0].all():
      return {AP50_VOC07.key: math.nan}
    found = average_precision([self._picture(examples, i) for i in np.flatnonzero(examples["mask"])], self.class_names)
    each = zip((f"{OF_CLASS}{name}" for name in self.class_names), found.of_classes[AP50_VOC07.key], strict=True)
    return {name: float(value) for name, value in (*found.means.items(), *each) if np.isfinite(value)}

  def _images(self, batch: Batch) -> jax.Array:
    return normalized(batch["image"], batch["size"], self.mean, self.std)

  @staticmethod
  def _picture(examples: dict[str, np.ndarray], i: int) -> Picture:
    found, true = examples["found"][i], examples["present"][i]
    return Picture(
        int(examples["index"][i]), *(examples[f"found_{key}"][i][found] for key in ("boxes", "scores", "labels")),
        *(examples[key][i][true] for key in ("boxes", "label", "difficult")))


def _is_part(module: nn.Module, method: str) -> bool:
  """Whether it is the call of one of the modules that a detector consists of."""
  return len(module.path) == 1 and method == "__call__"
