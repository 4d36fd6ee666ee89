"""kEffNet, Figure 1: a pointwise convolution, and the two in interleaved groups that stand for it."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from bionets_jax.figures.style import TEXT, WIDTH
from bionets_jax.layers import Conv, GroupedPointwise, group_count
from bionets_jax.report.curves import COLOURS

MOST = 128  # channels that can still be told apart


class Connections(NamedTuple):
  """What a layer connects with what.

  Attributes:
    first: (C, F) bool, which input each channel of K sees.
    order: (F,) int, the channel of K that each channel of I is.
    second: (F, F) bool, which channel of I each of L sees; None without L.
    added: (F,) int, the channel of K that is added to each of L; None without L.
    parameters: of the layer.
  """

  first: np.ndarray
  order: np.ndarray
  second: np.ndarray | None
  added: np.ndarray | None
  parameters: int


def read_connections(layer: GroupedPointwise, channels: int) -> Connections:
  """The connections of a layer without norm and activation, from what it computes: no rule of its is used.

  Args:
    layer: to look at.
    channels: C.
  """
  # The rows of the identity give the layer's, and its convolutions', whole matrix.
  def rows(n):
    return jnp.eye(n)[:, None, None]

  @jax.jit
  def run():
    convs: dict[str, nn.Module] = {}
    inputs: dict[str, jax.Array] = {}

    def note(call, args, kwargs, context):
      if isinstance(context.module, Conv) and context.method_name == "__call__":
        convs[context.module.name] = context.module.clone(parent=None, name=None)
        inputs[context.module.name] = args[0]
      return call(*args, **kwargs)

    with nn.intercept_methods(note):
      y, variables = layer.init_with_output(jax.random.key(0), rows(channels))
    matrices = {name: conv.apply({"params": variables["params"][name]}, rows(inputs[name].shape[-1]))
                for name, conv in convs.items()}
    flat = jax.tree.map(lambda a: a[:, 0, 0], (y, inputs, matrices))
    return *flat, variables

  whole, inputs, matrices, variables = jax.device_get(run())
  k = matrices["conv1"]
  parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
  if "conv2" not in matrices:
    return Connections(k != 0, _columns(whole, k), None, None, parameters)
  mixed = inputs["conv2"]
  # What the layer gives beyond L is K.
  order, added = _columns(mixed, k), _columns(whole - mixed @ matrices["conv2"], k)
  return Connections(k != 0, order, matrices["conv2"] != 0, added, parameters)


def draw(channels: int = 16, features: int = 8, min_group_channels: int = 4) -> Figure:
  """At the left the convolution that is replaced, at the right kConv; a dot for each channel, groups in colours.

  Args:
    channels: of the input.
    features: of the output.
    min_group_channels: inputs that a group has at least; the paper's networks have 16.

  Raises:
    ValueError: for more than 128 channels, or if there is nothing to draw: a single group, that is, the
      convolution stays as it is.
  """
  if not 1 <= min(channels, features) or max(channels, features) > MOST:
    raise ValueError(f"{channels} to {features} channels: 1 to {MOST} of each can be drawn")
  groups = group_count(channels, features, min_group_channels)
  if groups == 1:
    raise ValueError(f"{channels} to {features} channels with at least {min_group_channels} inputs per group: a "
                     "single group, so the convolution is not replaced")
  options = dict(min_group_channels=min_group_channels, precision="highest")  # what is added is told by its values
  found, dense = (read_connections(GroupedPointwise(features, k_type=k, **options), channels) for k in (2, 0))
  figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
  left, right = figure.subplots(1, 2, width_ratios=(1, 2.6))
  _draw_dense(left, dense)
  _draw_groups(right, found)
  for axes in (left, right):
    axes.set(xlim=(-0.25, axes.dataLim.x1 + 0.35), ylim=(-1.14, 0.02 if found.second is None else 0.14))
    axes.set_axis_off()
  saved = 100 * (1 - found.parameters / dense.parameters)
  left.set_title(f"{channels} to {features}:\n{dense.parameters:,} parameters", fontsize=TEXT + 0.5)
  right.set_title(f"in {groups} groups: {found.parameters:,} parameters\n({saved:.3g} % fewer)",
                  fontsize=TEXT + 0.5)
  return figure


def _columns(of: np.ndarray, among: np.ndarray) -> np.ndarray:
  """For each column of a matrix the index of the nearest among another's; all but equal, or ValueError."""
  distances = np.abs(of[:, :, None] - among[:, None, :]).max(0)
  nearest = distances.argmin(1)
  if distances.min(1).max() > 1e-5:
    raise ValueError("GroupedPointwise computes something that this figure does not know")
  return nearest


