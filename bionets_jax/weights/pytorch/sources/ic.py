import torch
from torch import nn
from torch.nn import functional as F

from .generated import ADJUST_GROUPS, ALPHA, INNER_BIAS, OUTER_BIAS


class ICBranch(nn.Module):
  """What IC adds around a response u to x: u + alpha * relu(u - v + b1) + b2 (Eqs. 6 and 7).

  v = W' * (the sum of each channel of x over the window); W' is a 1x1 convolution.
  """

  def __init__(self, inputs, features, kernel, stride=1, padding=0, groups=1):
    super().__init__()
    self.kernel, self.stride, self.padding, self.adjust_groups = kernel, stride, padding, groups
    self.adjust = nn.Parameter(torch.empty(features, inputs // groups, 1, 1))
    nn.init.normal_(self.adjust, std=(2 / features) ** 0.5 / kernel**2)
    if INNER_BIAS:
      self.inner_bias = nn.Parameter(torch.zeros(features))
    if OUTER_BIAS:
      self.bias = nn.Parameter(torch.zeros(features))
    if ALPHA == "learned":
      self.alpha = nn.Parameter(torch.zeros(()))
    elif ALPHA == "learned_per_channel":
      self.alpha = nn.Parameter(torch.zeros(features))
    elif ALPHA == "scheduled":
      # Neither trained nor a constant: the schedule of the training moved it.
      self.register_buffer("alpha", torch.zeros(()))

  def forward(self, x, u):
    # The mean over the window, in which padding counts as zeros, times its size.
    box = F.avg_pool2d(x, self.kernel, self.stride, self.padding) * self.kernel**2
    gap = u - F.conv2d(box, self.adjust, groups=self.adjust_groups)
    if INNER_BIAS:
      gap = gap + self.inner_bias[:, None, None]
    if ALPHA == 1:
      y = u + F.relu(gap)
    elif ALPHA == "learned_per_channel":
      y = u + self.alpha[:, None, None] * F.relu(gap)
    elif ALPHA == "learned" or ALPHA == "scheduled":
      y = u + self.alpha * F.relu(gap)
    else:
      y = u + ALPHA * F.relu(gap)
    if OUTER_BIAS:
      y = y + self.bias[:, None, None]
    return y


class ICConv(ICBranch):
  """IC convolution: a convolution W with what IC adds around its response."""

  def __init__(self, inputs, features, kernel, stride=1, padding=0, groups=1):
    if ADJUST_GROUPS:
      super().__init__(inputs, features, kernel, stride, padding, groups=ADJUST_GROUPS)
    else:
      super().__init__(inputs, features, kernel, stride, padding, groups)
    self.groups = groups
    self.weight = nn.Parameter(torch.empty(features, inputs // groups, kernel, kernel))
    nn.init.kaiming_normal_(self.weight, mode="fan_out")

  def forward(self, x):
    u = F.conv2d(x, self.weight, None, self.stride, self.padding, groups=self.groups)
    return super().forward(x, u)
