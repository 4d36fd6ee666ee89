"""IC networks, Table 4: VGG, MobileNet, SE-ResNet and ResNeXt on CIFAR-10, plain and with IC layers.

The argument names the network, or a study of several (with one seed, as far as the paper says):

    argument             parameters   the paper's error in percent
    vgg16                14,728,266   6.36
    ic_vgg16             16,366,730   6.04
    vgg19                20,040,522   6.46
    ic_vgg19             22,270,090   6.27
    mobilenet             3,217,226   9.92
    ic_mobilenet          6,368,714   9.00
    se_resnet18          11,263,042   5.08
    ic_se_resnet18       12,491,330   4.85
    se_resnet50          26,051,834   5.10
    ic_se_resnet50       27,316,858   4.61
    resnext29_2x64d       9,128,778   4.62
    ic_resnext29_2x64d    9,650,250   4.43
    table4               all twelve, one after the other
    curves               vgg16 and ic_vgg16, with their training curves in WORKDIR/plots; the paper has
                         such curves in Appendix B, and its text does not say of which networks

    python launch.py --config=configs/ic_cifar10.py:ic_vgg16 --config.data.dir=DIR

(for a study: TFDS_DATA_DIR=DIR in the environment). CIFAR-10 must lie in DIR in ArrayRecord form; if it does
not, the error names the command that prepares it. 200 epochs of 50,000 images of 32x32 pixels. Not run at
full length here: no number of ours stands beside the paper's yet.

The paper gives: 200 epochs, batch 128, rate 0.1 divided by 10 at epochs 60 and 120, otherwise the
optimiser of its ImageNet runs (SGD with momentum 0.9 and weight decay 1e-4). It leaves open: the layouts
(here pytorch-cifar's, whose names the paper uses; that repository has an SE-ResNet-18 of pre-activation
blocks, --config.model.options.block=preact, and no SE-ResNet-50), augmentation (here crops of the
zero-padded image and flips, pytorch-cifar's mean and deviation), where MobileNet's ReLU between
depthwise and pointwise convolution stands (here it stays, inside the pair), W' in groups (here in those of
W), whether its errors are the last or the lowest (here the last is compared; summary.json has both), and
how many runs they are the mean of.

Smoke variant, a few steps of the same code without any data: ...py:ic_vgg16,smoke
"""

import ml_collections

from configs import common

_PAPER = {"vgg16": ("VGG-16", 6.36, 6.04), "vgg19": ("VGG-19", 6.46, 6.27),
          "mobilenet": ("MobileNet", 9.92, 9.00), "se_resnet18": ("SE-ResNet-18", 5.08, 4.85),
          "se_resnet50": ("SE-ResNet-50", 5.10, 4.61), "resnext29_2x64d": ("ResNext(2x64d)", 4.62, 4.43)}
_NETWORKS = tuple(f"{unit}{name}" for name in _PAPER for unit in ("", "ic_"))
_STUDIES = {"table4": ("IC networks, Table 4", _NETWORKS),
            "curves": ("IC networks, training curves on CIFAR-10", ("vgg16", "ic_vgg16"))}


def get_config(argument: str = "ic_vgg16") -> ml_collections.ConfigDict:
  return common.network_or_study(argument, _NETWORKS, _STUDIES, _run)


def _run(name: str) -> ml_collections.ConfigDict:
  base = name.removeprefix("ic_")
  unit = base != name
  config = common.cifar10(name, common.IC if unit else {})
  config.data.mean = (0.4914, 0.4822, 0.4465)
  config.data.std = (0.2023, 0.1994, 0.2010)
  config.schedule.boundaries = (60, 120)
  row, plain_error, error = _PAPER[base]
  config.paper = common.paper(
      "IC networks, Table 4", f"IC-{row}" if unit else row, top1_error=error if unit else plain_error,
      statistic="last", data="cifar10", epochs=200, batch_size=128, seeds=1)
  return config
