from torch import nn
from torch.nn import functional as F

from .generated import NORM_EPSILON, NORM_GROUPS, NORM_MOMENTUM


def norm(features, affine=True):
  """Batch norm.

  A difference in training only: PyTorch puts the unbiased variance of a batch of n values per channel into
  the running variance, bionets_jax the biased one, which is (n - 1) / n of it.
  """
  if NORM_GROUPS > 1:
    return GroupedBatchNorm2d(features, NORM_EPSILON, NORM_MOMENTUM, affine)
  elif NORM_EPSILON == 1e-5 and NORM_MOMENTUM == 0.1:
    return nn.BatchNorm2d(features, affine=affine)
  else:
    return nn.BatchNorm2d(features, eps=NORM_EPSILON, momentum=NORM_MOMENTUM, affine=affine)


class GroupedBatchNorm2d(nn.BatchNorm2d):
  """Batch norm of each of NORM_GROUPS parts of the batch by itself, as on that many devices."""

  def forward(self, x):
    if not self.training:
      return super().forward(x)
    n, c, h, w = x.shape
    # The parts as channels of their own: (N, C) becomes (N / groups, groups * C).
    parts = x.reshape(NORM_GROUPS, -1, c, h, w).transpose(0, 1).flatten(1, 2)
    mean, var = self.running_mean.repeat(NORM_GROUPS), self.running_var.repeat(NORM_GROUPS)
    weight, bias = self.weight, self.bias
    if self.affine:
      weight, bias = weight.repeat(NORM_GROUPS), bias.repeat(NORM_GROUPS)
    parts = F.batch_norm(parts, mean, var, weight, bias, True, self.momentum, self.eps)
    self.running_mean.copy_(mean.view(NORM_GROUPS, c).mean(0))
    self.running_var.copy_(var.view(NORM_GROUPS, c).mean(0))
    self.num_batches_tracked.add_(1)
    return parts.unflatten(1, (NORM_GROUPS, c)).transpose(0, 1).reshape(n, c, h, w)