def _draw_dense(axes: Axes, c: Connections) -> None:
  inputs, outputs = c.first.shape
  _lines(axes, 0, c.first, ["0.55"] * outputs)
  _dots(axes, [(0, inputs, "x", None), (1, outputs, "M", None)])


def _draw_groups(axes: Axes, c: Connections) -> None:
  inputs, outputs = c.first.shape
  of_k, of_x = _groups(c.first)
  colours_k = [_colour(g) for g in of_k]
  _lines(axes, 0, c.first, colours_k)
  columns = [(0, inputs, "x", [_colour(g) for g in of_x]), (1, outputs, "K", colours_k)]
  moved = np.zeros((outputs, outputs), bool)
  moved[c.order, np.arange(outputs)] = True
  colours_i = [colours_k[i] for i in c.order]
  last = c.second is None
  interleaved = bool((c.order != np.arange(outputs)).any())
  if interleaved or last:
    _lines(axes, len(columns) - 1, moved, colours_i, linewidth=0.9)
    columns.append((len(columns), outputs, "I" + " = y" * last, colours_i))
  if not last:
    of_l, _ = _groups(c.second)
    colours_l = [_colour(g) for g in of_l]
    _lines(axes, len(columns) - 1, c.second, colours_l)
    columns.append((len(columns), outputs, "L", colours_l))
    _lines(axes, len(columns) - 1, np.eye(outputs, dtype=bool), ["0.35"] * outputs, linewidth=0.9)
    _around(axes, c.added, 1, len(columns))
    columns.append((len(columns), outputs, "y = L + K", ["0.35"] * outputs))
  _dots(axes, columns)


def _groups(connected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Number of the group of each output and of each input: outputs that see the same inputs are one."""
  _, first, of_output = np.unique(connected.T, axis=0, return_index=True, return_inverse=True)
  rank = np.argsort(np.argsort(first))
  of_output = rank[of_output]
  return of_output, np.array([of_output[row.argmax()] for row in connected])


def _colour(group: int) -> str:
  return COLOURS[group % len(COLOURS)]


def _heights(n: int) -> np.ndarray:
  return -(np.arange(n) + 0.5) / n


def _lines(
    axes: Axes, left: float, connected: np.ndarray, colours: list[str], linewidth: float | None = None
) -> None:
  """From each input to each output that sees it, in the output's colour; the more there are, the thinner."""
  a, b = (_heights(n) for n in connected.shape)
  pairs = np.argwhere(connected)
  linewidth = linewidth or min(0.5, 6 / len(pairs) ** 0.5)
  axes.add_collection(LineCollection(
      [((left, a[i]), (left + 1, b[j])) for i, j in pairs], colors=[colours[j] for _, j in pairs],
      linewidths=linewidth, zorder=1))


def _around(axes: Axes, added: np.ndarray, left: float, right: float) -> None:
  """The sum's other input, as one line above everything between."""
  same = bool((added == np.arange(len(added))).all())
  axes.plot((left, left, right, right), (-0.01, 0.05, 0.05, -0.01), color="0.35", linewidth=0.9)
  axes.text((left + right) / 2, 0.06, "K, channel by channel" if same else "K, channels in another order",
            ha="center", va="bottom", fontsize=TEXT)


def _dots(axes: Axes, columns: list[tuple[float, int, str, list[str] | None]]) -> None:
  for x, n, name, colours in columns:
    axes.scatter([x] * n, _heights(n), s=min(14, 350 / n), c=colours or "0.35", zorder=2, linewidths=0)
    axes.text(x, -1.04, f"{name}", ha="center", va="top", fontsize=TEXT)
