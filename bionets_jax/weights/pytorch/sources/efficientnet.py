import torch
from torch import nn
from torch.nn import functional as F

from .generated import DROP_CONNECT, FLAVOUR, IC_CONV, IC_PAIR, KCONV
from .grouped_pointwise import KConv
from .ic import ICBranch, ICConv
from .norm import norm
from .squeeze_excite import SqueezeExcite


class SamePad(nn.Module):
  """TensorFlow's padding 'SAME': by the size of the image, the odd pixel behind it."""

  def __init__(self, kernel, stride):
    super().__init__()
    self.kernel, self.stride = kernel, stride

  def forward(self, x):
    pads = []
    for size in (x.shape[3], x.shape[2]):
      out = (size + self.stride - 1) // self.stride
      total = max((out - 1) * self.stride + self.kernel - size, 0)
      pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def drop_connect(x, rate, training):
  """In training leaves each sample away with probability `rate`, and scales the others by 1 / (1 - rate)."""
  if not training or rate == 0:
    return x
  kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= rate
  return x * kept.to(x.dtype) / (1 - rate)


class MBConv(nn.Module):
  """Expand 1x1, depthwise k x k, squeeze-and-excitation, project 1x1; plus the input where that fits."""

  def __init__(self, inputs, features, kernel, stride=1, expand=1, drop_rate=0.0):
    super().__init__()
    middle = inputs * expand
    self.expands, self.adds = expand != 1, stride == 1 and inputs == features
    if DROP_CONNECT:
      self.drop_rate = drop_rate
    if expand != 1:
      if KCONV:
        self.expand_conv = KConv(inputs, middle, nn.SiLU())
      else:
        self.expand_conv = nn.Conv2d(inputs, middle, 1, bias=False)
        self.expand_bn = norm(middle)
    padding = kernel // 2
    if FLAVOUR == "keras":
      # With a stride one less in front, whatever the size of the image.
      self.pad = nn.Identity()
      if stride > 1:
        self.pad, padding = nn.ZeroPad2d((kernel // 2 - 1, kernel // 2) * 2), 0
    elif FLAVOUR == "tf":
      self.pad = nn.Identity()
      if stride > 1 or kernel % 2 == 0:
        self.pad, padding = SamePad(kernel, stride), 0
    if IC_CONV:
      self.depthwise_conv = ICConv(middle, middle, kernel, stride, padding, groups=middle)
    else:
      self.depthwise_conv = nn.Conv2d(
          middle, middle, kernel, stride, padding, groups=middle, bias=False)
    self.depthwise_bn = norm(middle)
    self.se = SqueezeExcite(middle, max(1, inputs // 4))
    if KCONV:
      self.project_conv = KConv(middle, features)
    else:
      self.project_conv = nn.Conv2d(middle, features, 1, bias=False)
      if IC_PAIR:
        # The depthwise and the project convolution as one, whose window is the depthwise filter's.
        self.pair = ICBranch(middle, features, kernel, stride, padding)
      self.project_bn = norm(features)

  def forward(self, x):
    y = x
    if self.expands:
      if KCONV:
        y = self.expand_conv(y)
      else:
        y = F.silu(self.expand_bn(self.expand_conv(y)))
    if FLAVOUR != "torchvision":
      y = self.pad(y)
    if IC_PAIR:
      window = y
    y = self.se(F.silu(self.depthwise_bn(self.depthwise_conv(y))))
    if KCONV:
      y = self.project_conv(y)
    elif IC_PAIR:
      y = self.project_bn(self.pair(window, self.project_conv(y)))
    else:
      y = self.project_bn(self.project_conv(y))
    if not self.adds:
      return y
    if DROP_CONNECT:
      y = drop_connect(y, self.drop_rate, self.training)
    return x + y
