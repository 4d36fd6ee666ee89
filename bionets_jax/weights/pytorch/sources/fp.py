import torch
from torch import nn
from torch.nn import functional as F

from .generated import FP_COMBINE, FP_JOURNAL, FP_SINGLE
from .norm import norm


class DepthwisePair(nn.Module):
  """Two depthwise 3x3 filters on the same input, and their AND."""

  def __init__(self, features, stride=1):
    super().__init__()
    self.stride = stride
    self.kernel_a = nn.Parameter(torch.empty(features, 1, 3, 3))
    self.kernel_b = nn.Parameter(torch.empty(features, 1, 3, 3))
    for kernel in (self.kernel_a, self.kernel_b):
      nn.init.kaiming_normal_(kernel)

  def forward(self, x):
    a = F.conv2d(x, self.kernel_a, None, self.stride, padding=1, groups=x.shape[1])
    b = F.conv2d(x, self.kernel_b, None, self.stride, padding=1, groups=x.shape[1])
    if FP_JOURNAL:
      a, b = F.relu(F.instance_norm(a)), F.relu(F.instance_norm(b))
    if FP_COMBINE == "min":
      return torch.minimum(a, b)
    else:
      return a * b


class FPBlock(nn.Module):
  """FP-block: 1x1 convolution to `width` channels, the AND of two depthwise filters, 1x1 convolution.

  With `pool` it halves height and width.
  """

  def __init__(self, inputs, width, features, pool=False):
    super().__init__()
    self.pool = pool
    self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
    self.bn1 = norm(width)
    if FP_JOURNAL:
      stride = 2 if pool else 1
    else:
      stride = 1  # what halves is the pool behind the block
    if FP_SINGLE:
      self.filter = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
    else:
      self.filters = DepthwisePair(width, stride)
    if not FP_JOURNAL:
      self.bn2 = norm(width, affine=False)
    self.conv3 = nn.Conv2d(width, features, 1, bias=False)
    self.bn3 = norm(features)
    if FP_JOURNAL:
      self.new_features = features - inputs
      if features < inputs:
        self.shortcut_conv = nn.Conv2d(inputs, features, 1)

  def forward(self, x):
    y = F.relu(self.bn1(self.conv1(x)))
    if FP_SINGLE and FP_JOURNAL:
      y = F.relu(F.instance_norm(self.filter(y)))
    elif FP_SINGLE:
      y = F.relu(self.bn2(self.filter(y)))
    elif FP_JOURNAL:
      y = self.filters(y)
    else:
      y = self.bn2(self.filters(y))
    y = F.relu(self.bn3(self.conv3(y)))
    if FP_JOURNAL:
      return y + self.shortcut(x)
    else:
      return F.max_pool2d(y, 2) if self.pool else y

  if FP_JOURNAL:
    def shortcut(self, x):
      if self.pool:
        x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
      if self.new_features < 0:
        return self.shortcut_conv(x)
      return F.pad(x, (0, 0, 0, 0, 0, self.new_features))
