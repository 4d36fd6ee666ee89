"""ResNet-20 on CIFAR-10 side by side in bionets_jax and PyTorch: same weights, same batches.

    pip install torch
    python benchmarks/compare_cifar_pytorch.py --data-dir=DIR

Both sides start from bionets_jax's initial weights and train on the very same augmented uint8
pixels in the same order, under the recipe of configs/fp_resnet_cifar10.py:resnet20. bionets_jax takes
its batches, its step and its evaluation from the trainer's own functions; PyTorch has the network
of tests/fixtures/make_torch_fixtures.py, torch.optim.SGD and torch's BatchNorm, channels last.

Two comparisons:

  float64  the first 60 steps on the first 32 images of each batch. Rounding is so small that any
           difference in what is computed would show in the first few steps, where the losses have
           to agree to ten digits or more. Later they need not: this early training is unstable
           (rate 0.1 from the first step) and multiplies every difference, from 1e-15 to 1e-9
           within 20 steps and to 1e-4 and more at 60.
  float32  whole epochs as one trains. There the same instability turns 1e-6 at step 1 into two
           different runs within ten steps, which share the recipe and no more.

Writes result.json and curves.png to --out and tables to stdout. Three epochs take 30 to 45 minutes
on two CPU cores. --epochs=0 does the first --steps steps only.

What it does not show:
  * That float32 training is equally good on both sides. One pair of runs cannot tell a small bias
    from the spread between runs of one side. In the committed result bionets_jax's training loss
    is lower in every mean of 50 steps, by 0.06 typically; several runs of each would have to
    show whether that is chance.
  * Published accuracy. After 3 of 200 epochs at the first learning rate, test errors are far from
    final and jump by several points from one epoch to the next; a gap of that size between the two
    sides says nothing. The committed result is moreover from a JPEG copy of CIFAR-10, harder than
    the original: never hold its errors against a paper.
  * Speed elsewhere. Only the ratio of the step times means something, on this kind of CPU; other
    work on the machine moves the times, and not those of both sides alike.
  * Equal running variances of BatchNorm. torch averages the unbiased variance of a batch,
    bionets_jax, as Flax, the biased one: a factor n / (n - 1), with n > 5,000 values a channel in
    whole batches, and in evaluation only.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

# Idle OpenMP threads of torch would spin into the other side's step. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

try:
  import torch
except ModuleNotFoundError:
  sys.exit("error: PyTorch is missing, and this comparison needs it: pip install torch==2.13.0")
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "fixtures"))

from make_torch_fixtures import CifarResNet

import bionets_jax
from bionets_jax.report.curves import COLOURS
from bionets_jax.training.setup import make_setup
from bionets_jax.training.state import make_eval_step, make_train_step
from bionets_jax.training.tasks import Classification
from bionets_jax.weights import to_layout
from configs.fp_resnet_cifar10 import get_config

DEFAULT_OUT = Path(__file__).resolve().parent / "results" / "cifar_pytorch"
FLOAT64_STEPS = 60
FLOAT64_BATCH = 32
SHOWN_STEPS = (1, 2, 3, 5, 10, 20, 50, 60, 100)
MEAN_OVER = 50
SAY_EVERY = 30  # seconds


class Ours:
  """The trainer's step and evaluation, one batch at a time."""

  def __init__(self, task, optimizer, state, config):
    self.task = task
    self.state = jax.tree.map(jnp.copy, state)  # the step donates it
    self._step = jax.jit(
        make_train_step(
            task, optimizer, seed=config.seed, accumulate=config.accumulate,
            ema_decay=config.ema_decay, unroll=True),
        donate_argnums=0)
    self._eval_step = jax.jit(make_eval_step(task))
    self._compiled = {}

  def prepare(self, batch):
    """Compiles the step for a new batch size, so that no step's time has it."""
    size = len(batch["label"])
    if size not in self._compiled:
      self._compiled[size] = self._step.lower(self.state, self.task.frozen, batch).compile()

  def step(self, batch):
    compiled = self._compiled[len(batch["label"])]
    self.state, metrics = compiled(self.state, self.task.frozen, batch)
    return float(metrics["loss"]) / float(metrics["count"])

  def evaluate(self, batch):
    """(summed loss, summed error in percent, number of images)."""
    sums = self._eval_step(*self.state.evaluated, batch)
    return np.array([float(sums[name]) for name in ("loss", "top1_error", "count")])

  def tensors(self):
    """All variables under their torch names."""
    params, model_state = jax.device_get(self.state.evaluated)
    return to_layout({"params": params, **model_state}, "pytorch_resnet_cifar10")


