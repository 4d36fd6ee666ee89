"""CIFAR-10 ResNets under the recipe of pytorch_resnet_cifar10, which FP-nets' Figures 2 and 3 follow.

The argument names the network: resnet20, resnet32, resnet44 or resnet56, or its IC twin ic_resnet20 ...
Published test errors of the plain ones in percent: 8.27, 7.37, 6.90, 6.61.

    python launch.py --config=configs/resnet_cifar10.py:resnet20 --config.data.dir=DIR

CIFAR-10 must lie in DIR in ArrayRecord form; if it does not, the error names the command that prepares
it. 200 epochs of 50,000 images of 32x32 pixels; six to nine minutes an epoch for ResNet-20 on two CPU cores.

SGD with momentum 0.9 and weight decay 1e-4 on all parameters, batch 128 with the last one of an epoch
smaller, rate 0.1 divided by 10 at epochs 100 and 150; crops of the zero-padded image and flips; ImageNet's
mean and deviation. The error that papers report is often the lowest over all epochs: summary.json has
that one ("best") and the one after the last step ("last").

Smoke variant: ...py:resnet20,smoke
"""

import ml_collections

from bionets_jax.training.config import classification_config

_NETWORKS = tuple(f"{unit}resnet{depth}" for depth in (20, 32, 44, 56) for unit in ("", "ic_"))
_PUBLISHED = {"resnet20": 8.27, "resnet32": 7.37, "resnet44": 6.90, "resnet56": 6.61}


def get_config(argument: str = "resnet20") -> ml_collections.ConfigDict:
  name, *rest = argument.split(",")
  if name not in _NETWORKS or rest not in ([], ["smoke"]):
    raise ValueError(
        f"argument {argument!r}: give one of {', '.join(_NETWORKS)}, and ',smoke' for a trial")
  config = classification_config()
  config.model.name = f"{name}_cifar"
  if name.startswith("ic_"):
    config.model.options = ml_collections.ConfigDict(dict(alpha="1.0", adjust_init="scaled"))
  config.data.name = "cifar10"
  config.data.train_transform = "pad_crop(4)|flip"
  config.data.drop_remainder = False
  config.batch_size = 128
  config.eval_batch_size = 1000
  config.duration = "200 epochs"
  config.schedule.lr = 0.1
  config.schedule.boundaries = (100, 150)
  if name in _PUBLISHED:
    config.paper = ml_collections.ConfigDict(
        dict(table="pytorch_resnet_cifar10, published checkpoint", top1_error=_PUBLISHED[name]))
  if rest:
    config.data.train_split = "train[:64]"
    config.data.eval_split = "test[:32]"
    config.batch_size = 16
    config.eval_batch_size = 32
    config.duration = "4 steps"
    config.log_every = "1 steps"
  return config
