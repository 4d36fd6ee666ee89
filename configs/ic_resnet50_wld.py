"""IC networks, Tables 2 and 3: IC-ResNets from a pretrained ResNet by weak logit distillation (WLD).

The argument names the student; the paper's 1-crop top-1/top-5 errors in percent on ImageNet:

    argument   student         teacher    parameters     error
    18         ic_resnet18     resnet18   12,917,816     28.82 / 9.98   Table 2
    34         ic_resnet34     resnet34   24,155,720     25.78 / 8.02   Table 2
    50         ic_resnet50     resnet50   26,822,072     23.07 / 6.67   Table 2 (10-crop: 21.75 / 5.92)
    50_b       ic_resnet50_b   resnet50   31,159,112     23.02 / 6.66   Table 3 (IC in 3x3, conv1)
    50_c       ic_resnet50_c   resnet50   36,219,224     22.96 / 6.65   Table 3 (and in conv3)

(parameters include one learned alpha for each IC layer; Table 3 prints the student 50 with 23.07 / 6.68)
or a study, `table2` (18, 34 and 50) or `table3` (50, 50_b and 50_c). Table 2's EfficientNets are in
configs/ic_efficientnet_wld.py.

    python launch.py --config=configs/ic_resnet50_wld.py:50 --config.data.dir=DIR \\
        --config.teacher.weights=torchvision://ResNet50_Weights.IMAGENET1K_V1
    python -m bionets_jax.evaluate WORKDIR --transform='resize(256)|ten_crop(224)'

The second command gives the 10-crop errors. In a study each run has its teacher
(--config.runs.ic_resnet18.teacher.weights=torchvision://ResNet18_Weights.IMAGENET1K_V1 ...) and TFDS_DATA_DIR=DIR in the environment says
where the data are. ImageNet must lie there in ArrayRecord form; if it does not, the error names the command
that prepares it. The teacher is such an address, downloaded once, or hf://timm/resnet50.tv_in1k; torchvision's
or timm's .safetensors or .pth file; or the workdir of a finished run. 30 epochs of 1.28 million images. Not run at full length here: no number of ours
stands beside the paper's yet.

The paper gives: 30 epochs, rate 1e-3 divided by 10 every 15, lambda from 0.9 to 0.1, tolerance e = 0.005,
alpha from 0, random W'. It leaves open: the temperature (here 4), the shape of lambda (here linear), the
reading of Eq. 10 (here KL, see losses.wld_loss), batch and augmentation (here as for Table 1), one alpha a
layer or a network (here a layer), and whether Table 3's networks were trained this way (here so: its first
row is Table 2's).

Smoke variant, a few steps of the same code with a teacher of its own and without any data: ...py:50,smoke
"""

import ml_collections

from bionets_jax.training.config import wld_config
from configs import common

# student: table, row, top-1 and top-5; 10-crop top-1 and top-5; parameters as printed, GFLOPs
_PAPER = {
    "18": ("Table 2", "IC-ResNet-18", 28.82, 9.98, None, None, None, None),
    "34": ("Table 2", "IC-ResNet-34", 25.78, 8.02, None, None, None, None),
    "50": ("Table 2", "IC-ResNet-50", 23.07, 6.67, 21.75, 5.92, "26.8 M", 4.33),
    "50_b": ("Table 3", "IC-ResNet-50-B", 23.02, 6.66, None, None, "31.2 M", 5.27),
    "50_c": ("Table 3", "IC-ResNet-50-C", 22.96, 6.65, None, None, "36.2 M", 6.10),
}
_STUDIES = {"table2": ("18", "34", "50"), "table3": ("50", "50_b", "50_c")}


def get_config(argument: str = "50") -> ml_collections.ConfigDict:
  choice, smoke = common.choose(argument, (*_PAPER, *_STUDIES))
  if choice in _STUDIES:
    config = common.study(f"IC networks, T{choice[1:-1]} {choice[-1]}, weak logit distillation",
                          {f"ic_resnet{student}": _run(student) for student in _STUDIES[choice]})
  else:
    config = _run(choice)
  return common.smoke(config) if smoke else config


def _run(student: str) -> ml_collections.ConfigDict:
  config = common.imagenet(f"ic_resnet{student}", common.IC_GROWN, config=wld_config())
  config.duration = "30 epochs"
  config.schedule.lr = 1e-3
  config.schedule.boundaries = (15,)
  table, row, top1, top5, top1_10, top5_10, size, gflops = _PAPER[student]
  config.paper = common.paper(
      f"IC networks, {table}", row, top1_error=top1, top5_error=top5, top1_error_10crop=top1_10,
      top5_error_10crop=top5_10, params=size, gflops=gflops, statistic="last",
      data="imagenet2012", epochs=30, seeds=1)
  return config