class Theirs:
  """The same in PyTorch, in any dtype."""

  def __init__(self, tensors, config, steps_per_epoch, dtype):
    self._net = CifarResNet(3).to(dtype=dtype, memory_format=torch.channels_last)
    self._net.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()})
    self._mean, self._std = (
        torch.tensor(values, dtype=dtype) for values in (config.data.mean, config.data.std))
    self._optimizer = torch.optim.SGD(
        self._net.parameters(), lr=config.schedule.lr, momentum=config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay)
    self._schedule = torch.optim.lr_scheduler.MultiStepLR(
        self._optimizer, [epoch * steps_per_epoch for epoch in config.schedule.boundaries],
        config.schedule.factor)

  def _logits(self, images):
    x = (images.to(self._mean.dtype) / 255 - self._mean) / self._std
    return self._net(x.permute(0, 3, 1, 2))  # a view: NHWC in memory is channels last

  def step(self, batch):
    self._net.train()
    self._optimizer.zero_grad()
    loss = F.cross_entropy(self._logits(batch["image"]), batch["label"])
    loss.backward()
    self._optimizer.step()
    self._schedule.step()
    return loss.item()

  @torch.no_grad()
  def evaluate(self, batch):
    self._net.eval()
    real = batch["mask"] > 0
    logits, labels = self._logits(batch["image"])[real], batch["label"][real]
    loss = F.cross_entropy(logits, labels, reduction="sum").item()
    wrong = (logits.argmax(1) != labels).sum().item()
    return np.array([loss, 100.0 * wrong, len(labels)])

  def tensors(self):
    return {key: value.numpy() for key, value in self._net.state_dict().items()}


class InFloat64:
  """The network with the two pieces that are float32 at any dtype in float64 instead.

  These are the trainer's normalisation of the pixels and the network's global mean. The task in
  front of it has mean 0 and deviation 1, so that the pixels can be recovered without error.
  """

  def __init__(self, model, mean, std):
    self._model = model.clone(dtype=jnp.float64)
    self._mean, self._std = np.array(mean), np.array(std)

  def apply(self, variables, images, **options):
    pixels = jnp.round(images.astype(jnp.float64) * 255)
    x = (pixels / 255 - self._mean) / self._std
    (_, found), state = self._model.apply(variables, x, endpoints=("stage3",), **options)
    head = variables["params"]["head"]
    return found["stage3"].mean((1, 2)) @ head["kernel"] + head["bias"], state


def for_torch(batch):
  """A batch of the pipeline as torch tensors: a copy of the same numbers."""
  tensors = {name: torch.from_numpy(np.array(value)) for name, value in batch.items()}
  tensors["label"] = tensors["label"].long()
  return tensors


