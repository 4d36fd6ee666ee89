"""CIFAR-10 in a few epochs on a CPU: the papers' units side by side, under a recipe that no paper has.

The argument is the number of epochs; all runs have the same number of them, of 50,000 images, and two
seeds each:

    run                       network                         parameters
    resnet20                  ResNet-20                          269,722
    fp_resnet32_001           FP-ResNet-32, filter pairs         165,786
    fp_resnet32_001_single    the same with single filters       162,330
    ic_resnet20               IC-ResNet-20, with labels          300,762
    ic_resnet20_wld           IC-ResNet-20, from `resnet20` of the same seed by weak logit distillation,
                              one learned alpha a layer          300,780

    python launch.py --config=configs/cifar10_short.py:2 --config.runs.resnet20.data.dir=DIR ...

or, for all runs at once, TFDS_DATA_DIR=DIR in the environment. CIFAR-10 must lie there in ArrayRecord
form; if it does not, the error names the command that prepares it.

This is a shortened recipe and its errors are not comparable with any paper's: after 1 of 200 epochs a
network is far from trained, and what learns quickly is not what ends best. What it shares with
configs/fp_resnet_cifar10.py are the data, the augmentation, batch 128, momentum 0.9, weight decay 1e-4 and
the highest rate, 0.1 (weak logit distillation: 0.01). The rate rises over the first fifth of an epoch and
falls to 0 as a cosine, since steps at epochs 100 and 150 mean nothing here; the last, smaller batch of an
epoch is left out. `ic_resnet20_wld` stands on the epochs of its teacher: it has had twice the training.

Smoke variant, a few steps of the same code without any data: ...py:1,smoke
"""

import ml_collections

from bionets_jax.training.config import wld_config
from configs import common


def get_config(argument: str = "1") -> ml_collections.ConfigDict:
  text = argument.removesuffix(",smoke")
  try:
    epochs = float(text)
  except ValueError:
    epochs = 0.0
  if not 0 < epochs < float("inf"):
    raise ValueError(f"argument {argument!r}: give a number of epochs, and ',smoke' behind it for a trial")
  runs = {
      "resnet20": common.cifar10("resnet20_cifar"),
      "fp_resnet32_001": common.cifar10("fp_resnet32_cifar", dict(fp_layers="001")),
      "fp_resnet32_001_single": common.cifar10(
          "fp_resnet32_cifar", dict(fp_layers="001", single_filter=True)),
      "ic_resnet20": common.cifar10("ic_resnet20_cifar", common.IC),
      "ic_resnet20_wld": _distilled()}
  for config in runs.values():
    config.data.drop_remainder = True
    config.seeds = (0, 1)
    config.duration = f"{epochs:g} epochs"
    config.schedule.kind = "cosine"
    config.schedule.warmup = "0.2 epochs"
    config.eval_every = "0.5 epochs"
    config.checkpoint_every = "0.25 epochs"
  unit = "epoch" if epochs == 1 else "epochs"
  study = common.study(f"CIFAR-10, {epochs:g} {unit}: a shortened recipe", runs)
  return common.smoke(study) if text != argument else study


def _distilled() -> ml_collections.ConfigDict:
  config = common.cifar10("ic_resnet20_cifar", common.IC_GROWN, config=wld_config())
  config.teacher.weights = "run:resnet20"
  config.schedule.lr = 0.01
  return config
