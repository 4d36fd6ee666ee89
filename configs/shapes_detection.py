"""Detectors that learn on a CPU in minutes: coloured shapes that cover each other, drawn when they are read.

The argument names detector and backbone:

    retinanet,resnet18    retinanet,ic_resnet18    faster_rcnn,resnet18    faster_rcnn,ic_resnet18

or a study: `all`, the four one after the other. Nothing has to be downloaded or prepared. 2,000 pictures
of about 96 x 128 pixels with discs, squares, triangles, rings and crosses to train on, 200 others to test
on.

    python launch.py --config=configs/shapes_detection.py:retinanet,ic_resnet18
    python -m bionets_jax.detection.predict IMAGE... \\
        --workdir=workdirs/shapes_detection-retinanet-ic_resnet18

The networks are a quarter as wide as their names say, pyramid and heads likewise; anchors and numbers of
proposals are those of small pictures. All of it is trained from its initialisation. `python
benchmarks/detection_learning.py` makes the four runs and tells what they reach.

Smoke variant, a few steps: ...py:retinanet,resnet18,smoke
"""

import ml_collections

from bionets_jax.training.config import detection_config
from configs import common

_SMALL = {
    "retinanet": dict(anchor_scale=2.0, channels=64, tower_depth=2),
    "faster_rcnn": dict(anchor_scale=4.0, channels=64, width=128, proposals_train=200, proposals_test=100,
                        anchor_samples=64, region_samples=64),
}
_RUNS = tuple(f"{kind},{unit}resnet18" for kind in _SMALL for unit in ("", "ic_"))


def get_config(argument: str = "retinanet,ic_resnet18") -> ml_collections.ConfigDict:
  return common.network_or_study(argument, _RUNS, {"all": ("Detectors on shapes", _RUNS)}, _run)


def _run(argument: str) -> ml_collections.ConfigDict:
  kind, backbone = argument.split(",")
  config = detection_config()
  config.detector.kind = kind
  config.detector.options = ml_collections.ConfigDict(_SMALL[kind])
  config.model.name = backbone
  config.model.options = ml_collections.ConfigDict(
      dict(width=16) | (common.IC if backbone.startswith("ic_") else {}))
  config.frozen, config.batch_norm = "", "global"
  config.data.name = "generated/shapes"
  config.data.train_transform = "flip|letterbox(96, 128)"
  config.data.eval_transform = "letterbox(96, 128)"
  config.data.mean, config.data.std = (0.5,), (0.25,)
  config.batch_size = 16
  config.duration = "10 epochs"
  # With SGD a detector without pretrained weights takes several times as many epochs.
  config.optimizer.update(kind="rmsprop", momentum=0.9, rho=0.99, epsilon=1e-6, weight_decay=0.0)
  config.schedule.kind, config.schedule.lr, config.schedule.warmup = "cosine", 2e-4, "1 epochs"
  config.eval_every, config.log_every = "5 epochs", "62 steps"
  return config
