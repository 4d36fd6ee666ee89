"""FP-nets, Table 2: FP-ResNet-50 on ImageNet, and the plain networks beside it.

The argument names the network, or `table2`, all of them one after the other; the paper's top-1 errors in
percent on the validation set, those of the plain networks from torchvision's weights:

    argument      parameters   without head   as printed   error
    fp_resnet50   16,113,704     14,064,704         16 M   23.87
    resnet18      11,689,512     11,176,512         11 M   30.34
    resnet34      21,797,672     21,284,672         21 M   26.78
    resnet50      25,557,032     23,508,032         23 M   23.88

    python launch.py --config=configs/fp_resnet50_imagenet.py:fp_resnet50 --config.data.dir=DIR

(of `table2`: TFDS_DATA_DIR=DIR in the environment). ImageNet must lie in DIR in ArrayRecord form; if it
does not, the error names the command that prepares it. 90 epochs of 1.28 million images: 64 hours on four
RTX 2080 in the paper. Not run at full length here: no number of ours stands beside the paper's yet.

The paper gives: the recipe of PyTorch's ImageNet example (SGD with momentum 0.9 and weight decay 1e-4,
batch 256, 90 epochs, rate 0.1 divided by 10 every 30, random resized crop and flip), one FP-block with
q = 1 in place of the second and one in place of the fourth stage, no shortcuts around them, the error of
the last epoch, one run. It leaves open: the pool behind each FP-block (here 2x2) and the initialisation (here
torchvision's for ResNets). The counts as printed mix conventions: 16 M is with the last layer, 23 M
without.

Smoke variant, a few steps of the same code without any data: ...py:fp_resnet50,smoke
"""

import ml_collections

from configs import common

_PAPER = {"fp_resnet50": ("ours", 23.87, "16 M"), "resnet18": ("ResNet-18", 30.34, "11 M"),
          "resnet34": ("ResNet-34", 26.78, "21 M"), "resnet50": ("ResNet-50", 23.88, "23 M")}


def get_config(argument: str = "fp_resnet50") -> ml_collections.ConfigDict:
  choice, smoke = common.choose(argument, (*_PAPER, "table2"))
  if choice == "table2":
    config = common.study("FP-nets, Table 2, ImageNet", {name: _run(name) for name in _PAPER})
  else:
    config = _run(choice)
  return common.smoke(config) if smoke else config


def _run(name: str) -> ml_collections.ConfigDict:
  config = common.imagenet(name)
  row, error, size = _PAPER[name]
  config.paper = common.paper(
      "FP-nets, Table 2", row, top1_error=error, params=size, statistic="last", data="imagenet2012",
      epochs=90, batch_size=256, seeds=1)
  return config
