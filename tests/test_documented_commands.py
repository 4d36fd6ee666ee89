"""The commands of README.md and docs/, run as they are printed, in a folder that has what they speak of.

What a page leaves to its reader (WORKDIR, IMAGE..., DIR) is filled in, and what would be downloaded lies there in
small. BIONETS_TEST_SLOW=1 also runs those that train: cut to a few steps, on their own networks.
"""

import glob
import json
import os
import re
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from documents import OF_LAUNCH, OF_MODULES, PAGES, ROOT, blocks
from PIL import Image
from test_detection_predict import ABOUT, OPTIONS
from tiny import tiny_config

import bionets_jax as bn
from bionets_jax import detection
from bionets_jax.config_files import load_config
from bionets_jax.training.loop import train
from bionets_jax.weights import command_line as weights_command_line
from bionets_jax.weights.native import save_native

SLOW = pytest.mark.skipif(not os.environ.get("BIONETS_TEST_SLOW"), reason="BIONETS_TEST_SLOW=1 runs it")
TEACHER = "torchvision://ResNet50_Weights.IMAGENET1K_V1"

# Why a command is not run here, by what it begins with.
ELSEWHERE = {
    "data.prepare imagenet2012": "the archives of ImageNet, and TensorFlow",
    "data.prepare cifar10": "a download; tests/test_data_builders.py builds it from made-up archives",
    "data.prepare --convert": "tests/test_data_tfds.py",
    "weights check SOURCE --report": "a file that PyTorch makes; tests/test_weights_diverge.py",
    "report paper-tables": "tests/test_paper_tables.py",
    "selfcheck": "tests/test_selfcheck.py",
}
# Prose names these without what has to follow.
NAMED = {("weights",), ("weights", "check"), ("weights", "SUBCOMMAND", "--help")}


# The folder ----------------------------------------------------------------------------------

