"""IC networks, Table 2: IC-EfficientNets from a pretrained EfficientNet by weak logit distillation (WLD).

The argument names the student; the paper's 1-crop top-1/top-5 errors in percent on ImageNet:

    argument   pixels   parameters: teacher   student    error: teacher    student
    b0            224             5,288,548    6,775,316    23.7 / 6.8   23.6 / 6.7
    b1            240             7,794,184   10,245,087    21.2 / 5.6   21.0 / 5.5
    b2            260             9,109,994   12,018,321    20.2 / 5.1   20.1 / 5.0

(the student's with one learned alpha for each of its IC layers; the teachers are published weights, not
runs of the authors) or the study `table2`, all three.

    python launch.py --config=configs/ic_efficientnet_wld.py:b0 --config.data.dir=DIR \\
        --config.teacher.weights=hf://timm/tf_efficientnet_b0.in1k

In the study each run has its teacher (--config.runs.ic_efficientnet_b1.teacher.weights=... and so on) and
TFDS_DATA_DIR=DIR in the environment says where the data are. ImageNet must lie there in ArrayRecord form; if
it does not, the error names the command that prepares it. The teacher is such an address,
downloaded once, or torchvision://EfficientNet_B0_Weights.IMAGENET1K_V1; a file of timm, torchvision or Keras;
or the workdir of a finished run. Its network and the student have to be of one flavour (padding, epsilon of
the batch norms), which is the student's option:

    weights                                                         --config.model.options.flavour
    timm's tf_efficientnet_b0, those that Google published          tf (the default here)
    keras.applications' EfficientNetB0                              tf
    torchvision's efficientnet_b0                                   torchvision
    timm's own efficientnet_b0                                      torchvision

Another flavour is refused, but for a file of timm without its config.json beside it: the keys of timm's two
are the same, so there the option has to be right.

    python -m bionets_jax.evaluate hf://timm/tf_efficientnet_b0.in1k --data=imagenet2012 --split=validation

measures it, on images prepared as timm does. Which of the published weights were its teachers the paper does
not say.

30 epochs of 1.28 million images. Not run at full length here: no number of ours stands beside the paper's
yet.

The paper gives: 30 epochs, rate 1e-3 divided by 10 every 10, lambda from 0.9 to 0.1, tolerance e = 0.005,
alpha from 0, random W'. It does not say where in an EfficientNet the IC layers are: here, as in its
MobileNet, around each depthwise convolution together with the project convolution behind it
(--config.model.options.ic_placement=depthwise for the depthwise convolutions alone, which adds 0.2 % of
parameters, not 28 %). It leaves open as well: the optimiser (here SGD with momentum 0.9 and weight
decay 1e-4, batch 256, as for its ResNets), augmentation (here random resized crop and flip; evaluation on the
central 87.5 %, bicubic, as is usual for EfficientNets), dropout (here the teacher's), the temperature (4),
the shape of lambda (linear), the reading of Eq. 10 (KL, see losses.wld_loss), one alpha a layer or a
network (a layer).

Smoke variant, a few steps of the same code with a teacher of its own and without any data: ...py:b0,smoke
"""

import ml_collections

from bionets_jax.training.config import wld_config
from configs import common

# size: pixels, shorter side before the central crop; the paper's top-1 and top-5, and its teacher's
_PAPER = {"b0": (224, 256, 23.6, 6.7, 23.7, 6.8), "b1": (240, 274, 21.0, 5.5, 21.2, 5.6),
          "b2": (260, 297, 20.1, 5.0, 20.2, 5.1)}


def get_config(argument: str = "b0") -> ml_collections.ConfigDict:
  choice, smoke = common.choose(argument, (*_PAPER, "table2"))
  if choice == "table2":
    config = common.study("IC networks, Table 2, EfficientNets, weak logit distillation",
                          {f"ic_efficientnet_{size}": _run(size) for size in _PAPER})
  else:
    config = _run(choice)
  return common.smoke(config) if smoke else config


def _run(size: str) -> ml_collections.ConfigDict:
  config = common.imagenet(f"ic_efficientnet_{size}", common.IC_GROWN | dict(flavour="tf"),
                           config=wld_config())
  pixels, shorter, top1, top5, teacher_top1, teacher_top5 = _PAPER[size]
  config.data.train_transform = f"random_resized_crop({pixels}, bicubic)|flip"
  config.data.eval_transform = f"resize({shorter}, bicubic)|center_crop({pixels})"
  config.duration = "30 epochs"
  config.schedule.lr = 1e-3
  config.schedule.boundaries = (10, 20)
  config.paper = common.paper(
      "IC networks, Table 2", f"IC-EfficientNet-B{size[1:]}", top1_error=top1, top5_error=top5,
      teacher_top1_error=teacher_top1, teacher_top5_error=teacher_top5, statistic="last",
      data="imagenet2012", epochs=30, seeds=1)
  return config
