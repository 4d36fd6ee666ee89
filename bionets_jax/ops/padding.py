"""Zero padding as integers, whatever it was given as."""

from collections.abc import Sequence

from jax import lax

Pads = tuple[tuple[int, int], ...]


def explicit_padding(
    padding: str | Sequence[tuple[int, int]],
    spatial_shape: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    kernel_dilation: Sequence[int] | None = None,
    input_dilation: Sequence[int] | None = None,
) -> Pads:
  """The (low, high) zero padding of each spatial axis, as integers.

  A convolution and the box sum beside it must see the same padding; both take it from here.

  Args:
    padding: 'SAME', 'SAME_LOWER', 'VALID', or one (low, high) pair per spatial axis.
    spatial_shape: input extent per spatial axis.
    window: kernel extent per spatial axis, before dilation.
    strides: stride per spatial axis.
    kernel_dilation: dilation of the kernel per spatial axis (default 1).
    input_dilation: dilation of the input per spatial axis (default 1).

  Raises:
    ValueError: for another string, or a number of pairs that is not that of the axes.
  """
  n = len(window)
  if not isinstance(padding, str):
    pads = tuple((int(lo), int(hi)) for lo, hi in padding)
    if len(pads) != n:
      raise ValueError(f"padding {padding} has {len(pads)} (low, high) pairs; the window has {n} axes")
    return pads
  if padding.upper() not in ("SAME", "SAME_LOWER", "VALID"):
    raise ValueError(f"padding {padding!r} is neither 'SAME', 'SAME_LOWER', 'VALID' nor a list of "
                     "(low, high) pairs")
  kernel_dilation = kernel_dilation or (1,) * n
  input_dilation = input_dilation or (1,) * n
  window = [(k - 1) * d + 1 for k, d in zip(window, kernel_dilation, strict=True)]
  extent = [(s - 1) * d + 1 for s, d in zip(spatial_shape, input_dilation, strict=True)]
  return tuple(lax.padtype_to_pads(extent, window, strides, padding.upper()))
