"""The families of published checkpoints: what is called how in each of them, and what belongs to it.

A layout is one table of (our module path, their module name, kind of module). Patterns stand for
numbers: `stage{s}_block{b}/conv{i}` is `layer{s}.{b}.conv{i}`. The first row that fits holds.
"""

import re

from bionets_jax.weights import preprocessing as prep
from bionets_jax.weights.families_keras import KERAS_EFFICIENTNET
from bionets_jax.weights.family import Flavour, Layout

_RESNET = (
    ("stem_conv", "conv1", "conv"),
    ("stem_bn", "bn1", "norm"),
    ("stage{s}_block{b}/conv{i}", "layer{s}.{b}.conv{i}", "conv"),
    ("stage{s}_block{b}/bn{i}", "layer{s}.{b}.bn{i}", "norm"),
)
_TORCHVISION_RESNET = _RESNET + (
    ("stage{s}_block{b}/shortcut_conv", "layer{s}.{b}.downsample.0", "conv"),
    ("stage{s}_block{b}/shortcut_bn", "layer{s}.{b}.downsample.1", "norm"),
    ("head", "fc", "dense"),
)
_RESNET_MARKS = ("conv1.weight", "bn1.running_var", "layer4.0.conv1.weight")


def _torchvision_efficientnet():
  """A block is a sequence, in which the first stage lacks the expansion: there all numbers are one lower."""
  rows = [("stem_conv", "features.0.0", "conv"), ("stem_bn", "features.0.1", "norm"),
          ("top_conv", "features.8.0", "conv"), ("top_bn", "features.8.1", "norm"),
          ("head", "classifier.1", "dense")]
  for stage, first in (("1", 0), ("{s}", 1)):
    ours, theirs = f"stage{stage}_block{{b}}", f"features.{stage}.{{b}}.block"
    if first:
      rows += [(f"{ours}/expand_conv", f"{theirs}.0.0", "conv"),
               (f"{ours}/expand_bn", f"{theirs}.0.1", "norm")]
    rows += [(f"{ours}/depthwise_conv", f"{theirs}.{first}.0", "conv"),
             (f"{ours}/depthwise_bn", f"{theirs}.{first}.1", "norm"),
             (f"{ours}/se/reduce_conv", f"{theirs}.{first + 1}.fc1", "conv with bias"),
             (f"{ours}/se/expand_conv", f"{theirs}.{first + 1}.fc2", "conv with bias"),
             (f"{ours}/project_conv", f"{theirs}.{first + 2}.0", "conv"),
             (f"{ours}/project_bn", f"{theirs}.{first + 2}.1", "norm")]
  return tuple(rows)


def _timm_efficientnet():
  """Stages are counted from 0; in the first, where nothing expands, conv_pw is what projects."""
  rows = [("stem_conv", "conv_stem", "conv"), ("stem_bn", "bn1", "norm"), ("top_conv", "conv_head", "conv"),
          ("top_bn", "bn2", "norm"), ("head", "classifier", "dense")]
  for stage in range(1, 8):
    ours, theirs = f"stage{stage}_block{{b}}", f"blocks.{stage - 1}.{{b}}"
    names = {"depthwise": "dw", "project": "pw"} if stage == 1 else {
        "expand": "pw", "depthwise": "dw", "project": "pwl"}
    for i, (part, short) in enumerate(names.items(), start=1):
      rows += [(f"{ours}/{part}_conv", f"{theirs}.conv_{short}", "conv"),
               (f"{ours}/{part}_bn", f"{theirs}.bn{i}", "norm")]
    rows += [(f"{ours}/se/{part}_conv", f"{theirs}.se.conv_{part}", "conv with bias")
             for part in ("reduce", "expand")]
  return tuple(rows)


def _torchvision_vgg(shapes):
  """A convolution, its norm and its ReLU have a number each, and so has the max-pool behind a stage.

  The dense layers have rows where they are three and the first stands on 7 x 7 pixels: torchvision has no
  others, and with 14 x 14 the order of its inputs would be another.
  """
  sizes, channels = {1: 1}, 0  # the stem is the first of stage 1
  hidden: dict = {}
  for (_, *modules, leaf), shape in shapes.items():
    if match := re.fullmatch(r"stage(\d+)_block(\d+)", modules[0]):
      stage, block = map(int, match.groups())
      sizes[stage] = max(sizes.get(stage, 0), block + 1)
    if modules[0].startswith("hidden"):
      hidden |= {modules[0]: shape[0]} if leaf == "kernel" else {}
    elif leaf == "kernel" and modules[0] != "head":
      channels = max(channels, shape[-1])  # the last stage's: no stage has less than the one before
  rows, number = [], 0
  for stage in sorted(sizes):
    for block in range(sizes[stage]):
      ours, theirs = f"stage{stage}_block{block}", f"features.{number + 3 * block}"
      rows += [(f"{ours}/conv", theirs, "conv with bias"),
               (f"{ours}/bn", f"features.{number + 3 * block + 1}", "norm")]
    number += 3 * sizes[stage] + 1
  if not shapes or (hidden.keys() == {"hidden1", "hidden2"} and hidden["hidden1"] == 49 * channels):
    rows += [("hidden1", "classifier.0", "dense on 7x7"), ("hidden2", "classifier.3", "dense"),
             ("head", "classifier.6", "dense")]
  return tuple(rows)


