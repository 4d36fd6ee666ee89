"""A network of this library inside an NNX model, trained with its BatchNorm. `python examples/nnx_model.py`"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import bionets_jax as bn


class Model(nnx.Module):
  """A Linen backbone without its head, and an NNX head."""

  def __init__(self, rngs: nnx.Rngs):
    backbone = bn.create_model("ic_resnet20_cifar", num_classes=0, stage_sizes=(1, 1, 1), width=8)
    self.backbone = nnx.bridge.ToNNX(backbone, rngs=rngs).lazy_init(jnp.zeros((1, 16, 16, 3)))
    self.head = nnx.Linear(32, 2, rngs=rngs)

  def __call__(self, images, train=False):
    # `mutable` lets the running statistics move; without it a call in training raises.
    return self.head(self.backbone(images, train=train, mutable=["batch_stats"] if train else []))


@nnx.jit
def train_step(model, optimizer, images, labels):
  def loss_fn(model):
    logits = model(images, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  loss, grads = nnx.value_and_grad(loss_fn)(model)
  optimizer.update(model, grads)
  return loss


def main(steps=40):
  model = Model(nnx.Rngs(0, dropout=1))
  optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
  images = jax.random.normal(jax.random.key(0), (32, 16, 16, 3))
  labels = (images.mean((1, 2, 3)) > 0).astype(int)
  losses = [float(train_step(model, optimizer, images, labels)) for _ in range(steps)]
  return model, losses


if __name__ == "__main__":
  _, losses = main()
  print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