def train_together(ours, theirs, batches, total, steps_per_epoch=None, evaluate=None):
  """Feeds every batch to both.

  Args:
    ours, theirs: the two sides.
    batches: of the pipeline.
    total: number of steps.
    steps_per_epoch: after how many to call `evaluate`; None: never.
    evaluate: () -> what to keep of an epoch.

  Returns:
    {'loss', 'seconds': by side, a list over the steps; 'epochs': list of what `evaluate` gave}.
  """
  loss = {"bionets_jax": [], "torch": []}
  seconds = {"bionets_jax": [], "torch": []}
  epochs = []
  started = said = time.perf_counter()
  for number, batch in enumerate(itertools.islice(batches, total), start=1):
    ours.prepare(batch)
    sides = [
        ("bionets_jax", ours, jax.block_until_ready(batch)), ("torch", theirs, for_torch(batch))]
    # They take turns in going first: the second finds the caches as the first leaves them.
    for name, side, inputs in sides if number % 2 else sides[::-1]:
      before = time.perf_counter()
      loss[name].append(side.step(inputs))
      seconds[name].append(round(time.perf_counter() - before, 5))
    if steps_per_epoch and number % steps_per_epoch == 0:
      epochs.append(evaluate())
    now = time.perf_counter()
    if now - said > SAY_EVERY or number == total:
      said = now
      rate = (now - started) / number
      shown = ", ".join(f"{name} {losses[-1]:.4f}" for name, losses in loss.items())
      print(f"step {number:>5} of {total}  loss {shown}  {rate:.2f} s a step for both, "
            f"{rate * (total - number) / 60:.1f} min left", flush=True)
  return {"loss": loss, "seconds": seconds, "epochs": epochs}


def compare_float64(setup, config, state, steps):
  """The first steps in float64 throughout, from the float32 initial weights `state`."""
  with jax.enable_x64(True):
    task = Classification(
        InFloat64(setup.task.model, setup.task.mean, setup.task.std),
        image_shape=setup.pipeline.image_shape, mean=(0.0,), std=(1.0,))
    state = jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
    ours = Ours(task, setup.optimizer, state, config)
    theirs = Theirs(ours.tensors(), config, setup.pipeline.steps_per_epoch, torch.float64)
    batches = setup.pipeline.train_batches(0)
    small = ({name: x[:FLOAT64_BATCH] for name, x in batch.items()} for batch in batches)
    record = train_together(ours, theirs, small, steps)
    batches.close()
    a, b = ours.tensors(), theirs.tensors()
  # Relative to the largest entry of a tensor; running variances differ on purpose.
  weights, variances = 0.0, 0.0
  for key in a:
    apart = float(np.abs(a[key] - b[key]).max() / max(np.abs(b[key]).max(), 1e-300))
    if key.endswith("running_var"):
      variances = max(variances, apart)
    elif not key.endswith("num_batches_tracked"):
      weights = max(weights, apart)
  return {"batch_size": FLOAT64_BATCH, "loss": record["loss"],
          "weights_relative_difference": weights, "running_var_relative_difference": variances}


def compare_float32(setup, config, state, steps):
  """Training as one trains, with an evaluation on the whole test set after each epoch."""
  ours = Ours(setup.task, setup.optimizer, state, config)
  theirs = Theirs(ours.tensors(), config, setup.pipeline.steps_per_epoch, torch.float32)

  def evaluate():
    sums = {"bionets_jax": 0.0, "torch": 0.0}
    for batch in setup.pipeline.eval_batches():
      sums["bionets_jax"] += ours.evaluate(batch)
      sums["torch"] += theirs.evaluate(for_torch(batch))
    out = {name: {"test_loss": loss / count, "test_error": error / count, "images": int(count)}
           for name, (loss, error, count) in sums.items()}
    print("test error  " + ", ".join(f"{k} {v['test_error']:.2f} %" for k, v in out.items()),
          flush=True)
    return out

  batches = setup.pipeline.train_batches(0)
  per_epoch = setup.pipeline.steps_per_epoch
  record = train_together(ours, theirs, batches, steps, per_epoch, evaluate)
  batches.close()
  # Whole batches only: the last one of an epoch is smaller.
  seconds = {name: [s for i, s in enumerate(values, start=1) if i % per_epoch]
             for name, values in record["seconds"].items()}
  ratios = [b / a for a, b in zip(seconds["bionets_jax"], seconds["torch"], strict=True)]
  return {
      "batch_size": config.batch_size, "steps_per_epoch": per_epoch,
      "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
      "median_of_torch_seconds_by_bionets_jax_seconds": round(statistics.median(ratios), 3),
  } | record


