from torch import nn

from .generated import IC_CONV, IC_PAIR, RELU6
from .ic import ICBranch, ICConv
from .norm import norm


class MobileNetBlock(nn.Module):
  """Depthwise 3x3 convolution, BN, activation, 1x1 convolution, BN, activation."""

  def __init__(self, inputs, features, stride=1):
    super().__init__()
    if IC_CONV:
      self.depthwise_conv = ICConv(inputs, inputs, 3, stride, padding=1, groups=inputs)
    else:
      self.depthwise_conv = nn.Conv2d(
          inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False)
    self.depthwise_bn = norm(inputs)
    self.pointwise_conv = nn.Conv2d(inputs, features, 1, bias=False)
    if IC_PAIR:
      # The two convolutions as one, whose window is the depthwise filter's.
      self.pair = ICBranch(inputs, features, 3, stride, padding=1)
    self.pointwise_bn = norm(features)
    if RELU6:
      self.act = nn.ReLU6()
    else:
      self.act = nn.ReLU()

  def forward(self, x):
    y = self.act(self.depthwise_bn(self.depthwise_conv(x)))
    y = self.pointwise_conv(y)
    if IC_PAIR:
      y = self.pair(x, y)
    return self.act(self.pointwise_bn(y))
