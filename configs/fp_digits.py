"""An FP-ResNet on the 1,797 digits of the quickstart: filter pairs to look at, without a download.

    python launch.py --config=configs/fp_digits.py
    python -m bionets_jax.figures fp-filters filters --weights=workdirs/fp_digits

A minute on two CPU cores. The first two stages are an FP-block each, with 32 and 64 filter pairs on maps of
8 x 8 pixels, where a pair has edges, corners and line ends to see; the third is ResNet-20's.
"""

import ml_collections

from bionets_jax.training.config import classification_config
from configs.quickstart import on_digits


def get_config() -> ml_collections.ConfigDict:
  config = on_digits(classification_config())
  config.model.name = "fp_resnet20_cifar"
  config.model.options.fp_layers = "110"
  config.duration = "30 epochs"
  config.schedule.lr = 0.1
  config.schedule.boundaries = (18, 25)
  return config
