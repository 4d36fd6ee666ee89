"""What the benchmarks share: interleaved timing, ratios with their spread, the machine in words."""

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def positive(text: str) -> int:
  """For argparse: a whole number from 1 on."""
  number = int(text)
  if number < 1:
    raise ValueError
  return number


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], rounds: int, wait: Callable[[Any], Any]
) -> dict[str, list[float]]:
  """Seconds of each candidate in each round.

  A round calls every candidate once, in random order, so that what else the machine does falls on all alike.
  Two calls before the first round warm up.

  Args:
    candidates: name -> function of no arguments.
    rounds: their number.
    wait: blocks until the result of a call is there.
  """
  seconds: dict[str, list[float]] = {name: [] for name in candidates}
  for call in candidates.values():
    for _ in range(2):
      wait(call())
  for number in range(rounds):
    for name in random.Random(number).sample(list(candidates), len(candidates)):
      start = time.perf_counter()
      wait(candidates[name]())
      seconds[name].append(time.perf_counter() - start)
  return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> dict[str, float]:
  """The time of one candidate in that of another: median of the ratios within a round, and quartiles."""
  ratios = sorted(a / b for a, b in zip(seconds[name], seconds[base], strict=True))
  low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
  return {"median": median, "low": low, "high": high}


def wait_for(result: Any) -> None:
  """Blocks until JAX's arrays or torch's tensors are computed."""
  leaves = jax.tree.leaves(result)
  if any(isinstance(leaf, jax.Array) for leaf in leaves):
    jax.block_until_ready(result)
  elif leaves and getattr(leaves[0], "is_cuda", False):
    import torch

    torch.cuda.synchronize()


def check(
    name: str, results: Mapping[str, Any], reference: Any, tolerance: float, floor: float = 0.0
) -> float:
  """The largest distance of any result from the reference, as a share of the reference's norm.

  A norm and not the largest difference: where a hinge is at 0 but for rounding, a single gradient may have
  either of two values.

  Args:
    name: of what is compared, for the message.
    results: by candidate, trees of arrays.
    reference: a tree of the same form.
    tolerance: how far off is too far.
    floor: a norm below which a leaf's counts as this, for gradients that are 0 but for rounding.

  Raises:
    SystemExit: if it is more than `tolerance`: a time of something else says nothing.
  """
  worst = 0.0
  want = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(reference)]
  for candidate, result in results.items():
    have = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(result)]
    for a, b in zip(have, want, strict=True):
      error = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), floor, 1e-30))
      if not error <= tolerance:
        raise SystemExit(f"error: {name}: {candidate} is off by {error:.1e} of the reference's norm")
      worst = max(worst, error)
  return worst


def machine() -> dict[str, Any]:
  """What a reader has to know of where the numbers were made."""
  found = {
      "devices": ", ".join(sorted({d.device_kind for d in jax.devices()})), "cores": os.cpu_count(),
      "processor": _processor(), "python": platform.python_version(), "jax": jax.__version__,
      "load": round(os.getloadavg()[0], 2)}
  try:
    import torch
  except ModuleNotFoundError:
    return found
  return found | {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}


def table(rows: list[list[str]]) -> str:
  """Rows of text as columns; the first row is the head."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return "\n".join("  ".join(
      [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
      for row in rows)


def write(path: str, content: Mapping[str, Any]) -> None:
  """Writes JSON, whole or not at all."""
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  with open(f"{path}.tmp", "w") as file:
    json.dump(content, file, indent=1)
    file.write("\n")
  os.replace(f"{path}.tmp", path)


def _processor() -> str:
  try:
    with open("/proc/cpuinfo") as file:
      names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
  except OSError:
    return platform.processor()
  return names[0] if names else platform.processor()
