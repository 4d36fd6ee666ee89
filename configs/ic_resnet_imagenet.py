"""IC networks, Table 1: IC-ResNets trained from scratch on ImageNet, and their plain baselines.

The argument names the network; the paper's 1-crop (and 10-crop) top-1/top-5 errors in percent:

    argument      parameters   1-crop          10-crop
    resnet18      11,689,512   30.24 / 10.92   27.88 / -       (the baselines' numbers are published
    resnet34      21,797,672   26.70 /  8.58   24.52 / 7.46     ones, not runs of the authors)
    resnet50      25,557,032   23.85 /  7.13   22.85 / 6.71
    ic_resnet18   12,917,800   28.56 /  9.80   26.69 / 8.56
    ic_resnet34   24,155,688   25.55 /  7.90   23.49 / 6.86
    ic_resnet50   26,822,056   23.20 /  6.72   21.90 / 6.08

    python launch.py --config=configs/ic_resnet_imagenet.py:ic_resnet50 --config.data.dir=DIR

ImageNet must lie in DIR in ArrayRecord form; if it does not, the error names the command that
prepares it. 120 epochs of 1.28 million images. Not run at full length here: no number of ours stands
beside the paper's yet.

The paper gives: SGD with momentum 0.9 and weight decay 1e-4, batch 256, 120 epochs, rate 0.1 divided
by 10 every 30 epochs. It leaves open: augmentation (here torchvision's: random resized crop, flip),
which parameters decay (here all, as in PyTorch), BatchNorm over several GPUs (here global), and the
initialisation of W' (here std(W) / k).

Smoke variant, a few steps of the same code on a CPU: ...py:ic_resnet18,smoke
"""

import ml_collections

from bionets_jax.training.config import classification_config

_PAPER = {  # Table 1: 1-crop top-1 and top-5, 10-crop top-1 and top-5; parameters in millions, GFLOPs
    "resnet18": (30.24, 10.92, 27.88, None, 11.7, 1.82),
    "resnet34": (26.70, 8.58, 24.52, 7.46, 21.8, 3.68),
    "resnet50": (23.85, 7.13, 22.85, 6.71, 25.6, 4.12),
    "ic_resnet18": (28.56, 9.80, 26.69, 8.56, 12.9, 2.01),
    "ic_resnet34": (25.55, 7.90, 23.49, 6.86, 24.2, 4.07),
    "ic_resnet50": (23.20, 6.72, 21.90, 6.08, 26.8, 4.33),
}


def get_config(argument: str = "ic_resnet50") -> ml_collections.ConfigDict:
  name, *rest = argument.split(",")
  if name not in _PAPER or rest not in ([], ["smoke"]):
    raise ValueError(f"argument {argument!r}: give one of {', '.join(_PAPER)}, and ',smoke' for a trial")
  config = classification_config()
  config.model.name = name
  if name.startswith("ic_"):
    config.model.options = ml_collections.ConfigDict(dict(alpha="1.0", adjust_init="scaled"))
  config.data.name = "imagenet2012"
  config.data.eval_split = "validation"
  config.data.train_transform = "random_resized_crop(224)|flip"
  config.data.eval_transform = "resize(256)|center_crop(224)"
  config.batch_size = 256
  config.duration = "120 epochs"
  config.schedule.lr = 0.1
  config.schedule.boundaries = (30, 60, 90)
  keys = ("top1_error", "top5_error", "top1_error_10crop", "top5_error_10crop", "params_M", "gflops")
  config.paper = ml_collections.ConfigDict(
      dict(table="IC networks, Table 1", **{
          k: v for k, v in zip(keys, _PAPER[name], strict=True) if v is not None}))
  if rest:
    config.data.train_transform = "random_resized_crop(64)|flip"
    config.data.eval_transform = "resize(72)|center_crop(64)"
    config.data.workers = 0
    config.batch_size = 8
    config.duration = "4 steps"
    config.log_every = "1 steps"
  return config
