"""How fast are photographs made into batches, and how long would a device have to wait for them?

    python benchmarks/input.py [--only=rate|parts|workers|stalls|device] [--name=imagenet2012 --dir=DIR]
        [--torch-python=FILE] [--tf-python=FILE] [--json=FILE]

rate     images a second of one core, from files to uint8 batches of RandomResizedCrop(224) and a flip: ours,
         ours with `fast_bilinear`, torchvision's, tf.data's (with and without an antialiasing filter),
         interleaved, each pinned to the same core. Ours is compared with PIL and torchvision bit for bit
         first, tf.data's antialiasing filter to 1 %. torchvision and TensorFlow are asked for by the
         interpreter that has them.
parts    where the time of a core goes.
workers  start-up and images a second over the numbers of worker processes.
stalls   what share of its time a device would wait that takes images at a given part of the rate of as many
         workers as a run has by default. On few cores that is the scheduler's doing, where it is little.
device   what a CIFAR-size set that lives on the device costs there, beside a step of ResNet-20.

Without --name the files are made: photograph-like noise of 500 x 375 pixels, with the bytes of ImageNet's.
With --name they are a set's own JPEGs, those of --pixels alone (both ways up; '' for all).
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import input_parts
import numpy as np
import timing
from input_rivals import RIVALS
from PIL import Image

from bionets_jax.data import (
  HOST_TRANSFORMS,
  BatchPlan,
  make_pipeline,
  open_source,
  parse_transforms,
)
from bionets_jax.data.batches import cores, resolve_workers
from bionets_jax.data.decode import decode_rgb, size_of_baseline_jpeg
from bionets_jax.data.stream import BatchReader, prepare
from bionets_jax.data.transforms import example_rng

SIZE, BATCH = 224, 32
OURS = {"ours": f"random_resized_crop({SIZE})|flip",
        "ours, fast_bilinear": f"random_resized_crop({SIZE}, fast_bilinear)|flip"}
STALL_RATES, STALL_TURNS = (0.5, 0.8, 0.9), 4
# Batches that may be there before anyone asks: two on the device, and two of each worker.
READ_AHEAD = 2 + 2 * cores()


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", choices=tuple(QUESTIONS), action="append", default=[])
  parser.add_argument("--name", default="", help="a TFDS name, e.g. imagenet2012")
  parser.add_argument("--dir", default="", help="where that set is")
  parser.add_argument("--pixels", default="500x375", help="only JPEGs of this size, '' for all")
  parser.add_argument("--images", type=int, default=96, help="files, and images in a round")
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--torch-python", default="", help="an interpreter with torchvision")
  parser.add_argument("--tf-python", default="", help="an interpreter with tensorflow")
  parser.add_argument("--seconds", type=float, default=8.0, help="of each number of workers and each rate")
  parser.add_argument("--json", metavar="FILE", default="", help="what it holds of other questions stays")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    files = write_files(folder, options)
    content = json.loads(pathlib.Path(options.json).read_text()) if os.path.exists(options.json) else {}
    content |= {"machine": timing.machine(), "rounds": options.rounds, "files": files}
    about = content["machine"] | files
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    for question in options.only or QUESTIONS:
      content[question] = QUESTIONS[question](folder, options)
  if options.json:
    timing.write(options.json, content)
  return 0


def write_files(folder, options):
  """Fills FOLDER/train/0 with JPEGs and says what they are."""
  width, height = map(int, options.pixels.split("x")) if options.pixels else (None, None)
  there = pathlib.Path(folder, "train", "0")
  there.mkdir(parents=True)
  if options.name:
    source = open_source(options.name, "train", options.dir)
    data = (image for image, _, _ in source.read_many(range(len(source))))
    wanted = {(height, width), (width, height)}
    data = (d for d in data if (size := size_of_baseline_jpeg(d)) and (not width or size in wanted))
  else:
    data = (input_parts.photograph(i, height or 375, width or 500) for i in range(options.images))
  data = [d for d, _ in zip(data, range(options.images), strict=False)]
  if not data:
    raise SystemExit(f"error: {options.name} has no JPEGs of {options.pixels} pixels; give another --pixels")
  for i, d in enumerate(data):
    (there / f"{i:04}.jpg").write_bytes(d)
  return {"images": options.name or "made up", "pixels": options.pixels or "as they are", "number": len(data),
          "mean KB": round(sum(map(len, data)) / len(data) / 1024, 1)}


# The rate of one core --------------------------------------------------------------------------


def rate(folder, options):
  core = min(os.sched_getaffinity(0))
  train = str(pathlib.Path(folder, "train"))
  everywhere = os.sched_getaffinity(0)
  count = options.images // BATCH * BATCH
  rivals = {name: Rival(name, python, train, core) for name, python in interpreters(options).items()}
  try:
    check(folder, rivals)
    os.sched_setaffinity(0, {core})
    calls = {name: reader_pass(folder, text, count) for name, text in available().items()}
    calls |= {name: lambda rival=rival: rival.ask(f"pass {count}") for name, rival in rivals.items()}
    seconds = timing.interleaved(calls, options.rounds, lambda result: result)
  finally:
    os.sched_setaffinity(0, everywhere)
    for rival in rivals.values():
      rival.close()
  found = {name: {"images per second": count / float(np.median(seconds[name])),
                  "time vs ours": timing.ratio(seconds, name, "ours")} for name in calls}
  rows = [["one core", "images/s", "time vs ours", "quartiles"]] + [
      [name, f"{values['images per second']:.0f}", f"{r['median']:.2f}", f"{r['low']:.2f}-{r['high']:.2f}"]
      for name, values in found.items() for r in [values["time vs ours"]]]
  print("\n" + timing.table(rows), flush=True)
  return found


def available():
  """Our candidates; that with a package that is not installed is left out."""
  found = {}
  for name, text in OURS.items():
    try:
      found[name] = parse_transforms(text, HOST_TRANSFORMS)
    except ValueError as error:
      print(f"left out: {name}: {error}")
  return found


def reader_pass(folder, transforms, count):
  """A function that reads `count` images in batches, the next ones each time."""
  source = open_source("folder", "train", folder)
  plan = BatchPlan(len(source), BATCH, 0, True)
  reader = BatchReader(source, plan, transforms, (SIZE, SIZE, 3), 0, (0,), 1)
  steps = iter(range(10**9))
  return lambda: [reader[next(steps)]["image"].shape for _ in range(count // BATCH)]


def interpreters(options):
  """Rival -> interpreter, of those asked for."""
  pythons = {"torchvision": options.torch_python, "tf": options.tf_python}
  return {name: pythons[name.split(".")[0]] for name in RIVALS if pythons[name.split(".")[0]]}


class Rival:
  """A process that runs one of `input_rivals.RIVALS`."""

  def __init__(self, name, python, folder, core):
    script = pathlib.Path(__file__).with_name("input_rivals.py")
    self._name = name
    self._process = subprocess.Popen(
        [python, str(script), name, folder, str(SIZE), str(BATCH), str(core)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

  def ask(self, line):
    print(line, file=self._process.stdin, flush=True)
    answer = self._process.stdout.readline().strip()
    if not answer:
      raise SystemExit(f"error: {self._name} ended; its message is above")
    return answer

  def close(self):
    self._process.stdin.close()
    self._process.wait()


def check(folder, rivals):
  """Ends the script where pixels are not what they are to be."""
  source = open_source("folder", "train", folder)
  crop, flip = parse_transforms(OURS["ours"], HOST_TRANSFORMS)
  whole = []
  for i in range(BATCH):
    data, _, key = source.read(i)
    rng = example_rng(0, 0, i)
    image = Image.open(key).convert("RGB")
    top, left, height, width = crop.box(image.height, image.width, rng)
    crop_of_it = image.crop((left, top, left + width, top + height))
    expected = crop_of_it.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
      expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    found = prepare(data, (crop, flip), (SIZE, SIZE, 3), example_rng(0, 0, i), key)
    if not np.array_equal(found, expected):
      raise SystemExit(f"error: {key}: these are not PIL's pixels")
    whole.append(crop.cut(decode_rgb(data), (0, 0, image.height, image.width)))
  whole = np.stack(whole)
  for name, rival in rivals.items():
    theirs = np.frombuffer(bytes.fromhex(rival.ask(f"check {BATCH}")), np.uint8).reshape(whole.shape)
    if name == "torchvision":
      timing.check(name, {"ours": whole}, theirs, 0.0)
    elif name == "tf.data antialias":
      timing.check(name, {"ours": whole}, theirs, 0.01)


# Parts, workers and stalls ---------------------------------------------------------------------------------


def parts(folder, options):
  source = open_source("folder", "train", folder)
  found = input_parts.measure(source, SIZE, options.rounds)
  total = sum(found.values())
  rows = [["one image", "ms", "share"]] + [
      [name, f"{1e3 * value:.3f}", f"{100 * value / total:.0f} %"] for name, value in found.items()]
  print("\n" + timing.table([*rows, ["all", f"{1e3 * total:.3f}", ""]]), flush=True)
  return {name: {"ms": 1e3 * value} for name, value in found.items()}


def workers(folder, options):
  found = {}
  rows = [["worker processes", "first batch after s", "images/s", "a core"]]
  for number in sorted({0, 1, cores() // 2, cores() - 1, cores()} - {-1}):
    start = time.perf_counter()
    batches = pipeline(folder, number).train_batches()
    try:
      next(batches)
      first = time.perf_counter() - start
      speed = consume(batches, options.seconds)
    finally:
      batches.close()
    used = min(number or cores(), cores())
    found[str(number)] = {"first batch seconds": first, "images per second": speed, "per core": speed / used}
    rows.append([str(number) if number else f"0 ({cores()} threads)", f"{first:.1f}", f"{speed:.0f}",
                 f"{speed / used:.0f}"])
  print("\n" + timing.table(rows), flush=True)
  return found


def stalls(folder, options):
  """Of a device that takes batches at part of the rate at which one that never waits gets them.

  Both are measured in turn, as a machine's speed changes; the share is the median over the turns.
  """
  number = resolve_workers(-1)
  batches = pipeline(folder, number).train_batches()
  shares = {part: [] for part in STALL_RATES}
  full = []
  try:
    next(batches)
    for _ in range(STALL_TURNS):
      full.append(consume(batches, options.seconds / STALL_TURNS))
      for part, found in shares.items():
        found.append(waiting(batches, part * full[-1], options.seconds / STALL_TURNS))
  finally:
    batches.close()
  found = {f"{part:.0%}": {"waited": float(np.median(values)), "least": min(values), "most": max(values)}
           for part, values in shares.items()}
  print("\n" + timing.table([["taken at", "waited", "least", "most"]] + [
      [f"{part} of {np.median(full):.0f}/s", *(f"{100 * share:.1f} %" for share in values.values())]
      for part, values in found.items()]), flush=True)
  return {"workers": number, "images per second": float(np.median(full)), "taken at": found}


def pipeline(folder, number):
  import jax
  from jax.sharding import Mesh

  return make_pipeline(
      name="folder", dir=folder, train_split="train", eval_split="train", train_transform=OURS["ours"],
      eval_transform=f"resize(256)|center_crop({SIZE})", workers=number, batch_size=BATCH,
      eval_batch_size=BATCH, seed=0, drop_remainder=True, mesh=Mesh(np.array(jax.devices()[:1]), ("data",)))


def consume(batches, seconds):
  """Images a second of someone who never waits; what has been read ahead is not counted."""
  for _ in range(READ_AHEAD):
    next(batches)
  start, count = time.perf_counter(), 0
  while time.perf_counter() < start + seconds:
    count += len(next(batches)["label"])
  return count / (time.perf_counter() - start)


def waiting(batches, speed, seconds):
  """The share of its time that someone waits who works on each batch for BATCH / speed seconds."""
  time.sleep(READ_AHEAD * BATCH / speed)  # until as much has been read ahead as ever is
  start, waited = time.perf_counter(), 0.0
  while time.perf_counter() < start + seconds:
    asked = time.perf_counter()
    next(batches)
    waited += time.perf_counter() - asked
    time.sleep(BATCH / speed)
  return waited / (time.perf_counter() - start)


def device(folder, options):
  del folder
  import input_device

  found = input_device.measure(options.rounds)
  rows = [["CIFAR, 128 images", "ms", "of a step", "quartiles"]] + [
      [name, f"{v['ms']:.2f}", f"{100 * v['median']:.1f} %", f"{100 * v['low']:.1f}-{100 * v['high']:.1f}"]
      for name, v in found.items()]
  print("\n" + timing.table(rows), flush=True)
  return found


QUESTIONS = {"rate": rate, "parts": parts, "workers": workers, "stalls": stalls, "device": device}

if __name__ == "__main__":
  raise SystemExit(main())