def print_tables(result, window):
  single, double = result["float32"], result["float64"]
  for name in ("float64", "float32"):
    ours, theirs = result[name]["loss"]["bionets_jax"], result[name]["loss"]["torch"]
    print(f"\nloss in {name}, batch {result[name]['batch_size']}\n"
          f"{'step':>6}{'bionets_jax':>20}{'torch':>20}{'difference':>12}{'relative':>11}")
    for step in (s for s in SHOWN_STEPS if s <= min(window, len(ours))):
      a, b = ours[step - 1], theirs[step - 1]
      print(f"{step:>6}{a:>20.14g}{b:>20.14g}{abs(a - b):>12.1e}{abs(a - b) / b:>11.1e}")
  print("\nafter the last step in float64, relative to a tensor's largest entry: weights and\n"
        f"running means differ by at most {double['weights_relative_difference']:.1e}, running "
        f"variances (biased or not) by {double['running_var_relative_difference']:.1e}")

  print(f"\nfloat32, mean loss of {MEAN_OVER} steps\n"
        f"{'steps':>13}{'bionets_jax':>13}{'torch':>9}{'difference':>12}")
  for start in range(0, len(ours), MEAN_OVER):
    end = min(start + MEAN_OVER, len(ours))
    a, b = np.mean(ours[start:end]), np.mean(theirs[start:end])
    print(f"{start + 1:>6} -{end:>5}{a:>13.4f}{b:>9.4f}{a - b:>12.4f}")

  if single["epochs"]:
    print(f"\n{'epoch':>6}{'test error %: bionets_jax':>27}{'torch':>9}"
          f"{'test loss: bionets_jax':>25}{'torch':>9}")
  for i, epoch in enumerate(single["epochs"], start=1):
    a, b = epoch["bionets_jax"], epoch["torch"]
    print(f"{i:>6}{a['test_error']:>27.2f}{b['test_error']:>9.2f}"
          f"{a['test_loss']:>25.4f}{b['test_loss']:>9.4f}")

  seconds, ratio = (
      single["median_seconds"], single["median_of_torch_seconds_by_bionets_jax_seconds"])
  print(f"\nmedian step of {single['batch_size']} images: "
        f"bionets_jax {seconds['bionets_jax']:.3f} s, torch {seconds['torch']:.3f} s; "
        f"torch takes {ratio:.2f} times as long (median of the steps' ratios)")


