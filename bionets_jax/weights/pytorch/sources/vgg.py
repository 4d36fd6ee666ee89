from torch import nn
from torch.nn import functional as F

from .generated import IC_CONV
from .ic import ICConv
from .norm import norm


class VGGBlock(nn.Module):
  """3x3 convolution, BN, ReLU."""

  def __init__(self, inputs, features):
    super().__init__()
    if IC_CONV:
      self.conv = ICConv(inputs, features, 3, padding=1)
    else:
      self.conv = nn.Conv2d(inputs, features, 3, padding=1)
    self.bn = norm(features)

  def forward(self, x):
    return F.relu(self.bn(self.conv(x)))


class FlattenPixels(nn.Module):
  """(N, C, H, W) to (N, H * W * C), the channels of a pixel side by side, as the weights have it."""

  def forward(self, x):
    return x.permute(0, 2, 3, 1).flatten(1)
