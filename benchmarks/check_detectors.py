"""torchvision's detectors at full size: their weights read, run and written back.

    pip install torch==2.13.0 torchvision==0.28.0
    python benchmarks/check_detectors.py [faster_rcnn] [retinanet] [--size 256 320]

`fasterrcnn_resnet50_fpn` and `retinanet_resnet50_fpn` are made by torchvision with random weights, with statistics of
what their norms see and heads that tell proposals and anchors apart, and saved as .pth.
`bionets_jax.detection.from_torchvision.load` reads the file. Then, on the same image, both in float32:

  raw          largest difference of what the heads say, over its largest value; of Faster R-CNN's second stage on
               torchvision's proposals
  detections   of torchvision's, how many are among ours with the same label, and a score and corners (over the
               image's longer side) that differ by no more than 1e-4
  losses       largest relative difference, over all anchors and all proposals, so that nothing is drawn
  bytes        whether `to_torchvision` gives every tensor again, to the bit, but those for the background's box

Exits with 1 if 'raw' is above 1e-4, 'losses' above 1e-3 or fewer than 99 in 100 detections agree (rounding decides which
of two boxes comes first, and on which side of a threshold an overlap lies), or a byte differs. The tests compare narrow
networks in the same way, against float64.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

try:
  import torch
  import torchvision
except ModuleNotFoundError:
  sys.exit("error: torchvision is missing, and these are its networks: pip install torch==2.13.0 torchvision==0.28.0")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torchvision.models.detection.image_list import ImageList  # noqa: E402

from bionets_jax.detection.from_torchvision import load, to_torchvision  # noqa: E402
from bionets_jax.detection.types import Objects  # noqa: E402

TOLERANCE, OF_LOSSES = 1e-4, 1e-3
KINDS = {"faster_rcnn": torchvision.models.detection.fasterrcnn_resnet50_fpn,
         "retinanet": torchvision.models.detection.retinanet_resnet50_fpn}
ALL = 1_000_000  # samples, more than there are anchors: none is left out


def make(kind, image):
  """torchvision's network with numbers that are neither alike nor extreme."""
  torch.manual_seed(0)
  every = dict(rpn_batch_size_per_image=ALL, box_batch_size_per_image=ALL) if kind == "faster_rcnn" else {}
  model = KINDS[kind](weights=None, weights_backbone=None, **every)
  for module in model.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      module.momentum = None  # statistics of all that is seen
      torch.nn.init.uniform_(module.weight, 0.5, 1.5)
      torch.nn.init.normal_(module.bias, std=0.1)
  with torch.no_grad():
    model.train()
    model.backbone.body(image)
    model.eval()
    for module in model.modules():
      if isinstance(module, torch.nn.BatchNorm2d):
        module.num_batches_tracked.zero_()  # which is not read
    heads = (
        {"rpn.head.cls_logits": 1.0, "rpn.head.bbox_pred": 0.3, "roi_heads.box_predictor.cls_score": 1.5,
         "roi_heads.box_predictor.bbox_pred": 0.3} if kind == "faster_rcnn" else
        {"head.classification_head.cls_logits": 1.0, "head.regression_head.bbox_reg": 0.3})
    for name, wanted in heads.items():
      seen = []
      layer = model.get_submodule(name)
      hook = layer.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.flatten()))
      run(kind, model, image)
      hook.remove()
      layer.weight *= wanted / torch.cat(seen).std()
  return model


def run(kind, model, image):
  """(raw, detections) of one image that is not resized."""
  sizes = [tuple(image.shape[2:])]
  images = ImageList(image, sizes)
  features = model.backbone(image)
  if kind == "faster_rcnn":
    proposals, _ = model.rpn(images, features)
    found, _ = model.roi_heads(features, proposals, sizes)
    first = model.rpn.head(list(features.values()))
    second = model.roi_heads.box_predictor(model.roi_heads.box_head(
        model.roi_heads.box_roi_pool(features, proposals, sizes)))
    flat = [torch.cat([x.permute(0, 2, 3, 1).flatten() for x in part]) for part in first]
    return {"proposals": proposals[0], "first": flat, "second": [second[0], second[1][:, 4:]]}, found[0]
  features = list(features.values())
  out = model.head(features)
  anchors = model.anchor_generator(images, features)
  cells = [9 * x.shape[2] * x.shape[3] for x in features]
  found = model.postprocess_detections(
      {key: list(value.split(cells, 1)) for key, value in out.items()}, [list(a.split(cells)) for a in anchors], sizes)
  return {"first": [out["cls_logits"][0].flatten(), out["bbox_regression"][0].flatten()]}, found[0]