def _timm_mobilenetv1():
  """Stages are counted from 0."""
  rows = [("stem_conv", "conv_stem", "conv"), ("stem_bn", "bn1", "norm"), ("head", "classifier", "dense")]
  for stage in range(1, 6):
    ours, theirs = f"stage{stage}_block{{b}}", f"blocks.{stage - 1}.{{b}}"
    for i, (part, short) in enumerate((("depthwise", "dw"), ("pointwise", "pw")), start=1):
      rows += [(f"{ours}/{part}_conv", f"{theirs}.conv_{short}", "conv"),
               (f"{ours}/{part}_bn", f"{theirs}.bn{i}", "norm")]
  return tuple(rows)


LAYOUTS = (
    Layout(
        name="torchvision",
        marks=_RESNET_MARKS,
        modules=_TORCHVISION_RESNET,
        preprocessing=prep.TORCHVISION,
    ),
    Layout(
        name="pytorch_resnet_cifar10",
        marks=("conv1.weight", "bn1.running_var", "layer3.0.conv1.weight"),
        without=("layer4.0.conv1.weight", "fc.weight"),
        modules=_RESNET + (("head", "linear", "dense"),),
        preprocessing=prep.CIFAR,
    ),
    Layout(
        name="timm_seresnet",
        marks=_RESNET_MARKS + ("layer1.0.se.fc1.weight",),
        modules=_TORCHVISION_RESNET
        + (
            ("stage{s}_block{b}/se/reduce_conv", "layer{s}.{b}.se.fc1", "conv with bias"),
            ("stage{s}_block{b}/se/expand_conv", "layer{s}.{b}.se.fc2", "conv with bias"),
        ),
        preprocessing=prep.BICUBIC,
    ),
    Layout(
        name="torchvision_efficientnet",
        marks=("features.0.0.weight", "features.1.0.block.1.fc1.weight", "features.8.0.weight"),
        modules=_torchvision_efficientnet(),
        preprocessing=prep.BICUBIC,
        flavours={
            # torchvision's B5 to B7 are converted from the original weights, and keep their epsilon.
            "torchvision": Flavour(
                "torchvision's", prep.TORCHVISION_EFFICIENTNETS, 1e-5,
                {f"efficientnet_b{i}": 1e-3 for i in (5, 6, 7)}),
        },
    ),
    Layout(
        name="timm_efficientnet",
        marks=("conv_stem.weight", "bn2.running_var", "blocks.0.0.se.conv_reduce.weight", "conv_head.weight"),
        modules=_timm_efficientnet(),
        preprocessing=prep.BICUBIC,
        flavours={
            "tf": Flavour("timm's tf_efficientnet_*", prep.TF_EFFICIENTNETS, 1e-3),
            "torchvision": Flavour("timm's own efficientnet_*", prep.TIMM_EFFICIENTNETS, 1e-5),
        },
    ),
    Layout(
        name="torchvision_vgg",
        marks=("features.0.weight", "features.1.running_var", "classifier.0.weight", "classifier.3.weight"),
        modules=(
            ("stem_conv", "features.0", "conv with bias"),
            ("stem_bn", "features.1", "norm"),
        ),
        numbered=_torchvision_vgg,
        preprocessing=prep.TORCHVISION,
    ),
    Layout(
        name="timm_mobilenetv1",
        marks=("conv_stem.weight", "bn1.running_var", "blocks.0.0.conv_dw.weight", "blocks.1.0.bn2.running_var"),
        without=("conv_head.weight", "blocks.0.0.se.conv_reduce.weight", "blocks.1.0.conv_pwl.weight"),
        modules=_timm_mobilenetv1(),
        preprocessing=prep.TIMM_MOBILENETV1,
        fields={"stem_stride": 2, "act": "relu6"},
    ),
    KERAS_EFFICIENTNET,
)
