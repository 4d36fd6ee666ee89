"""Inter-layer collision (IC) layers: drop-ins for `flax.linen.Conv` and `flax.linen.Dense`.

Source: "IC Networks: Remodeling the Basic Unit for Convolutional Neural Networks", Eqs. 3, 6 and 7. All of it:
`y = u + alpha * relu(u - v + b1) + b2`, see `bionets_jax.ops.ic`. The activation f that Eq. 3 puts
around y is the network's own, behind its BatchNorm.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from bionets_jax import ops
from bionets_jax.layers.conv import ConvBase, Initializer, Shape, default_kernel_init

# The collection of the alphas that a schedule moves: neither trained nor running statistics.
SCHEDULED = "scheduled"
ALPHAS = ("learned", "learned_per_channel", "scheduled")
ADJUST_INITS = ("scaled", "same", "kaiming_fan_out", "zeros")


def check_options(alpha: float | str = 1.0, adjust_init: str | Initializer = "scaled", **_) -> None:
  """Raises ValueError for a word that is not among `ALPHAS` or `ADJUST_INITS`."""
  if isinstance(alpha, str) and alpha not in ALPHAS:
    raise ValueError(f"alpha={alpha!r}: give a number or one of {', '.join(ALPHAS)}")
  if isinstance(adjust_init, str) and adjust_init not in ADJUST_INITS:
    raise ValueError(
        f"adjust_init={adjust_init!r}: give an initialiser or one of {', '.join(ADJUST_INITS)}")


def resolve_alpha(module: nn.Module, alpha: float | str, features: int) -> jax.Array | float:
  """alpha as a number, a parameter that starts at 0, or a variable that a schedule sets."""
  check_options(alpha=alpha)
  if not isinstance(alpha, str):
    return alpha
  if alpha == "learned":
    return module.param("alpha", nn.initializers.zeros_init(), (), module.param_dtype)
  if alpha == "learned_per_channel":
    return module.param("alpha", nn.initializers.zeros_init(), (features,), module.param_dtype)
  return module.variable(SCHEDULED, "alpha", jnp.zeros, (), module.param_dtype).value


def hinge_parameters(module: "ICConv | ICDense | ICBranch") -> dict[str, Any]:
  """b1, b2 and alpha of an IC layer, as the keyword arguments of `ops.ic_conv` and `ops.ic_dense`."""
  inner_bias = outer_bias = None
  shape = (module.features,)
  if module.use_inner_bias:
    # Zeros whatever bias_init is, which is meant for the bias of the layer that IC stands in for.
    inner_bias = module.param("inner_bias", nn.initializers.zeros_init(), shape, module.param_dtype)
  if module.use_bias:
    outer_bias = module.param("bias", module.bias_init, shape, module.param_dtype)
  alpha = resolve_alpha(module, module.alpha, module.features)
  return {"inner_bias": inner_bias, "outer_bias": outer_bias, "alpha": alpha}


def adjust_initializer(
    kind: str | Initializer, kernel_init: Initializer, kernel_shape: Shape, features: int,
    taps: int | None = None,
) -> Initializer:
  """The initialiser of W', whose scale beside that of W decides how the two branches mix.

  The box sums k x k inputs that, after a ReLU, have a positive mean. Measured in a He-initialised
  ResNet-18 on images, the ratio rms(v) / rms(u) is 0.8 for 'scaled', 2.4 for 'same' and 6.6 for
  'kaiming_fan_out'.

  Args:
    kind: 'scaled': std(W') = std(W) / k, k^2 the number of taps (the default);
      'same': std(W') = std(W); 'kaiming_fan_out': N(0, 2 / features), what a loop over all
      convolutions would do to a 1x1 convolution in PyTorch; 'zeros'; or an initialiser.
    kernel_init: the initialiser of W.
    kernel_shape: the shape of W.
    features: number of output channels.
    taps: number of taps of the box, where it is not that of W.
  """
  check_options(adjust_init=kind)
  if callable(kind):
    return kind
  if kind == "zeros":
    return nn.initializers.zeros_init()
  if kind == "kaiming_fan_out":
    return nn.initializers.normal(math.sqrt(2.0 / features))
  taps = math.prod(kernel_shape[:-2]) if taps is None else taps
  divisor = math.sqrt(taps) if kind == "scaled" else 1.0

  def init(rng, shape, dtype):
    # One tap of a fresh draw of W's own initialiser: whatever its distribution, this has its spread.
    # A W' with more rows than W has (dense beside a grouped W) takes one tap of several draws.
    rows = math.prod(shape[:-1])
    draws = -(-rows // kernel_shape[-2])
    taps_used = [kernel_init(r, kernel_shape, dtype).reshape(-1, *kernel_shape[-2:])[0]
                 for r in jax.random.split(rng, draws)]
    return jnp.concatenate(taps_used)[:rows].reshape(shape) / divisor

  return init


class _WithBox(ConvBase):
  """A convolution's arguments with a box sum over its window."""

  def box_adds(self, output_shape: Shape, in_features: int) -> int:
    """Additions of the box sum in one call, counted as a k x k depthwise filter's; none for 1x1."""
    if math.prod(self.window) == 1:
      return 0
    return math.prod(output_shape[:-1]) * in_features * math.prod(self.window)


class ICConv(_WithBox):
  """IC convolution (Eq. 6): a drop-in for `flax.linen.Conv` with the same arguments.

  Takes (*batch, *spatial, C), returns (*batch, *out, features). Parameters, in `params`:
    kernel: W, (*window, C // groups, features).
    adjust: W', (C // adjust_groups, features). The all-ones depthwise filter is no parameter.
    inner_bias: b1, (features,), inside the hinge; only with `use_inner_bias`.
    bias: b2, (features,), outside; only with `use_bias`.
    alpha: () or (features,), only where it is learned.

  With every one of Flax's arguments as in the base network the variables of the base network are a
  subset of these, and at alpha = 0, b2 = 0 the layer returns exactly what `Conv` returns.

  Own arguments:
    alpha: weight of the hinge. 1.0 for training from scratch (Eq. 6); 'learned', one parameter that
      starts at 0, for WLD (Eq. 7); 'learned_per_channel'; 'scheduled', a variable in the collection
      'scheduled' that starts at 0 and that the training loop sets; or any fixed number.
    use_inner_bias: b1. On by default: with b1 and b2 the networks have the paper's printed counts.
    adjust_init: see `adjust_initializer`.
    adjust_groups: channel groups of W'; None for those of W, 1 for a dense W'.

  `mask` acts on W alone.

  Raises:
    ValueError: if channels do not divide into the groups; on an unknown alpha, init or padding.
  """

  alpha: float | str = 1.0
  use_inner_bias: bool = True
  adjust_init: str | Initializer = "scaled"
  adjust_groups: int | None = None

  own_bias = True

  def adjust_shape(self, in_features: int) -> Shape:
    groups = self.feature_group_count if self.adjust_groups is None else self.adjust_groups
    if in_features % groups or self.features % groups:
      raise ValueError(
          f"{self._where()}: {in_features} input channels and {self.features} features do not both "
          f"divide into adjust_groups={groups} groups")
    return (in_features // groups, self.features)

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    x, batch = self.to_batch(inputs)
    in_features = x.shape[-1]
    kernel = self.make_kernel(in_features)
    init = adjust_initializer(
        self.adjust_init, self.kernel_init, self.kernel_shape(in_features), self.features)
    adjust = self.param("adjust", init, self.adjust_shape(in_features), self.param_dtype)
    hinge = hinge_parameters(self)
    # The biases and alpha stay in param_dtype: the combine runs in float32 whatever the dtype.
    x, kernel, adjust = self.promote_dtype(x, kernel, adjust, dtype=self.dtype)
    x, padding = self.pad(x)
    y = ops.ic_conv(
        x, kernel, adjust, **hinge,
        strides=self.per_axis(self.strides), padding=padding,
        kernel_dilation=self.per_axis(self.kernel_dilation),
        input_dilation=self.per_axis(self.input_dilation), groups=self.feature_group_count,
        adjust_groups=self.adjust_groups, precision=self.precision)
    return y.reshape(*batch, *y.shape[1:])

  def macs(self, output_shape: Shape, in_features: int) -> int:
    """Multiply-adds of W and W' in one call. The box adds are `box_adds`."""
    per_output = math.prod(self.kernel_shape(in_features)[:-1]) + self.adjust_shape(in_features)[0]
    return math.prod(output_shape) * per_output


class ICBranch(_WithBox):
  """What IC adds around a response that other layers computed: `u + alpha * relu(u - v + b1) + b2`.

  `ICBranch(features, (3, 3), strides=2, padding=1)(x, u)` takes the input x (N, *spatial, C) of those
  layers and their response u (N, *out, features), and sums x over the window that they span. So a
  depthwise and a pointwise convolution, with what stands between them, become one IC layer, as the
  paper has it for MobileNet. Parameters as in `ICConv`, without `kernel`; `adjust` is (C, features).

  Of `ConvBase` it reads what says where the window lies: `kernel_size`, `strides`, `padding`,
  `kernel_dilation`; and `kernel_init`, the initialiser of the pointwise kernel, for the scale of W'.

  Raises:
    ValueError: if u has not the shape that the window gives, or an argument is set that means nothing.
  """

  alpha: float | str = 1.0
  use_inner_bias: bool = True
  adjust_init: str | Initializer = "scaled"

  replaces = "pair"

  @nn.compact
  def __call__(self, inputs: jax.Array, response: jax.Array) -> jax.Array:
    for name, default in (("feature_group_count", 1), ("input_dilation", 1), ("mask", None)):
      if getattr(self, name) is not default and getattr(self, name) != default:
        raise ValueError(f"{self._where()}: {name} has no meaning around a pair")
    x, batch = self.to_batch(inputs)
    channels = x.shape[-1]
    ones = (1,) * len(self.window)
    init = adjust_initializer(
        self.adjust_init, self.kernel_init, (*ones, channels, self.features), self.features,
        taps=math.prod(self.window))
    adjust = self.param("adjust", init, (channels, self.features), self.param_dtype)
    hinge = hinge_parameters(self)
    x, adjust, u = self.promote_dtype(x, adjust, response, dtype=self.dtype)
    x, padding = self.pad(x)
    s = ops.box_sum(x, self.window, strides=self.per_axis(self.strides), padding=padding,
                    kernel_dilation=self.per_axis(self.kernel_dilation))
    v = ops.conv(s, adjust.reshape(*ones, *adjust.shape), strides=ones, padding=((0, 0),) * len(ones),
                 precision=self.precision)
    v = v.reshape(*batch, *v.shape[1:])
    if u.shape != v.shape:
      raise ValueError(f"{self._where()}: the response has shape {u.shape}, its window gives {v.shape}")
    return ops.ic_combine(u, v, **hinge)

  def macs(self, output_shape: Shape, in_features: int) -> int:
    """Multiply-adds of W' in one call."""
    return math.prod(output_shape) * in_features


class ICDense(nn.Module):
  """A layer of IC neurons (Eq. 3): a drop-in for `flax.linen.Dense` with the same arguments.

  Takes (..., n), returns (..., features). Parameters: `kernel` (n, features), `adjust` (features,),
  `inner_bias` and `bias` (features,), and `alpha` where it is learned: n + 3 for each neuron.
  `alpha`, `use_inner_bias` and `adjust_init` are those of `ICConv`, with the n inputs for taps.
  """

  features: int
  use_bias: bool = True
  dtype: Any = None
  param_dtype: Any = jnp.float32
  precision: Any = None
  kernel_init: Initializer = default_kernel_init
  bias_init: Initializer = nn.initializers.zeros_init()
  promote_dtype: Callable[..., Any] = promote_dtype
  alpha: float | str = 1.0
  use_inner_bias: bool = True
  adjust_init: str | Initializer = "scaled"

  replaces = "dense"

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    n = inputs.shape[-1]
    kernel = self.param("kernel", self.kernel_init, (n, self.features), self.param_dtype)
    # One w' weighs the sum of all n inputs, so they are its taps: 'scaled' is std(W) / sqrt(n).
    init = adjust_initializer(
        self.adjust_init, lambda rng, shape, dtype: self.kernel_init(
            rng, (n, self.features), dtype).reshape(shape), (n, 1, self.features), self.features)
    adjust = self.param("adjust", init, (self.features,), self.param_dtype)
    hinge = hinge_parameters(self)
    x, kernel, adjust = self.promote_dtype(inputs, kernel, adjust, dtype=self.dtype)
    return ops.ic_dense(
        x, kernel, adjust, **hinge,
        precision=self.precision)

  def macs(self, output_shape: Shape, in_features: int) -> int:
    """Multiply-adds of W and w' in one call."""
    return math.prod(output_shape) * (in_features + 1)
