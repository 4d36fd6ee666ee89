"""The families of published checkpoints: what is called how in each of them, and what belongs to it.

A layout is one table of (our module path, their module name, kind of module). Patterns stand for
numbers: `stage{s}_block{b}/conv{i}` is `layer{s}.{b}.conv{i}`. The first row that fits holds.
"""

import dataclasses
from collections.abc import Mapping

from bionets_jax.weights import preprocessing as prep

# PyTorch's layers: kind -> rows (our collection, our leaf, their leaf, axes of ours in theirs)
TORCH_LEAVES = {
    "conv": (("params", "kernel", "weight", (2, 3, 1, 0)),),  # OIHW -> HWIO, with groups as without
    "conv with bias": (
        ("params", "kernel", "weight", (2, 3, 1, 0)),
        ("params", "bias", "bias", (0,)),
    ),
    "norm": (
        ("params", "scale", "weight", (0,)),
        ("params", "bias", "bias", (0,)),
        ("batch_stats", "mean", "running_mean", (0,)),
        ("batch_stats", "var", "running_var", (0,)),
    ),
    "dense": (
        ("params", "kernel", "weight", (1, 0)),  # (out, in) -> (in, out)
        ("params", "bias", "bias", (0,)),
    ),
}


@dataclasses.dataclass(frozen=True)
class Flavour:
  """What the networks of one flavour of EfficientNet have besides their weights.

  Attributes:
    of: whose they are, for messages.
    inputs: network -> how its images are prepared; '' for sizes that nobody published.
    epsilon: of the batch norms.
    other_epsilons: network -> epsilon, where it is another.
  """

  of: str
  inputs: Mapping[str, prep.Preprocessing]
  epsilon: float
  other_epsilons: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: it holds a mapping
class Layout:
  """One family of foreign checkpoints.

  Attributes:
    name: what it is called in messages and in `Pretrained.layout`.
    marks: keys that every file of the family has. Of several families whose marks a file has, it is of
      the one with the most.
    modules: rows (our path, their name, kind), kind a key of `leaves`.
    preprocessing: how its authors prepared the images, where the flavour does not say.
    leaves: what the kinds of modules hold, and how: kind -> rows (our collection, our leaf, their leaf, axes of
      ours in theirs).
    flavours: `EfficientNet.flavour` -> what else such a network needs; empty for networks without.
  """

  name: str
  marks: tuple[str, ...]
  modules: tuple[tuple[str, str, str], ...]
  preprocessing: prep.Preprocessing
  leaves: Mapping[str, tuple[tuple[str, str, str, tuple[int, ...]], ...]] = dataclasses.field(
      default_factory=lambda: TORCH_LEAVES)
  flavours: Mapping[str, Flavour] = dataclasses.field(default_factory=dict)


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
_RESNET_MARKS = ("conv1.weight", "bn1.running_var", "layer4.0.conv1.weight", "fc.weight")


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


LAYOUTS = (
    Layout(
        name="torchvision",
        marks=_RESNET_MARKS,
        modules=_TORCHVISION_RESNET,
        preprocessing=prep.TORCHVISION,
    ),
    Layout(
        name="pytorch_resnet_cifar10",
        marks=("conv1.weight", "bn1.running_var", "layer3.0.conv1.weight", "linear.weight"),
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
        marks=("features.0.0.weight", "features.1.0.block.1.fc1.weight", "features.8.0.weight",
               "classifier.1.weight"),
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
        marks=("conv_stem.weight", "bn2.running_var", "blocks.0.0.se.conv_reduce.weight", "conv_head.weight",
               "classifier.weight"),
        modules=_timm_efficientnet(),
        preprocessing=prep.BICUBIC,
        flavours={
            "tf": Flavour("timm's tf_efficientnet_*", prep.TF_EFFICIENTNETS, 1e-3),
            "torchvision": Flavour("timm's own efficientnet_*", prep.TIMM_EFFICIENTNETS, 1e-5),
        },
    ),
)

# keys that a file has -> why it is refused: networks that are not ours, although they go by a name of ours.
REFUSED = (
    (("features.0.weight", "classifier.0.weight", "classifier.6.weight"),
     "torchvision's VGG, which flattens a map of 7 x 7 and has three dense layers behind it. Ours is "
     "pytorch-cifar's, with one dense layer on the pooled features: it has no place for the other two"),
    (("layer0.conv1.weight", "layer1.0.se_module.fc1.weight", "last_linear.weight"),
     "timm's legacy SE-ResNet. Its max-pool is unpadded and its strides sit elsewhere than in ours; take one "
     "of timm's newer files (seresnet50, seresnext50_32x4d)"),
)
