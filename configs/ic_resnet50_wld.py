"""IC networks, Tables 2 and 3: IC-ResNets from a pretrained ResNet by weak logit distillation (WLD).

The argument names the student; the paper's 1-crop top-1/top-5 errors in percent on ImageNet:

    argument   student         teacher    parameters     error
    18         ic_resnet18     resnet18   12,917,816     28.82 / 9.98   Table 2
    34         ic_resnet34     resnet34   24,155,720     25.78 / 8.02   Table 2
    50         ic_resnet50     resnet50   26,822,072     23.07 / 6.67   Table 2 (10-crop: 21.75 / 5.92)
    50_b       ic_resnet50_b   resnet50   31,159,112     23.02 / 6.66   Table 3 (IC in 3x3, conv1)
    50_c       ic_resnet50_c   resnet50   36,219,224     22.96 / 6.65   Table 3 (and in conv3)

(parameters include one learned alpha for each IC layer)

    python launch.py --config=configs/ic_resnet50_wld.py --config.data.dir=DIR \\
        --config.teacher.weights=resnet50.safetensors

ImageNet must lie in DIR in ArrayRecord form; if it does not, the error names the command that
prepares it. The teacher is a torchvision-layout .safetensors or .pth file (for torchvision's ResNet-50,
`torch.save(torchvision.models.resnet50(weights="IMAGENET1K_V1").state_dict(), "resnet50.pth")`) or the
workdir of a finished run. 30 epochs of 1.28 million images. Not run at full length here: no number of ours
stands beside the paper's yet.

The paper gives: 30 epochs, rate 1e-3 divided by 10 every 15, lambda from 0.9 to 0.1, tolerance e = 0.005,
alpha from 0, random W'. It leaves open: the temperature (here 4), the shape of lambda (here linear), the
reading of Eq. 10 (here KL, see losses.wld_loss), batch and augmentation (here as for Table 1), one alpha a
layer or a network (here a layer).

Smoke variant, a few steps of the same code on a CPU: ...py:50,smoke
"""

import ml_collections

from bionets_jax.training.config import wld_config

_STUDENTS = {"18": "ic_resnet18", "34": "ic_resnet34", "50": "ic_resnet50",
             "50_b": "ic_resnet50_b", "50_c": "ic_resnet50_c"}
_PAPER = {
    "18": dict(table="IC networks, Table 2", top1_error=28.82, top5_error=9.98),
    "34": dict(table="IC networks, Table 2", top1_error=25.78, top5_error=8.02),
    "50": dict(table="IC networks, Table 2", top1_error=23.07, top5_error=6.67),
    "50_b": dict(table="IC networks, Table 3", top1_error=23.02, top5_error=6.66),
    "50_c": dict(table="IC networks, Table 3", top1_error=22.96, top5_error=6.65),
}


def get_config(argument: str = "50") -> ml_collections.ConfigDict:
  variant, *rest = argument.split(",")
  if variant not in _STUDENTS or rest not in ([], ["smoke"]):
    raise ValueError(f"argument {argument!r}: give one of {', '.join(_STUDENTS)}, and ',smoke' for a trial")
  config = wld_config()
  config.model.name = _STUDENTS[variant]
  config.model.options = ml_collections.ConfigDict(dict(alpha="learned", adjust_init="scaled"))
  config.data.name = "imagenet2012"
  config.data.eval_split = "validation"
  config.data.train_transform = "random_resized_crop(224)|flip"
  config.data.eval_transform = "resize(256)|center_crop(224)"
  config.batch_size = 256
  config.duration = "30 epochs"
  config.schedule.lr = 1e-3
  config.schedule.boundaries = (15,)
  config.paper = ml_collections.ConfigDict(_PAPER[variant])
  if rest:
    config.data.train_transform = "random_resized_crop(64)|flip"
    config.data.eval_transform = "resize(72)|center_crop(64)"
    config.data.workers = 0
    config.batch_size = 8
    config.duration = "4 steps"
    config.log_every = "1 steps"
  return config
