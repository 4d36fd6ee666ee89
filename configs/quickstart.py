"""The main job in small: an IC network grown from a trained network, on a CPU, without a download.

Three runs on 1,797 handwritten digits of 8x8 pixels (1,442 to train, 355 held out; see
bionets_jax/data/digits.py):
  base         ResNet-20, trained with labels;
  ic_scratch   IC-ResNet-20, trained with labels;
  ic_wld       IC-ResNet-20 that starts as `base` and is trained by weak logit distillation.

    python launch.py --config=configs/quickstart.py

About three minutes on two CPU cores. The digits are small and easy: the errors show that the
machinery works, not that one network is better than another.
"""

import ml_collections

from bionets_jax.training.config import classification_config, wld_config


def get_config() -> ml_collections.ConfigDict:
  base = on_digits(classification_config())
  base.model.name = "resnet20_cifar"
  base.duration = "30 epochs"
  base.schedule.lr = 0.1
  base.schedule.boundaries = (18, 25)

  ic_scratch = base.copy_and_resolve_references()
  ic_scratch.model.name = "ic_resnet20_cifar"
  ic_scratch.model.options.alpha = "1.0"

  ic_wld = on_digits(wld_config())
  ic_wld.model.name = "ic_resnet20_cifar"
  ic_wld.model.options.alpha = "learned"
  ic_wld.teacher.weights = "run:base"
  ic_wld.duration = "8 epochs"
  ic_wld.schedule.lr = 0.01
  ic_wld.schedule.boundaries = (4,)

  config = ml_collections.ConfigDict()
  config.title = "Quickstart: IC-ResNet-20 on handwritten digits"
  config.runs = ml_collections.ConfigDict(dict(base=base, ic_scratch=ic_scratch, ic_wld=ic_wld))
  return config


def on_digits(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  config.data.name = "digits"
  config.data.train_transform = "pad_crop(1)"
  if config.task == "classification":
    config.data.mean = (0.306,)
    config.data.std = (0.377,)
  config.batch_size = 64
  config.eval_batch_size = 120
  config.log_every = "2 epochs"
  config.eval_every = "2 epochs"
  config.checkpoint_every = "4 epochs"
  return config