def picture(seed, size=(40, 48)):
  return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A set in TFDS's form under another's name."""

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, *, classes, splits, file, size, **options):
    self.classes, self.splits, self.file, self.size = classes, splits, file, size
    super().__init__(**options)

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(*(self.size or (None, None)), 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=self.classes), "file_name": tfds.features.Text()}))

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(count) for split, count in self.splits.items()}

  def _generate_examples(self, count):
    for i in range(count):
      yield i, {"image": picture(i, self.size or (40, 48)), "label": i % len(self.classes),
                "file_name": self.file.format(i + 1)}


def write_set(folder, name, classes, splits, file="{}.png", size=None):
  name, _, config = name.partition("/")
  configs = [tfds.core.BuilderConfig(name=config, version="1.0.0")] if config else []
  Builder = type("Made", (Pictures,), dict(name=name, BUILDER_CONFIGS=configs), skip_registration=True)
  builder = Builder(classes=classes, splits=splits, file=file, size=size, data_dir=str(folder))
  builder.download_and_prepare(file_format="array_record")


def make_run(workdir, **changes):
  """A run of a few steps."""
  train(tiny_config(duration="2 steps", eval_every="2 steps", checkpoint_every="2 steps", batch_size=4,
                    eval_batch_size=4, data__workers=0, **changes), str(workdir), say=lambda text: None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """The folder: photos, data sets, workdirs, and links to what a checkout has."""
  root = tmp_path_factory.mktemp("place")
  for name in ("launch.py", "configs", "results"):
    (root / name).symlink_to(ROOT / name)
  for kind in ("photos/daisy", "photos/rose", "DIR/train/a", "DIR/train/b", "DIR/val/a", "DIR/val/b"):
    (root / kind).mkdir(parents=True)
    for i in range(5):
      picture(i).save(root / kind / f"{i}.jpg")
  synsets = [f"n{i:08}" for i in range(1000)]
  write_set(root / "DIR", "imagenet2012", synsets, {"train": 8, "validation": 4}, "ILSVRC2012_val_{:08}.JPEG")
  write_set(root / "DIR", "cifar10", [*"abcdefghij"], {"train": 16, "test": 8}, size=(32, 32))
  write_set(root / "DIR", "imagenet_v2/matched-frequency", synsets, {"test": 4})
  (root / "real.json").write_text(json.dumps([[i % 1000] for i in range(50_000)]))

  three = dict(data__mean=(0.5,) * 3, data__std=(0.25,) * 3, data__train_transform="random_resized_crop(32)|flip",
               data__eval_transform="resize(36)|center_crop(32)", model__options__stage_sizes=(1, 1, 1, 1))
  make_run(root / "workdirs" / "own_images", model__name="resnet18", data__name="folder", data__dir=str(root / "photos"),
           data__train_split="all[:80%]", data__eval_split="all[80%:]", **three)
  make_run(root / "workdirs" / "ic50", model__name="ic_resnet18", data__name="imagenet2012", data__dir=str(root / "DIR"),
           data__eval_split="validation", **three)
  make_run(root / "workdirs" / "fp_digits", model__name="fp_resnet20_cifar", model__options__fp_layers="110",
           model__options__stage_sizes=(3, 3, 1))
  (root / "workdirs" / "quickstart").mkdir()
  for name in ("base", "ic_wld"):
    (root / "workdirs" / "quickstart" / name).symlink_to(root / "workdirs" / "fp_digits")

  model = detection.create_detector("retinanet", num_classes=2, **OPTIONS)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 96, 3)))
  finder = root / "workdirs" / "shapes_detection-retinanet-ic_resnet18"
  finder.mkdir()
  save_native(finder / "weights.safetensors", jax.device_get(variables), ABOUT)
  return root


@pytest.fixture(scope="module")
def published(place):
  """Network -> a file under torchvision's keys with weights of its shapes."""
  files = {}
  for name in ("resnet18", "resnet50"):
    shapes = jax.eval_shape(bn.create_model(name).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: random.uniform(-0.05, 0.05, x.shape).astype(x.dtype), shapes)  # noqa: B023
    variables["batch_stats"] = jax.tree.map(abs, variables["batch_stats"])
    save_native(place / f"{name}.safetensors", variables, {
        "model": name, "options": {}, "num_classes": 1000, "class_names": [], "image_shape": [224, 224, 3],
        "preprocessing": {"mean": [0.5] * 3, "std": [0.25] * 3, "image_size": 224, "resize": 256}})
    assert weights_command_line.main([
        "export", str(place / f"{name}.safetensors"), "--to=torchvision", f"--out={place / 'published' / name}"]) == 0
    (file,) = (place / "published" / name).glob("*.safetensors")
    files[name] = str(file)
  return files


# What is typed -------------------------------------------------------------------------------

def typed(arguments):
  """The words with what the reader fills in."""
  line = " ".join(arguments)
  workdir = "workdirs/ic50" if re.search("imagenet|real|crop", line) else "workdirs/own_images"
  others = ("fp_digits", "quickstart/base") if "--data=digits" in line else ("own_images", "own_images")
  stands_for = {
      "WORKDIR": [workdir], "WORKDIR...": ["workdirs/own_images", "workdirs/fp_digits"], "SOURCE": ["workdirs/own_images"],
      "IMAGE...": ["photos/daisy/0.jpg", "photos/rose/0.jpg"], "--weights=WORKDIR": [f"--weights=workdirs/{others[0]}"],
      "--weights=OTHER": [f"--weights=workdirs/{others[1]}"], "[--markdown]": ["--markdown"],
      "[--json=FILE]": ["--json=ledger.json"], "[--figures=DIR]": ["--figures=drawn"]}
  words = [word for argument in arguments for word in stands_for.get(argument, [argument])]
  return [one for word in words for one in (sorted(glob.glob(word)) if "*" in word else [word])]


def why_not(module, arguments):
  line = " ".join([module.removeprefix("bionets_jax."), *arguments])
  return next((reason for begin, reason in ELSEWHERE.items() if line.startswith(begin)), "")


