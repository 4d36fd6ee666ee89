"""What it costs to cut and augment a CIFAR-size batch on the device, beside a step of ResNet-20 on it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
from jax.sharding import Mesh

from bionets_jax.counting import abstract_variables
from bionets_jax.data import DEVICE_TRANSFORMS, ResidentSet, parse_transforms
from bionets_jax.models import create_model

EXAMPLES, BATCH, AUGMENTATION = 10_000, 128, "pad_crop(4)|flip"


def measure(rounds: int) -> dict[str, dict[str, float]]:
  """{candidate: {'ms', and as the share of a step 'median', 'low', 'high'}}.

  'batch' cuts and augments BATCH of EXAMPLES images, 'as they are' only cuts them, 'step' is the gradient of
  ResNet-20's loss in float32, without an optimizer.
  """
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (EXAMPLES, 32, 32, 3), np.uint8)
  labels = random.integers(0, 10, EXAMPLES, np.int32)
  mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
  augmented = ResidentSet(images, labels, mesh, parse_transforms(AUGMENTATION, DEVICE_TRANSFORMS))
  plain = ResidentSet(images, labels, mesh)

  def batch(resident_set):
    return resident_set.batch(0, 0, random.integers(0, EXAMPLES, BATCH))

  step, fixed = _gradient(), batch(plain)
  seconds = timing.interleaved({
      "step": lambda: step(fixed), "batch": lambda: batch(augmented), "as they are": lambda: batch(plain),
  }, rounds, jax.block_until_ready)
  return {name: {"ms": 1e3 * float(np.median(seconds[name])), **timing.ratio(seconds, name, "step")}
          for name in seconds}


def _gradient():
  """A function of a batch: the gradient of ResNet-20's loss."""
  model = create_model("resnet20_cifar", num_classes=10)
  shapes = abstract_variables(model, (32, 32, 3))
  random = np.random.default_rng(0)
  variables = jax.tree.map(lambda x: 0.1 * random.standard_normal(x.shape).astype(x.dtype), shapes)

  @jax.jit
  def gradient(params, state, batch):
    def loss(params):
      images = batch["image"].astype(jnp.float32) / 255
      logits, _ = model.apply({"params": params, **state}, images, train=True, mutable=list(state))
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
    return jax.grad(loss)(params)

  params = jax.device_put(variables.pop("params"))
  return lambda batch: gradient(params, variables, batch)
