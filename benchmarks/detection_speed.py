"""Training steps of detectors beside torchvision's: Faster R-CNN and RetinaNet with ResNet-50, SGD with momentum.

    pip install torch torchvision
    python benchmarks/detection_speed.py [--only=faster_rcnn|retinanet] [--batch=N] [--size=HEIGHTxWIDTH]
                                         [--rounds=11] [--steps=N] [--json=FILE]

Ours is the trainer's step with `layout='torchvision'`, compiled and donated as the trainer does it;
torchvision's is its own module, eager, channels last. Both have the same random weights and the same batch of
uint8 images of one size, which are normalised in the step and not resized; both keep the stem, stage 1 and all
batch norms as they are. On a GPU both compute in bfloat16, PyTorch under autocast with the fused optimiser; on
a CPU in float32.

First the losses of one step are compared, RetinaNet's to rounding and Faster R-CNN's, which samples at random,
roughly. Then all candidates are timed in one interleaved run. Ratios are medians of the ratios within a round,
with quartiles.

What it does not show: input pipelines, torchvision's own resizing, and machines other than this one.
"""

import argparse
import functools
import os
import statistics
import sys
import tempfile
from typing import Any

# Before jax and torch are, since it sets how torch's threads wait.
from twins import DEVICE, torch  # isort: split

import jax
import ml_collections
import numpy as np
import timing
from networks import repeat
from train_steps import LEARNING_RATE

try:
  from torchvision.models import resnet50
  from torchvision.models.detection import FasterRCNN, RetinaNet
  from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
  from torchvision.models.detection.image_list import ImageList
  from torchvision.models.detection.transform import GeneralizedRCNNTransform
  from torchvision.ops.feature_pyramid_network import LastLevelP6P7
  from torchvision.ops.misc import FrozenBatchNorm2d
except ModuleNotFoundError:
  sys.exit("error: torchvision is missing, and this comparison needs it: pip install torchvision==0.28.0")

from jax.sharding import NamedSharding, PartitionSpec

from bionets_jax.detection import DETECTORS, from_torchvision
from bionets_jax.training.config import detection_config
from bionets_jax.training.devices import replicated
from bionets_jax.training.program import jit_train_step
from bionets_jax.training.setup import make_setup

CLASSES = 20  # of VOC
OBJECTS, ROOM = 5, 8  # in an image, and what a batch has room for
FROZEN = r"^backbone/(stem|stage1)|^backbone/.*(bn\d?|_bn)/"
TRAINED_STAGES = 3
TOLERANCE = {"retinanet": 1e-2, "faster_rcnn": 0.1}
TOLERANCE_HALF = 0.1  # in bfloat16


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", choices=DETECTORS, default="")
  parser.add_argument("--batch", type=timing.positive, default=2 if DEVICE == "cpu" else 16,
                      help="images of a step; default 2 on a CPU, 16 on a GPU")
  parser.add_argument("--size", type=_size, default=(256, 320) if DEVICE == "cpu" else (608, 832),
                      help="of the images, multiples of 32; default 256x320 on a CPU, 608x832 on a GPU")
  parser.add_argument("--rounds", type=timing.positive, default=11)
  parser.add_argument("--steps", type=timing.positive, default=1 if DEVICE == "cpu" else 10,
                      help="timed together; default 1 on a CPU, 10 on a GPU")
  parser.add_argument("--json", metavar="FILE")
  options = parser.parse_args()

  content: dict[str, Any] = {
      "machine": timing.machine(), "rounds": options.rounds, "steps": options.steps, "batch": options.batch,
      "size": options.size, "detectors": {}}
  print(", ".join(f"{key} {value}" for key, value in content["machine"].items()), flush=True)
  calls = {}
  for kind in [options.only] if options.only else DETECTORS:
    batch = make_batch(options.batch, options.size)
    theirs = TorchStep(kind, batch)
    ours = OurStep(kind, batch, theirs.net)
    content["detectors"][kind] = {"losses": check(kind, ours, theirs)}
    calls |= {f"{kind} {side}": functools.partial(repeat, step, options.steps)
              for side, step in (("ours", ours), ("torchvision", theirs))}
  seconds = timing.interleaved(calls, options.rounds, timing.wait_for)

  rows = [["detector", "", "ms", "images/s", "vs torchvision", "quartiles"]]
  for kind, one in content["detectors"].items():
    of = timing.ratio(seconds, f"{kind} ours", f"{kind} torchvision")
    one["vs torchvision"] = of
    for side in ("ours", "torchvision"):
      step = statistics.median(seconds[f"{kind} {side}"]) / options.steps
      one[side] = {"ms": 1e3 * step, "images per second": options.batch / step}
      rows.append([kind, side, f"{1e3 * step:.1f}", f"{options.batch / step:.2f}", "", ""])
      if side == "ours":
        rows[-1][-2:] = [f"{of['median']:.2f}", f"{of['low']:.2f}-{of['high']:.2f}"]
  print("\n" + timing.table(rows) + "\n", flush=True)
  if options.json:
    timing.write(options.json, content)
  return 0