LINES = {}  # a line is run once, whichever pages have it
for _page, _module, _arguments in OF_MODULES:
  if (_module.removeprefix("bionets_jax."), *_arguments) not in NAMED and not any(
      "..." in a and a not in ("WORKDIR...", "IMAGE...") for a in _arguments):
    LINES.setdefault(" ".join([_module, *_arguments]), (_module, _arguments))


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_a_page(line, place, monkeypatch, capsys, request):
  module, arguments = LINES[line]
  if reason := why_not(module, arguments):
    pytest.skip(reason)
  if TEACHER in arguments:
    if not os.environ.get("BIONETS_TEST_SLOW"):
      pytest.skip("BIONETS_TEST_SLOW=1 runs it")
    arguments = [a.replace(TEACHER, request.getfixturevalue("published")["resnet50"]) for a in arguments]
  monkeypatch.chdir(place)
  monkeypatch.setattr(sys, "argv", [module, *typed(arguments)])
  with pytest.raises(SystemExit) as ended:
    runpy.run_module(module, run_name="__main__")
  out, err = capsys.readouterr()
  assert not ended.value.code and not re.search("^error", err, re.MULTILINE), err
  assert out
  for argument in typed(arguments):
    option, _, path = argument.partition("=")
    if option in ("--out", "--json", "--figures"):
      assert os.path.isfile(path) or os.listdir(path), argument


def test_each_reason_is_that_of_a_line():
  reasons = {why_not(module, arguments) for module, arguments in LINES.values()}
  assert reasons - {""} == set(ELSEWHERE.values()) and len(LINES) > 40


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks(text, "py")])
def test_python_that_needs_files(page, place, monkeypatch, request):
  """Blocks `py`: what they do not make themselves is there."""
  monkeypatch.chdir(place)
  random = np.random.default_rng(0)
  paths = sorted(glob.glob("photos/daisy/*.jpg"))
  names = {"bn": bn, "paths": paths}
  for code in blocks(PAGES[page], "py"):
    if "import torch" in code:
      for needed in ("torch", "onnx", "onnxscript"):
        pytest.importorskip(needed)
      assert weights_command_line.main(["export", "workdirs/own_images", "--to=safetensors", "--out=for_torch"]) == 0
      monkeypatch.chdir("for_torch")
      monkeypatch.syspath_prepend(os.getcwd())
    shape, source = (2, 8, 8, 1), re.search('load\\("(.*?)"', code)
    if source and source[1].startswith("torchvision://"):
      if not os.environ.get("BIONETS_TEST_SLOW"):
        pytest.skip("BIONETS_TEST_SLOW=1 runs it")
      shape, code = (2, 224, 224, 3), code.replace(source[1], request.getfixturevalue("published")["resnet50"])
    if source:
      names |= dict(images=random.normal(size=shape).astype(np.float32),
                    pictures=[random.integers(0, 256, (*shape[1:3], 3), np.uint8) for _ in range(2)])
    exec(compile(code, page, "exec"), names)


TRAINING = {" ".join(arguments): arguments for _, arguments in OF_LAUNCH if "..." not in " ".join(arguments)}


@SLOW
@pytest.mark.parametrize("line", TRAINING)
def test_a_line_that_trains(line, place, published, monkeypatch):
  """The process ends with status 0, after two steps of each run."""
  monkeypatch.chdir(place)
  arguments = [argument.replace(TEACHER, published["resnet50"]) for argument in TRAINING[line]]
  given = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments)
  config = load_config(given["config"])
  if "smoke" not in given["config"]:
    for run in [f"config.runs.{name}." for name in config.runs] if "runs" in config else ["config."]:
      short = {"duration": "2 steps", "batch_size": 4, "eval_batch_size": 4, "data.workers": 0}
      arguments += [f"--{run}{key}={value}" for key, value in short.items()]
  if config.get("task") == "wld" and "config.teacher.weights" not in given and "smoke" not in given["config"]:
    arguments.append(f"--config.teacher.weights={published['resnet50']}")
  if "own_images" in given["config"]:
    arguments.append(f"--config.model.weights={published['resnet18']}")
  arguments.append(f"--workdir=trained/{list(TRAINING).index(line)}")  # another than those that are there
  ended = subprocess.run([sys.executable, "launch.py", *arguments], capture_output=True, text=True, timeout=1800,
                         env=os.environ | {"TFDS_DATA_DIR": str(place / "DIR")})
  assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
