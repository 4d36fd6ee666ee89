"""What it costs to train several seeds in one program instead of one after the other.

    python benchmarks/seeds_side_by_side.py [--model=resnet20_cifar] [--batch-size=128] [--runs=1,2,4] [--json=FILE]

Times a training step of each number of runs mapped over side by side, on made-up images, and prints it per
run: below 1.00 of a single run's step the seeds gain by being together. Every round times each number once, in
random order; the medians of their ratios within a round are shown. It says nothing about input pipelines.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import jax
import jax.numpy as jnp
import numpy as np

from bionets_jax.training.config import classification_config
from bionets_jax.training.devices import describe_devices
from bionets_jax.training.setup import make_setup
from bionets_jax.training.side_by_side import over_runs, stack
from bionets_jax.training.state import make_train_step


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", default="resnet20_cifar")
  parser.add_argument("--data", default="cifar10", help="whose images the made-up ones are like")
  parser.add_argument("--batch-size", type=int, default=128)
  parser.add_argument("--runs", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4])
  parser.add_argument("--rounds", type=int, default=10)
  parser.add_argument("--steps", type=int, default=10, help="timed together in a round")
  parser.add_argument("--json", metavar="FILE")
  options = parser.parse_args()
  counts = sorted({1, *options.runs})

  config = classification_config()
  config.model.name = options.model
  config.data.name = f"generated/{options.data}"
  config.batch_size = config.eval_batch_size = 8 * jax.device_count()
  config.data.drop_remainder = True
  setup = make_setup(config)
  programs = {count: _program(setup, count, options.batch_size) for count in counts}

  seconds = {count: [] for count in counts}
  for number in range(options.rounds + 1):
    for count in random.Random(number).sample(counts, len(counts)):
      start = time.perf_counter()
      programs[count](options.steps)
      if number:  # the first round warms up
        seconds[count].append((time.perf_counter() - start) / options.steps / count)
  print(f"{options.model}, batch {options.batch_size}, {describe_devices(setup.mesh)}, {setup.dtype}, "
        f"jax {jax.__version__}")
  print("runs  step per run  ratio to a single run's")
  rows = []
  for count in counts:
    ratio = statistics.median(a / b for a, b in zip(seconds[count], seconds[1], strict=True))
    rows.append({"runs": count, "seconds_per_step_and_run": statistics.median(seconds[count]), "ratio": ratio})
    print(f"{count:>4}  {1e3 * rows[-1]['seconds_per_step_and_run']:9.1f} ms  {ratio:.2f}")
  if options.json:
    with open(options.json, "w", encoding="utf-8") as file:
      json.dump({"model": options.model, "batch_size": options.batch_size, "dtype": setup.dtype, "rows": rows,
                 "devices": describe_devices(setup.mesh), "machine": platform.machine(),
                 "jax": jax.__version__}, file, indent=2)
  return 0


def _program(setup, count: int, batch_size: int):
  """A function that makes so many steps of `count` runs and returns when they are done."""
  def one_step(state, batch, seed):
    return make_train_step(
        setup.task, setup.optimizer, seed=seed, accumulate=1, ema_decay=0.0,
        unroll=setup.mesh.devices.flat[0].platform == "cpu")(state, {}, batch)

  step = jax.jit(over_runs(one_step, (0, 0, 0)), donate_argnums=0)
  state = stack([jax.jit(setup.init)(jax.random.key(seed), {}) for seed in range(count)])
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.integers(0, 256, (batch_size, *setup.pipeline.image_shape), np.uint8))
  labels = jnp.asarray(rng.integers(0, setup.pipeline.num_classes, batch_size), jnp.int32)
  batches = [{"image": images, "label": labels}] * count
  seeds = [jnp.uint32(seed) for seed in range(count)]

  def run(steps: int) -> None:
    nonlocal state
    for _ in range(steps):
      state, metrics = step(state, batches, seeds)
    jax.block_until_ready(metrics)

  return run


if __name__ == "__main__":
  sys.exit(main())