def make_batch(number: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
  """Of noise, with objects of 32 to 128 pixels."""
  random = np.random.default_rng(0)
  sides = random.uniform(32, 128, (number, OBJECTS, 2))
  low = random.uniform(0, 1, (number, OBJECTS, 2)) * (np.array(size[::-1]) - sides)
  boxes, labels = np.zeros((number, ROOM, 4), np.float32), np.zeros((number, ROOM), np.int32)
  boxes[:, :OBJECTS] = np.concatenate([low, low + sides], -1)
  labels[:, :OBJECTS] = random.integers(0, CLASSES, (number, OBJECTS))
  present = np.tile(np.arange(ROOM) < OBJECTS, (number, 1))
  return {
      "image": random.integers(0, 256, (number, *size, 3), np.uint8), "boxes": boxes, "label": labels,
      "present": present, "difficult": np.zeros_like(present), "size": np.tile(np.float32(size), (number, 1)),
      "scale": np.ones((number, 2), np.float32), "index": np.arange(number, dtype=np.int32)}


class Ready(GeneralizedRCNNTransform):
  """Takes the batch as it is: no resizing, no padding, no copy."""

  def __init__(self):
    super().__init__(1, 1, [0.0], [1.0])
    self.images: torch.Tensor

  def forward(self, images, targets=None):
    return ImageList(self.images, [tuple(image.shape[1:]) for image in images]), targets


class TorchStep:
  """A training step of torchvision's module: normalisation, forward, losses, backward, SGD."""

  def __init__(self, kind: str, batch: dict[str, np.ndarray]):
    torch.manual_seed(0)
    # With all scales at 1 the features would double with each block.
    body = resnet50(norm_layer=FrozenBatchNorm2d)
    for name, buffer in body.named_buffers():
      if name.endswith("bn3.weight"):
        buffer.fill_(0.5)
    if kind == "retinanet":
      backbone = _resnet_fpn_extractor(
          body, TRAINED_STAGES, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
      net = RetinaNet(backbone, num_classes=CLASSES)
    else:
      net = FasterRCNN(_resnet_fpn_extractor(body, TRAINED_STAGES), num_classes=1 + CLASSES)
    net.transform = Ready()
    self.net = net.train().to(DEVICE, memory_format=torch.channels_last)
    self._images = torch.from_numpy(batch["image"]).to(DEVICE)
    background = int(kind == "faster_rcnn")  # their class 0
    self._targets = [
        {"boxes": torch.from_numpy(boxes[there]).to(DEVICE),
         "labels": torch.from_numpy(labels[there]).long().to(DEVICE) + background}
        for boxes, labels, there in zip(batch["boxes"], batch["label"], batch["present"], strict=True)]
    self._mean, self._std = (torch.tensor(x, device=DEVICE) for x in _normalisation())
    self._autocast = torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda")
    self._optimizer = torch.optim.SGD(
        [p for p in self.net.parameters() if p.requires_grad], lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4,
        fused=True if DEVICE == "cuda" else None)

  def __call__(self) -> torch.Tensor:
    self._optimizer.zero_grad(set_to_none=True)
    images = ((self._images / 255 - self._mean) / self._std).permute(0, 3, 1, 2)  # channels last in memory
    self.net.transform.images = images
    with self._autocast:
      loss = sum(self.net(list(images), self._targets).values())
    loss.backward()
    self._optimizer.step()
    return loss.detach()


class OurStep:
  """The trainer's step, compiled ahead and with its state donated."""

  def __init__(self, kind: str, batch: dict[str, np.ndarray], net: torch.nn.Module):
    """
    Args:
      kind: of `create_detector`.
      batch: of `make_batch`.
      net: torchvision's module, whose weights it gets.
    """
    with tempfile.TemporaryDirectory() as folder:
      state = {key: value.cpu() for key, value in net.state_dict().items()}
      whole, body = (os.path.join(folder, name) for name in ("detector.pth", "resnet50.pth"))
      torch.save(state, whole)
      prefix = "backbone.body."
      torch.save({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}, body)
      _, variables = from_torchvision.load(whole, CLASSES)
      config = _config(kind, body, len(batch["image"]), batch["image"].shape[1:3])
      setup = make_setup(config, jax.devices()[:1])  # PyTorch's step has one device too
    variables = dict(variables)
    state = jax.jit(setup.init)(jax.random.key(0), setup.inherited)
    state = state.replace(params=variables.pop("params"), model_state=state.model_state | variables)
    self._state = jax.device_put(state, replicated(setup.mesh))
    self._batch = jax.device_put(batch, NamedSharding(setup.mesh, PartitionSpec("data")))
    self._seed = jax.device_put(np.uint32(0), replicated(setup.mesh))
    step = jit_train_step(config, setup)
    self._compiled = step.lower(self._state, setup.task.frozen, [self._batch], [self._seed]).compile()
    self._frozen = setup.task.frozen

  def __call__(self) -> dict[str, jax.Array]:
    """A step; its metrics."""
    self._state, metrics = self._compiled(self._state, self._frozen, [self._batch], [self._seed])
    return metrics


def _config(kind: str, weights: str, number: int, size: tuple[int, int]) -> ml_collections.ConfigDict:
  config = detection_config()
  config.detector.kind, config.detector.options = kind, ml_collections.ConfigDict({"layout": "torchvision"})
  config.model.name, config.model.weights, config.frozen = "resnet50", weights, FROZEN
  config.data.name, config.data.workers = "generated/voc", 0
  config.data.train_split, config.data.eval_split = "2007/train", "2007/test"
  config.data.train_transform = config.data.eval_transform = f"letterbox({min(size)}, {max(size)})"
  config.batch_size = number
  config.schedule.kind, config.schedule.lr = "constant", LEARNING_RATE
  return config


def _normalisation() -> tuple[tuple[float, ...], tuple[float, ...]]:
  data = detection_config().data
  return data.mean, data.std


def check(kind: str, ours: OurStep, theirs: TorchStep) -> dict[str, float]:
  """The losses of the first step; leaves if they differ."""
  metrics = ours()
  found = {"ours": float(metrics["loss"] / metrics["count"]), "torchvision": float(theirs())}
  tolerance = TOLERANCE[kind] if DEVICE == "cpu" else max(TOLERANCE[kind], TOLERANCE_HALF)
  timing.check(kind, {"ours": found["ours"]}, found["torchvision"], tolerance)
  print(f"{kind}: losses {found['ours']:.5f} (ours), {found['torchvision']:.5f} (torchvision)", flush=True)
  return found


def _size(text: str) -> tuple[int, int]:
  height, width = (timing.positive(part) for part in text.split("x"))
  if height % 32 or width % 32:
    raise ValueError
  return height, width


if __name__ == "__main__":
  sys.exit(main())
