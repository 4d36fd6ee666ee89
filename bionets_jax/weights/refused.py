"""Files that look like one of ours by their names and hold another network."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Refused:
  """One kind of file.

  Attributes:
    why: what it is, and in what it is not ours.
    marks: keys that each such file has.
    without: keys that none has.
  """

  why: str
  marks: tuple[str, ...]
  without: tuple[str, ...] = ()


_TIMM = ("conv_stem.weight", "conv_head.weight")
_SE = "blocks.0.0.se.conv_reduce.weight"

# The first that fits says why.
REFUSED = (
    Refused(
        "torchvision's VGG without batch normalisation. Ours has a norm behind each convolution, which these "
        "weights cannot fill; take vgg11_bn, vgg13_bn, vgg16_bn or vgg19_bn",
        ("features.0.weight", "classifier.0.weight", "classifier.6.weight"),
        ("features.1.running_var",)),
    Refused(
        "timm's VGG, whose dense layers are convolutions that see more of a large image than torchvision's; take "
        "torchvision's own file (vgg16_bn)",
        ("features.0.weight", "pre_logits.fc1.weight")),
    Refused(
        "torchvision's MobileNetV2. Ours is version 1: no inverted residual blocks; take timm's mobilenetv1_100",
        ("features.0.0.weight", "features.1.conv.0.0.weight", "features.18.0.weight")),
    Refused(
        "torchvision's MobileNetV3. Ours is version 1: no inverted residual blocks, no squeeze-and-excitation; take "
        "timm's mobilenetv1_100",
        ("features.0.0.weight", "features.1.block.0.0.weight")),
    Refused(
        "torchvision's EfficientNetV2. Ours is version 1, whose early stages have depthwise convolutions; take "
        "efficientnet_b0 to b7",
        ("features.0.0.weight", "features.1.0.block.0.0.weight"),
        ("features.1.0.block.1.fc1.weight",)),
    Refused(
        "a ResNet of pytorch-cifar, or one of pytorch_resnet_cifar10 with projections ('option B'). The latter's "
        "published networks have shortcuts without parameters, and these have convolutions in them",
        ("layer2.0.shortcut.0.weight",)),
    Refused(
        "timm's legacy SE-ResNet. Its max-pool is unpadded and its strides sit elsewhere than in ours; take one "
        "of timm's newer files (seresnet50, seresnext50_32x4d)",
        ("layer0.conv1.weight", "layer1.0.se_module.fc1.weight", "last_linear.weight")),
    Refused(
        "a ResNet whose stem is three 3x3 convolutions (timm's resnet50d, resnet50s, resnetrs50, seresnext26d, "
        "ecaresnet50d, resnest50d, ...). Ours is one of 7x7; take resnet50 or seresnet50",
        ("conv1.0.weight", "layer1.0.conv1.weight")),
    Refused(
        "an ECA-ResNet: its channel attention is a convolution across channels, ours squeeze-and-excitation; take "
        "seresnet50",
        ("conv1.weight", "layer1.0.se.conv.weight")),
    Refused(
        "a Res2Net, whose bottlenecks have several 3x3 convolutions in a row; take resnet50",
        ("conv1.weight", "layer1.0.convs.0.weight")),
    Refused(
        "a ResNet whose norms keep no statistics (group norm, as in timm's resnet50_gn). Ours has batch norms",
        ("conv1.weight", "bn1.weight", "layer4.0.conv1.weight"),
        ("bn1.running_var",)),
    Refused(
        "timm's EfficientNetV2 or EfficientNet-EdgeTPU, whose first stages have one convolution in place of a "
        "depthwise and a pointwise one. Ours is version 1; take tf_efficientnet_b0 or efficientnet_b0",
        ("conv_stem.weight", "blocks.1.0.conv_exp.weight")),
    Refused(
        "timm's MobileNetV3, or one built like it. Ours is version 1: no inverted residual blocks, no "
        "squeeze-and-excitation; take mobilenetv1_100",
        (*_TIMM, "conv_head.bias")),
    Refused(
        "timm's mobilenetv1_100h, which has a 1x1 convolution behind the last block; take mobilenetv1_100",
        (*_TIMM, "bn2.running_var", "blocks.0.0.conv_dw.weight", "blocks.1.0.conv_pw.weight"),
        ("blocks.1.0.conv_pwl.weight", _SE)),
    Refused(
        "timm's EfficientNet with group norm. Ours has batch norms; take efficientnet_b0",
        (*_TIMM, _SE),
        ("bn2.running_var",)),
    Refused(
        "one of timm's networks that are built like EfficientNets and are none: EfficientNet-Lite, MobileNetV2, "
        "MobileNetV4, MNASNet, MixNet, FBNet, ... Ours has squeeze-and-excitation in every block, and swish",
        _TIMM,
        (_SE,)),
    Refused(
        "keras.applications' EfficientNetV2, whose first stages have one convolution in place of a depthwise "
        "and a pointwise one. Ours is version 1; take EfficientNetB0 to B7",
        ("stem_conv/kernel", "block1a_project_conv/kernel", "top_conv/kernel"),
        ("block1a_dwconv/kernel",)),
    Refused(
        "a Keras file without names of layers, and not of an EfficientNet of keras.applications, whose order "
        "of layers is known. Save the model as .keras or .h5, which have the names",
        ("conv2d/kernel",)),
)