def losses(kind, model, image, targets):
  """torchvision's, in our order."""
  sizes = [tuple(image.shape[2:])]
  images = ImageList(image, sizes)
  features = model.backbone(image)
  if kind == "faster_rcnn":
    model.rpn.train()
    model.roi_heads.train()
    proposals, first = model.rpn(images, features, targets)
    _, second = model.roi_heads(features, proposals, sizes, targets)
    model.eval()
    return [float(x) for x in (*first.values(), *second.values())]
  features = list(features.values())
  return [float(x) for x in model.compute_loss(
      targets, model.head(features), model.anchor_generator(images, features)).values()]


def off(have, want):
  have, want = np.asarray(have).ravel(), want.numpy().ravel()
  return float(np.abs(have - want).max() / np.abs(want).max())


def agreeing(have, want, shift, side):
  """How many of torchvision's detections are among ours."""
  near = ((np.abs(np.asarray(have.scores[0])[:, None] - want["scores"].numpy()) <= TOLERANCE)
          & (np.asarray(have.labels[0])[:, None] + shift == want["labels"].numpy())
          & (np.abs(np.asarray(have.boxes[0])[:, None] - want["boxes"].numpy()).max(-1) <= TOLERANCE * side)
          & np.asarray(have.present[0])[:, None])
  return int(near.any(0).sum())


def compare(kind, size):
  pixels = np.random.RandomState(0).standard_normal((1, *size, 3)).astype(np.float32)
  pixels += np.sin(np.mgrid[:size[0], :size[1]].sum(0) / 9.0)[..., None].astype(np.float32)
  image = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
  model = make(kind, image)
  boxes = np.float32([[10, 20, 90, 140], [100, 30, 180, 90], [40, 150, 220, 250]]) * min(size) / 256
  labels = np.array([1, 7, 60])
  with torch.no_grad():
    raw, detected = run(kind, model, image)
    want = losses(kind, model, image, [{"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)}])
  with tempfile.TemporaryDirectory() as folder:
    torch.save(model.state_dict(), f"{folder}/detector.pth")
    detector, variables = load(f"{folder}/detector.pth")
  shift = int(kind == "faster_rcnn")
  if shift:
    detector = detector.clone(anchor_samples=ALL, region_samples=4 * detector.proposals_train)
  objects = Objects(jnp.asarray(boxes)[None], jnp.asarray(labels - shift)[None], jnp.ones((1, 3), bool))
  sizes = jnp.asarray([size], jnp.float32)

  @jax.jit
  def apply(variables, pixels):
    out = detector.apply(variables, pixels)
    if shift:
      second = detector.apply(variables, pixels, jnp.asarray(raw["proposals"].numpy()), method=second_stage)
      first = [jnp.concatenate([getattr(x, name).ravel() for x in out.first]) for name in ("logits", "deltas")]
    else:
      first, second = list(out), []
    return (first, second, detector.apply(variables, pixels, sizes, method="detect"),
            detector.apply(variables, pixels, objects, sizes, rng=jax.random.key(0), method="losses"))

  def second_stage(self, pixels, proposals):
    return list(self._classify(self.features(pixels, False), proposals[None]))

  first, second, found, have = apply(variables, pixels)
  names = ("objectness", "proposals", "classes", "boxes") if shift else ("classes", "boxes")
  written, state = to_torchvision(detector, variables), model.state_dict()
  same = written.keys() == state.keys() and all(
      np.array_equal(written[key][4:], value[4:]) if "box_predictor.bbox_pred" in key else
      written[key].tobytes() == value.numpy().tobytes() for key, value in state.items())
  result = {
      "raw": max(off(x, y) for x, y in zip(first + second, raw["first"] + raw.get("second", []), strict=True)),
      "agreeing": agreeing(found, detected, shift, max(size)), "detections": len(detected["scores"]),
      "losses": max(abs(float(have[name][0]) - value) / abs(value) for name, value in zip(names, want, strict=True)),
      "bytes": same}
  return result


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("kinds", nargs="*", help=f"default: {' '.join(KINDS)}")
  parser.add_argument(
      "--size", nargs=2, type=int, default=(256, 320), metavar=("HEIGHT", "WIDTH"), help="of the image")
  args = parser.parse_args()
  if unknown := set(args.kinds) - set(KINDS):
    parser.error(f"{', '.join(unknown)}: give {' or '.join(KINDS)}")
  if any(side % 32 for side in args.size):
    parser.error(f"--size {args.size[0]} {args.size[1]}: give multiples of 32, which torchvision would pad to")
  failed = False
  for kind in args.kinds or KINDS:
    found = compare(kind, tuple(args.size))
    good = (found["raw"] <= TOLERANCE and found["losses"] <= OF_LOSSES and found["agreeing"] >= 0.99 * found["detections"] > 0
            and found["bytes"])
    failed |= not good
    print(f"{kind:12} raw {found['raw']:.1e}  detections {found['agreeing']} of {found['detections']}  "
          f"losses {found['losses']:.1e}  bytes {'equal' if found['bytes'] else 'DIFFER'}  {'' if good else 'FAILED'}",
          flush=True)
  sys.exit(int(failed))


if __name__ == "__main__":
  main()
