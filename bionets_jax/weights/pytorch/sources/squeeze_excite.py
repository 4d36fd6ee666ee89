import torch
from torch import nn
from torch.nn import functional as F

from .generated import KCONV, SWISH
from .grouped_pointwise import KConv


class SqueezeExcite(nn.Module):
  """Multiplies each channel by a gate computed from the means of all."""

  def __init__(self, channels, reduced):
    super().__init__()
    if KCONV:
      self.reduce_conv = KConv(channels, reduced, nn.SiLU(), normalise=False, bias=True)
      self.expand_conv = KConv(reduced, channels, nn.Sigmoid(), normalise=False, bias=True)
    else:
      self.reduce_conv = nn.Conv2d(channels, reduced, 1)
      self.expand_conv = nn.Conv2d(reduced, channels, 1)

  def forward(self, x):
    s = x.mean((2, 3), keepdim=True)
    if KCONV:
      return x * self.expand_conv(self.reduce_conv(s))
    elif SWISH:
      return x * torch.sigmoid(self.expand_conv(F.silu(self.reduce_conv(s))))
    else:
      return x * torch.sigmoid(self.expand_conv(F.relu(self.reduce_conv(s))))
