"""IC networks, Table 1: IC-ResNets trained from scratch on ImageNet, and their plain baselines.

The argument names the network; the paper's 1-crop and 10-crop top-1/top-5 errors in percent:

    argument      parameters   1-crop          10-crop
    resnet18      11,689,512   30.24 / 10.92   27.88 / 9.42   (the baselines' numbers are published
    ic_resnet18   12,917,800   28.56 /  9.80   26.69 / 8.56    ones, of 90 epochs in torchvision,
    resnet34      21,797,672   26.70 /  8.58   24.52 / 7.46    and not runs of the authors)
    ic_resnet34   24,155,688   25.55 /  7.90   23.49 / 6.86
    resnet50      25,557,032   23.85 /  7.13   22.85 / 6.71
    ic_resnet50   26,822,056   23.20 /  6.72   21.90 / 6.08

or a study: `table1`, all six one after the other; `curves`, ResNet-18 and IC-ResNet-18, with their training
curves in WORKDIR/plots (`table1` plots all six). The paper has such curves in Appendix B; its text does not
say of which networks.

    python launch.py --config=configs/ic_resnet_imagenet.py:ic_resnet50 --config.data.dir=DIR
    python -m bionets_jax.evaluate WORKDIR --transform='resize(256)|ten_crop(224)'

The second command gives the 10-crop errors. (For a study: TFDS_DATA_DIR=DIR in the environment.) ImageNet
must lie in DIR in ArrayRecord form; if it does not, the error names the command that prepares it. 120
epochs of 1.28 million images. Not run at full length here: no number of ours stands beside the paper's
yet.

The paper gives: SGD with momentum 0.9 and weight decay 1e-4, batch 256, 120 epochs, rate 0.1 divided
by 10 every 30 epochs. It leaves open: augmentation (here torchvision's: random resized crop, flip),
which parameters decay (here all, as in PyTorch), BatchNorm over several GPUs (here global), the
initialisation of W' (here std(W) / k), what 10-crop testing averages (here softmax;
--config.crop_average=logits for the other), and which epoch is reported (here the last).

Smoke variant, a few steps of the same code without any data: ...py:ic_resnet18,smoke
"""

import ml_collections

from configs import common

_PAPER = {  # 1-crop top-1 and top-5, 10-crop top-1 and top-5; parameters, GFLOPs
    "resnet18": (30.24, 10.92, 27.88, 9.42, "11.7 M", 1.82),
    "ic_resnet18": (28.56, 9.80, 26.69, 8.56, "12.9 M", 2.01),
    "resnet34": (26.70, 8.58, 24.52, 7.46, "21.8 M", 3.68),
    "ic_resnet34": (25.55, 7.90, 23.49, 6.86, "24.2 M", 4.07),
    "resnet50": (23.85, 7.13, 22.85, 6.71, "25.6 M", 4.12),
    "ic_resnet50": (23.20, 6.72, 21.90, 6.08, "26.8 M", 4.33),
}
_STUDIES = {"table1": ("IC networks, Table 1", tuple(_PAPER)),
            "curves": ("IC networks, training curves on ImageNet", ("resnet18", "ic_resnet18"))}


def get_config(argument: str = "ic_resnet50") -> ml_collections.ConfigDict:
  return common.network_or_study(argument, _PAPER, _STUDIES, _run)


def _run(name: str) -> ml_collections.ConfigDict:
  config = common.imagenet(name, common.IC if name.startswith("ic_") else {})
  config.duration = "120 epochs"
  config.schedule.boundaries = (30, 60, 90)
  keys = ("top1_error", "top5_error", "top1_error_10crop", "top5_error_10crop", "params", "gflops")
  row = name.replace("resnet", "ResNet-").replace("ic_", "IC-")
  unit = name.startswith("ic_")
  config.paper = common.paper(
      "IC networks, Table 1", row, statistic="last", data="imagenet2012", epochs=120 if unit else 90,
      batch_size=256, seeds=1, note=None if unit else "published by others, after 90 epochs",
      **dict(zip(keys, _PAPER[name], strict=True)))
  return config
