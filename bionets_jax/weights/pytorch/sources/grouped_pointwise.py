import math

from torch import nn

from .generated import K_TYPE, MIN_GROUP_CHANNELS
from .norm import norm


def group_count(inputs, features):
  """The most groups that divide both, with MIN_GROUP_CHANNELS inputs in each at least."""
  common = math.gcd(inputs, features)
  most = min(common, inputs // MIN_GROUP_CHANNELS)
  return max((n for n in range(1, most + 1) if common % n == 0), default=1)


class KConv(nn.Module):
  """kConv: two grouped, interleaved 1x1 convolutions in place of a dense one with its norm and activation.

  With a single group it is that dense one; and where channels are added one of the two is enough.
  """

  def __init__(self, inputs, features, act=None, normalise=True, bias=False):
    super().__init__()
    if K_TYPE == 0:
      self.groups = 1
      twice = False
    elif K_TYPE == 1:
      self.groups = group_count(inputs, features)
      twice = False
    else:
      self.groups = group_count(inputs, features)
      twice = self.groups > 1 and inputs >= features
    self.act = act or nn.Identity()
    self.conv1 = nn.Conv2d(inputs, features, 1, groups=self.groups, bias=bias)
    self.bn1 = norm(features) if normalise else nn.Identity()
    self.conv2 = self.bn2 = None
    if twice:
      self.conv2 = nn.Conv2d(features, features, 1, groups=self.groups, bias=bias)
      self.bn2 = norm(features) if normalise else nn.Identity()

  def forward(self, x):
    x = self.act(self.bn1(self.conv1(x)))
    if self.groups == 1:
      return x
    # Deals the channels of each group out over all.
    mixed = x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
    if self.conv2 is None:
      return mixed
    return x + self.act(self.bn2(self.conv2(mixed)))
