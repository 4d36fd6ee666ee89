"""The training step of both sides on the same batch from the same weights: forward, loss, backward, SGD."""

import functools
import itertools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
import torch.nn.functional as F
import twins
from jax.sharding import NamedSharding, PartitionSpec
from twins import DEVICE, torch

from bionets_jax.training.devices import replicated
from bionets_jax.training.program import jit_train_step
from bionets_jax.training.setup import make_setup
from bionets_jax.weights.preprocessing import normalize

# Small: the same batch comes again in every step, and a loss that is not finite would say nothing.
LEARNING_RATE = 1e-3


class OurStep:
  """The trainer's step, compiled ahead and with its state donated.

  Beyond PyTorch's it computes the error rate and the norm of the gradient, for the log.

  Attributes:
    setup: the trainer's.
    state: a `TrainState`.
    batches: an iterator over batches on the device; at first the one of the constructor again and again.
    compiled: the step.
  """

  def __init__(self, config: ml_collections.ConfigDict, batch: Mapping[str, np.ndarray]):
    """
    Args:
      config: of a run. It is changed: made-up data in place of its own, of whose shapes they are, the batch's
        size and a constant learning rate.
      batch: 'image' uint8 (N, H, W, 3) and 'label' int32 (N,).
    """
    config.data.name, config.data.workers = f"generated/{config.data.name}", 0
    config.batch_size, config.data.drop_remainder = len(batch["label"]), False
    config.schedule.kind, config.schedule.lr = "constant", LEARNING_RATE
    self.setup = make_setup(config, jax.devices()[:1])  # PyTorch's step has one device too
    state = jax.jit(self.setup.init)(jax.random.key(config.seed), {})
    put = functools.partial(jax.device_put, device=replicated(self.setup.mesh))
    self.state = put(state.replace(params=moved(state.params)))
    batch = jax.device_put(dict(batch), NamedSharding(self.setup.mesh, PartitionSpec("data")))
    self.batches = itertools.repeat(batch)
    self._seed = put(np.uint32(config.seed))
    step = jit_train_step(config, self.setup)
    self.compiled = step.lower(self.state, {}, [batch], [self._seed]).compile()

  @property
  def variables(self) -> dict[str, Any]:
    """Of the network, as they are now; copies, since a step donates them."""
    return jax.tree.map(np.array, {"params": self.state.params, **self.state.model_state})

  def __call__(self) -> dict[str, jax.Array]:
    """A step; its metrics."""
    self.state, metrics = self.compiled(self.state, {}, [next(self.batches)], [self._seed])
    return metrics

  def first_step(self, source: ModuleType) -> list[np.ndarray]:
    """[logits, loss, momentum of every parameter] of the first step: momentum is the gradient with decay."""
    @jax.jit
    def logits(state, images):
      task = self.setup.task
      return task.model.apply(
          {"params": state.params, **state.model_state}, normalize(images, task.mean, task.std),
          train=True, mutable=list(state.model_state), rngs={"dropout": jax.random.key(0)})[0]

    found = [logits(self.state, next(self.batches)["image"])]
    metrics = self()
    found.append(metrics["loss"] / metrics["count"])
    momentum = optax.tree.get(self.state.opt_state, "trace")
    return [*map(np.asarray, found), *twins.in_our_order(source, momentum)]


def moved(params: Any) -> Any:
  """Everything that starts as a constant a little off: a factor of 0 would hide what it multiplies."""
  random = np.random.default_rng(0)

  def one(leaf):
    return leaf + 0.1 * random.standard_normal(leaf.shape, np.float32) if leaf.ndim < 2 else leaf

  return jax.tree.map(one, params)


class TorchStep:
  """A training step of PyTorch: forward, loss, backward, SGD with momentum, on one batch that is there.

  Channels last. On a GPU under autocast to bfloat16, with the fused optimiser.

  Attributes:
    net: the module.
    calls: how often it was stepped.
  """

  def __init__(
      self, source: ModuleType, variables: Mapping[str, Any], batch: Mapping[str, np.ndarray],
      config: ml_collections.ConfigDict, *, dtype: torch.dtype = torch.float32, autocast: bool = False,
      compiled: str = "",
  ):
    """
    Args:
      source: of `import_source`.
      variables: of our network.
      batch: 'image' uint8 (N, H, W, C) and 'label' (N,).
      config: of our run, for its optimiser, whose decay spares every alpha, and its normalisation.
      dtype: of parameters and computation.
      autocast: to bfloat16.
      compiled: mode of torch.compile, '' for none.
    """
    self._source = source
    self.net = twins.give_weights(source, source.create(), variables).to(dtype)
    self._images = torch.from_numpy(batch["image"]).to(DEVICE)
    self._labels = torch.from_numpy(batch["label"]).long().to(DEVICE)
    self._mean, self._std = (torch.tensor(values, dtype=dtype, device=DEVICE)
        for values in (config.data.mean, config.data.std))
    self._autocast = torch.autocast(DEVICE, torch.bfloat16, enabled=autocast)
    decayed, spared = [], []
    for name, parameter in self.net.named_parameters():
      (spared if name.endswith("alpha") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.optimizer.weight_decay}]
    groups += [{"params": spared, "weight_decay": 0.0}] if spared else []
    self._optimizer = torch.optim.SGD(
        groups, lr=LEARNING_RATE, momentum=config.optimizer.momentum,
        fused=True if DEVICE == "cuda" else None)
    self._loss = self._plain_loss
    if compiled:
      self._loss = torch.compile(self._plain_loss, mode=compiled, dynamic=False)

  def logits(self) -> torch.Tensor:
    x = (self._images.to(self._mean.dtype) / 255 - self._mean) / self._std
    with self._autocast:
      return self.net(x.permute(0, 3, 1, 2))  # a view: NHWC in memory is channels last

  def _plain_loss(self) -> torch.Tensor:
    logits = self.logits()
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), self._labels)

  def __call__(self) -> torch.Tensor:
    self._optimizer.zero_grad(set_to_none=True)
    loss = self._loss()
    loss.backward()
    self._optimizer.step()
    return loss.detach()

  def first_step(self) -> list[np.ndarray]:
    """[logits, loss, momentum of every parameter] of the first step: momentum is the gradient with decay."""
    with torch.no_grad():
      logits = self.logits()
    loss = self()
    momenta = twins.by_our_names(
        self._source, self.net, lambda p: self._optimizer.state[p]["momentum_buffer"])
    return [*(value.cpu().double().numpy() for value in (logits, loss)), *momenta]
