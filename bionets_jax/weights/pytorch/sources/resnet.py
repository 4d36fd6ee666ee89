from collections import OrderedDict

from torch import nn
from torch.nn import functional as F

from .generated import IC_CONV, IC_EXPAND, IC_REDUCE, PAD_SHORTCUT, SE_REDUCTION
from .ic import ICConv
from .norm import norm
from .squeeze_excite import SqueezeExcite


def conv3x3(inputs, features, stride=1, groups=1):
  if IC_CONV:
    return ICConv(inputs, features, 3, stride, padding=1, groups=groups)
  else:
    return nn.Conv2d(inputs, features, 3, stride, padding=1, groups=groups, bias=False)


def reduce1x1(inputs, features):
  if IC_REDUCE:
    return ICConv(inputs, features, 1)
  else:
    return nn.Conv2d(inputs, features, 1, bias=False)


def expand1x1(inputs, features):
  if IC_EXPAND:
    return ICConv(inputs, features, 1)
  else:
    return nn.Conv2d(inputs, features, 1, bias=False)


class PadShortcut(nn.Module):
  """Every stride-th pixel, and `extra` zero channels on both sides."""

  def __init__(self, extra, stride):
    super().__init__()
    self.stride, self.pads = stride, (extra // 2, extra - extra // 2)

  def forward(self, x):
    return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.pads))


def shortcut(inputs, features, stride):
  """The identity; where the shape changes, what makes it fit."""
  if stride == 1 and inputs == features:
    return nn.Identity()
  if PAD_SHORTCUT:
    return PadShortcut(features - inputs, stride)
  else:
    return nn.Sequential(OrderedDict(
        conv=nn.Conv2d(inputs, features, 1, stride, bias=False), bn=norm(features)))


class BasicBlock(nn.Module):
  """conv3x3-BN-ReLU-conv3x3-BN, plus the shortcut, ReLU."""

  def __init__(self, inputs, features, stride=1):
    super().__init__()
    self.conv1 = conv3x3(inputs, features, stride)
    self.bn1 = norm(features)
    self.conv2 = conv3x3(features, features)
    self.bn2 = norm(features)
    if SE_REDUCTION:
      self.se = SqueezeExcite(features, features // SE_REDUCTION)
    self.shortcut = shortcut(inputs, features, stride)

  def forward(self, x):
    y = F.relu(self.bn1(self.conv1(x)))
    y = self.bn2(self.conv2(y))
    if SE_REDUCTION:
      y = self.se(y)
    return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
  """conv1x1-conv3x3-conv1x1 with BN, plus the shortcut, ReLU."""

  def __init__(self, inputs, width, features, stride=1, groups=1):
    super().__init__()
    self.conv1 = reduce1x1(inputs, width)
    self.bn1 = norm(width)
    self.conv2 = conv3x3(width, width, stride, groups)
    self.bn2 = norm(width)
    self.conv3 = expand1x1(width, features)
    self.bn3 = norm(features)
    if SE_REDUCTION:
      self.se = SqueezeExcite(features, features // SE_REDUCTION)
    self.shortcut = shortcut(inputs, features, stride)

  def forward(self, x):
    y = F.relu(self.bn1(self.conv1(x)))
    y = F.relu(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(y))
    if SE_REDUCTION:
      y = self.se(y)
    return F.relu(y + self.shortcut(x))


class PreActBlock(nn.Module):
  """BN-ReLU-conv3x3-BN-ReLU-conv3x3, plus the shortcut, which may branch off behind the first ReLU."""

  def __init__(self, inputs, features, stride=1):
    super().__init__()
    self.bn1 = norm(inputs)
    self.conv1 = conv3x3(inputs, features, stride)
    self.bn2 = norm(features)
    self.conv2 = conv3x3(features, features)
    if SE_REDUCTION:
      self.se = SqueezeExcite(features, features // SE_REDUCTION)
    self.shortcut_conv = None
    if stride != 1 or inputs != features:
      self.shortcut_conv = nn.Conv2d(inputs, features, 1, stride, bias=False)

  def forward(self, x):
    y = F.relu(self.bn1(x))
    other = x if self.shortcut_conv is None else self.shortcut_conv(y)
    y = F.relu(self.bn2(self.conv1(y)))
    y = self.conv2(y)
    if SE_REDUCTION:
      y = self.se(y)
    return y + other


class PyramidBlock(nn.Module):
  """BN-conv3x3-BN-ReLU-conv3x3-BN, plus the shortcut."""

  def __init__(self, inputs, features, stride=1):
    super().__init__()
    self.bn0 = norm(inputs)
    self.conv1 = conv3x3(inputs, features, stride)
    self.bn1 = norm(features)
    self.conv2 = conv3x3(features, features)
    self.bn2 = norm(features)
    if SE_REDUCTION:
      self.se = SqueezeExcite(features, features // SE_REDUCTION)
    self.shortcut = shortcut(inputs, features, stride)

  def forward(self, x):
    y = F.relu(self.bn1(self.conv1(self.bn0(x))))
    y = self.bn2(self.conv2(y))
    if SE_REDUCTION:
      y = self.se(y)
    return y + self.shortcut(x)
