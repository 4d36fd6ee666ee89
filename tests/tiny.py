"""Configs that train in seconds, and networks cut down to one block of each kind."""

import ml_collections

import bionets_jax as bn
from bionets_jax.models.efficientnet import EfficientNet
from bionets_jax.models.mobilenet import MobileNet
from bionets_jax.models.resnet import ResNet
from bionets_jax.models.vgg import VGG
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


def tiny_model(name: str, num_classes: int = 7, **overrides):
  """The network with few and narrow layers; one block of each kind is left in every stage."""
  full = bn.create_model(name)
  small = {}
  if isinstance(full, ResNet):
    small = dict(stage_sizes=(1,) * len(full.stage_sizes), width=8)
    if full.fp_layers:
      small["fp_blocks"] = 1
    if full.se_reduction:
      small["se_reduction"] = 1
  elif isinstance(full, VGG):
    small = dict(stage_sizes=(2, 1, 1), width=8)
  elif isinstance(full, MobileNet):
    small = dict(stage_sizes=(1, 1), width=8)
  elif isinstance(full, EfficientNet):
    # Channels 16, 16, 32 and 128 at the top; 96 inside the second block, which has groups in a kEffNet.
    small = dict(stages=((3, 1, 160, 160, 1, 1), (5, 2, 160, 320, 6, 2)), width=0.1, depth=1.0,
                 dropout=0.2)
  return bn.create_model(name, num_classes, **(small | overrides))
