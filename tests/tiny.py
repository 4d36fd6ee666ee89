"""Configs that train in seconds."""

import ml_collections

from bionets_jax.training.config import classification_config, wld_config


def tiny_config(**changes) -> ml_collections.ConfigDict:
  """An 8-layer, 8-wide residual network on the embedded digits."""
  return _tiny(classification_config(), "resnet20_cifar", changes)


def tiny_wld_config(teacher: str, **changes) -> ml_collections.ConfigDict:
  """Its IC twin, grown from a workdir."""
  config = _tiny(wld_config(), "ic_resnet20_cifar", {})
  config.data.mean = config.data.std = ()
  config.model.options.alpha = "learned"
  config.teacher.weights = teacher
  config.schedule.lr = 0.01
  return change(config, changes)


def change(config: ml_collections.ConfigDict, changes: dict) -> ml_collections.ConfigDict:
  for key, value in changes.items():
    *parents, leaf = key.split("__")
    node = config
    for parent in parents:
      node = node[parent]
    node[leaf] = value
  return config


def _tiny(config, name, changes):
  config.model.name = name
  config.model.options = ml_collections.ConfigDict(dict(stage_sizes=(1, 1, 1), width=8))
  config.data.name = "digits"
  config.data.train_transform = "pad_crop(1)"
  config.data.mean, config.data.std = (0.3,), (0.4,)
  config.batch_size = 32
  config.eval_batch_size = 120
  config.duration = "24 steps"
  config.schedule.boundaries = (0.4,)
  config.log_every = "1 steps"
  config.eval_every = "12 steps"
  config.checkpoint_every = "5 steps"
  return change(config, changes)