def plot(result, window, path):
  """Losses, their difference and test errors, one under the other to fit a column."""
  single, double = result["float32"]["loss"], result["float64"]["loss"]
  epochs = result["float32"]["epochs"]
  styles = {"bionets_jax": dict(color=COLOURS[0], linestyle="-", marker="o"),
            "torch": dict(color=COLOURS[1], linestyle="--", marker="x")}
  labels = {"bionets_jax": "bionets_jax", "torch": "PyTorch"}
  with matplotlib.rc_context({"font.size": 9, "legend.frameon": False, "axes.grid": True,
                              "grid.alpha": 0.3, "axes.spines.top": False,
                              "axes.spines.right": False}):
    figure = Figure(figsize=(4, 8), layout="constrained")
    loss_axes, difference_axes, error_axes = figure.subplots(3, 1)

    for name, losses in single.items():
      means = [np.mean(losses[i:i + MEAN_OVER]) for i in range(0, len(losses), MEAN_OVER)]
      middles = [min(i + MEAN_OVER / 2, len(losses)) for i in range(0, len(losses), MEAN_OVER)]
      loss_axes.plot(range(1, len(losses) + 1), losses, color=styles[name]["color"],
                     alpha=0.25, linewidth=0.6)
      loss_axes.plot(middles, means, **styles[name], markersize=4, fillstyle="none", linewidth=1.2,
                     label=labels[name])
    loss_axes.set(xlabel="step", ylabel="training loss (nats)", yscale="log",
                  title=f"Float32; marked: means of {MEAN_OVER} steps")
    loss_axes.yaxis.set_major_formatter("{x:g}")
    loss_axes.yaxis.set_minor_formatter("{x:g}")
    loss_axes.legend()

    for (name, losses), style in zip(
        {"float32, batch 128": single, f"float64, batch {FLOAT64_BATCH}": double}.items(),
        (dict(color=COLOURS[6], linestyle="-"), dict(color=COLOURS[2], linestyle="--")),
        strict=True):
      apart = np.abs(np.subtract(losses["bionets_jax"], losses["torch"]))[:window]
      steps = np.arange(1, len(apart) + 1)
      # A log scale has no place for losses that are equal to the last bit.
      difference_axes.plot(steps[apart > 0], apart[apart > 0], **style, linewidth=1.2, label=name)
    difference_axes.set(xlabel="step", ylabel="|difference of the losses| (nats)", yscale="log",
                        title="bionets_jax against PyTorch, same batches")
    difference_axes.legend()

    for name in single:
      error_axes.plot(range(1, len(epochs) + 1), [e[name]["test_error"] for e in epochs],
                      **styles[name], markersize=5, fillstyle="none", label=labels[name])
    error_axes.set(xlabel="epoch", ylabel="test error (%)", xticks=range(1, len(epochs) + 1),
                   title="Float32, whole test set")
    error_axes.margins(y=0.1)
    error_axes.set_ylim(bottom=0)
    error_axes.legend(loc="lower left")
    figure.savefig(path, dpi=200)


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data-dir", default="", help="where CIFAR-10 is; default: TFDS's directory")
  parser.add_argument("--epochs", type=int, default=3)
  parser.add_argument("--steps", type=int, default=100, help="steps to compare one by one")
  parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="directory of the results")
  parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
  options = parser.parse_args()
  if options.epochs < 0 or options.steps < 1:
    parser.error("give --epochs of 0 or more and --steps of 1 or more")

  jax.config.update("jax_platforms", "cpu")  # the same device for both
  config = get_config("resnet20")
  config.data.dir = options.data_dir
  config.seed = options.seed
  config.dtype = "float32"
  try:
    setup = make_setup(config)
  except (ValueError, FileNotFoundError, RuntimeError) as error:
    sys.exit(f"error: {error}")
  total = max(options.epochs * setup.pipeline.steps_per_epoch, options.steps)
  init = jax.jit(setup.init)
  state = init(jax.random.key(config.seed), setup.inherited)

  double_steps = min(FLOAT64_STEPS, options.steps)
  print(f"float64: {double_steps} steps of {FLOAT64_BATCH} images", flush=True)
  double = compare_float64(setup, config, state, double_steps)
  print(f"float32: {total} steps of {config.batch_size} images", flush=True)
  single = compare_float32(setup, config, state, total)

  result = {
      "recipe": "configs/fp_resnet_cifar10.py:resnet20",
      "seed": options.seed,
      "data": config.data.name,
      "machine": {
          "cores": os.cpu_count(), "architecture": platform.machine(), "system": platform.system(),
          "torch_threads": torch.get_num_threads()},
      "versions": {
          "python": platform.python_version(), "bionets_jax": bionets_jax.__version__,
          "jax": jax.__version__, "torch": torch.__version__, "numpy": np.__version__},
      "float64": double,
      "float32": single,
  }
  options.out.mkdir(parents=True, exist_ok=True)
  with open(options.out / "result.json", "w", encoding="utf-8") as file:
    json.dump(result, file)
    file.write("\n")
  plot(result, options.steps, options.out / "curves.png")
  print_tables(result, options.steps)
  print(f"\nwrote result.json and curves.png to {options.out}")


if __name__ == "__main__":
  main()
