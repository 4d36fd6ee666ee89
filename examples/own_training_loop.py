"""An IC layer in a project of one's own: a Flax network, optax, a loop. `python examples/own_training_loop.py`"""

import flax.linen as nn
import jax
import optax

from bionets_jax.layers import ICConv


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(ICConv(16, (3, 3), strides=2)(x))
    return nn.Dense(2)(nn.relu(ICConv(16, (3, 3), strides=2)(x)).mean((1, 2)))


def loss_fn(params, images, labels):
  return optax.softmax_cross_entropy_with_integer_labels(Net().apply(params, images), labels).mean()


images = jax.random.normal(jax.random.key(0), (64, 12, 12, 1))
labels = (images[:, ::2].sum((1, 2, 3)) > images[:, 1::2].sum((1, 2, 3))).astype(int)
params, optimizer = Net().init(jax.random.key(1), images), optax.adam(1e-2)
state, loss_and_grad = optimizer.init(params), jax.jit(jax.value_and_grad(loss_fn))
for _ in range(100):
  loss, grads = loss_and_grad(params, images, labels)
  updates, state = optimizer.update(grads, state)
  params = optax.apply_updates(params, updates)
print(f"loss {loss:.3f}")
