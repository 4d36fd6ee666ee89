"""What is printed before step 0: the network by its parts, what a step costs, where it runs."""

import collections
import math
from typing import Any

import flax.linen as nn
import jax

from bionets_jax.counting import LayerCount, count_layers
from bionets_jax.training.device_memory import mebibytes, memory_need
from bionets_jax.training.setup import Setup
from bionets_jax.training.state import TrainState


def model_table(model: nn.Module, params: Any, image_shape: tuple[int, int, int]) -> str:
  """Parameters, multiply-adds and output of each top-level part, and the totals."""
  layers: dict[str, list[LayerCount]] = collections.defaultdict(list)
  for layer in count_layers(model, image_shape):
    layers[layer.path.split("/")[0]].append(layer)
  rows = [("part", "parameters", "MACs", "output", "units")]
  totals = [0, 0]
  for part in _in_call_order(params, list(layers)):
    tree = params[part]
    size, macs = _size(tree), sum(layer.macs for layer in layers[part])
    totals = [totals[0] + size, totals[1] + macs]
    kinds = collections.Counter(layer.kind for layer in layers[part])
    shape = "x".join(map(str, layers[part][-1].output_shape)) if layers[part] else ""
    rows.append((part, f"{size:,}", f"{macs:,}", shape,
                 ", ".join(f"{n} {kind}" for kind, n in kinds.items())))
  rows.append(("total", f"{totals[0]:,}", f"{totals[1]:,}", "", ""))
  widths = [max(len(r[i]) for r in rows) for i in range(5)]
  def line(row):
    cells = [row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2]),
             row[3].ljust(widths[3]), row[4]]
    return "  ".join(cells).rstrip()
  return "\n".join(line(r) for r in rows)


def inheritance(setup: Setup) -> str:
  """What the model takes from other weights and what is new."""
  kinds = collections.Counter(path.split("/")[-1] for path in setup.new_paths)
  new = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "nothing"
  return f"starts from {setup.origin}; new: {new}"


def initial_agreement(setup: Setup, state: TrainState, frozen: Any) -> str:
  """How far the student is from its teacher before the first step, on the first held-out images.

  Raises:
    ValueError: if it is not the teacher's function although both see the same input.
  """
  batches = setup.pipeline.eval_batches()
  batch = next(batches)
  batches.close()
  gap, scale = map(float, jax.jit(setup.task.initial_gap)(
      state.params, state.model_state, frozen, batch))
  text = (f"student and teacher differ by at most {gap:.3g} in any logit of "
          f"{batch['mask'].sum():.0f} held-out images")
  teacher = setup.task.teacher
  pre = teacher.preprocessing
  if (tuple(pre.mean), tuple(pre.std)) != (setup.task.mean, setup.task.std):
    return text + (
        f"\nnote: the student's input is normalised by mean {setup.task.mean}, std {setup.task.std}, the "
        f"teacher's by {pre.mean}, {pre.std}; with config.data.mean=() and std=() the student takes over "
        "the teacher's")
  if not gap <= 1e-3 * scale:
    raise ValueError(
        f"{text}, where they should agree: the student does not start as {teacher.name} in "
        f"{teacher.source}. A teacher that has IC units itself needs a student whose "
        "config.model.options.alpha is the teacher's own; any other teacher should be a plain network")
  return text


def memory(compiled: Any) -> str:
  """Bytes that the compiled step asks for on each device, as XLA says; '' where it does not."""
  need = memory_need(compiled)
  if need is None:
    return ""
  return (f"memory per device: {mebibytes(need.held)} held between steps, "
          f"{mebibytes(need.temporary)} temporary within one")


def _in_call_order(parts: Any, called: list[str]) -> list[str]:
  """Top-level parts in the order of their layers; one without layers goes behind its namesakes."""
  def place(part):
    same = [i for i, other in enumerate(called) if other == part]
    kin = [i for i, other in enumerate(called) if other.split("_")[0] == part.split("_")[0]]
    return (same or [k + 0.5 for k in kin] or [len(called)])[0]
  return sorted(parts, key=place)


def _size(tree: Any) -> int:
  return sum(_size(v) if isinstance(v, dict) else math.prod(v.shape) for v in tree.values())
