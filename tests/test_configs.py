"""configs/: every file and argument is valid, says what it is, and its smoke variant runs."""

import importlib.util
import os
import pathlib
import re
import signal

import jax
import pytest

import bionets_jax as bn
from bionets_jax import experiments
from bionets_jax.report.paper_rows import PAPERS
from bionets_jax.training import setup
from bionets_jax.training.config import duration_in_steps, flatten, norm_groups
from bionets_jax.training.devices import make_mesh
from bionets_jax.training.learning import model_options
from bionets_jax.training.loop import Interrupted
from bionets_jax.training.setup import check_values
from configs import common

ROOT = pathlib.Path(__file__).parent.parent
BITS = "100", "010", "001", "110", "101", "011"
ARGUMENTS = {
    "quickstart": [""],
    "fp_digits": [""],
    "cifar10_short": ["", "2", "0.5"],
    "fp_resnet_cifar10": [
        "", *(f"{unit}resnet{depth}" for depth in (20, 32, 44, 56) for unit in ("", "ic_")),
        *(f"resnet{depth},{bits}{end}" for depth in (20, 32, 44) for bits in BITS for end in ("", ",single")),
        "figure2", "figure3", "table1"],
    "fp_resnet50_imagenet": ["", "fp_resnet50", "resnet18", "resnet34", "resnet50", "table2"],
    "ic_resnet_imagenet": [
        "", *(f"{unit}resnet{depth}" for depth in (18, 34, 50) for unit in ("", "ic_")), "table1", "curves"],
    "ic_resnet50_wld": ["", "18", "34", "50", "50_b", "50_c", "table2", "table3"],
    "ic_efficientnet_wld": ["", "b0", "b1", "b2", "table2"],
    "ic_cifar10": ["", *(f"{unit}{name}" for unit in ("", "ic_") for name in (
        "vgg16", "vgg19", "mobilenet", "se_resnet18", "se_resnet50", "resnext29_2x64d")), "table4", "curves"],
    "keffnet": ["", "table1", *(data + network for data in ("cifar10", "pet", "plantdoc") for network in (
        "", ",baseline", ",keffnet", ",k0", ",k1"))],
    "ic_voc_detection": ["", *(f"{kind},{unit}resnet50" for kind in ("faster_rcnn", "retinanet") for unit in ("", "ic_")),
                         "table5"],
    "own_images": ["", "resnet101", "ic_resnet50", "ic_resnet34,wld", "ic_resnet18,scratch", "keffnet_b0,scratch", "fp_resnet50,scratch"],
    "shapes_detection": ["", *(f"{kind},{unit}resnet18" for kind in ("faster_rcnn", "retinanet") for unit in ("", "ic_")),
                         "all"],
}
DETECTION = "ic_voc_detection", "shapes_detection"
CLASSES = {"cifar10": 10, "imagenet2012": 1000, "oxford_iiit_pet_files": 37, "cropped_plantdoc": 29,
           "digits": 10}


def load(name):
  """The module as launch.py loads it: by its path."""
  spec = importlib.util.spec_from_file_location("config_file", ROOT / "configs" / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def get(name, argument):
  module = load(name)
  return module.get_config(argument) if argument else module.get_config()


def runs_of(config):
  return dict(config.runs.items()) if "runs" in config else {"": config}


def test_the_list_of_configs_is_whole():
  assert {p.stem for p in (ROOT / "configs").glob("*.py")} - {"__init__", "common"} == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_gives_a_valid_config(name):
  module = load(name)
  assert f"--config=configs/{name}.py" in module.__doc__
  assert max(map(len, module.__doc__.splitlines())) <= 110
  for argument in ARGUMENTS[name]:
    config = module.get_config(argument) if argument else module.get_config()
    for run in runs_of(config).values():
      check_values(run)
      assert duration_in_steps(run.duration, 10, "duration") > 0
      assert norm_groups(run, (run.batch_size,)) == 1
      # So that a number and a word can be given on the command line.
      assert isinstance(run.model.options.get("alpha", ""), str)
      assert ("alpha" in run.model.options) == run.model.name.startswith("ic_")
      if run.paper and ("top1_error" in run.paper or "ap50_voc07" in run.paper):
        assert {"table", "row", "statistic", "epochs", "seeds", "data"} <= set(run.paper)
        assert run.paper.statistic in (("test",) if run.data.test_split else ("best", "last"))
        assert run.paper.data == run.data.name
        if run.paper.epochs != duration_in_steps(run.duration, 1, "duration"):
          assert run.paper.note.startswith("published by others, after 90 epochs")
  with pytest.raises((ValueError, TypeError)):
    module.get_config("no such argument")


def test_a_slip_in_an_argument_is_answered_with_what_comes_near():
  for name, argument, near in (("fp_resnet_cifar10", "resnet32,1", "resnet32,001"),
                               ("keffnet", "pets,keffnet", "pet,keffnet"),
                               ("ic_cifar10", "ic_vg16,smoke", "ic_vgg16"), ("cifar10_short", "0", "number")):
    with pytest.raises(ValueError, match=near):
      get(name, argument)


def test_own_images_are_named_once_for_both_runs_of_the_study():
  config = get("own_images", "ic_resnet18,wld")
  for key, value in (("dir", "photos"), ("train_split", "train"), ("eval_split", "val")):
    config.runs.base.data[key] = value
    assert config.runs.ic_wld.data[key] == value


@pytest.mark.parametrize("name", [n for n in ARGUMENTS if n not in ("quickstart", "fp_digits", "own_images", *DETECTION)])
def test_the_docstring_has_the_exact_number_of_parameters(name):
  """In each row of its tables that begins with an argument, or with the name of a run.

  What `paper-tables` counts is not counted again here.
  """
  module = load(name)
  whole = re.compile(r"parameters( with W', b1(, b2)?|, \d+ classes)?")
  counted = {(row.network, row.printed) for _, rows in PAPERS.values() for row in rows()
             if whole.fullmatch(row.quantity)}
  known = dict.fromkeys(ARGUMENTS[name]) | (runs_of(module.get_config()) if name == "cifar10_short" else {})
  found = set()
  for line in module.__doc__.splitlines():
    word, _, rest = line.strip().partition(" ")
    counts = re.findall(r"\b\d{1,3}(?:,\d{3})+\b", rest)
    if not line.startswith("    ") or word not in known or not counts:
      continue
    run = known[word] or module.get_config(word)
    found.add(word)
    if "fp_layers" in run.model.options or (run.model.name, counts[0]) not in counted:
      model = bn.create_model(run.model.name, CLASSES[run.data.name], **model_options(run))
      assert f"{bn.count_parameters(model):,}" in counts, line
  assert len(found) >= 3


def test_the_numbers_of_parameters_are_those_of_the_tables():
  """As printed, against the rows that `paper-tables` counts."""
  rows = {(key, row.table, row.network): [] for key, (_, rows) in PAPERS.items() for row in rows()}
  for key, (_, list_rows) in PAPERS.items():
    for row in list_rows():
      if row.quantity.startswith("parameters"):
        rows[key, row.table, row.network].append(row.printed)
  papers = {"FP-nets": "fp", "IC networks": "ic", "kEffNet": "keffnet"}
  checked = 0
  for name, arguments in ARGUMENTS.items():
    for argument in arguments:
      for run in runs_of(get(name, argument)).values():
        if "params" not in run.paper:
          continue
        paper, table = run.paper.table.split(", ", 1)
        tables = ("Table 1", "Table 3") if paper == "IC networks" else (table,)
        printed = [p for t in tables for p in rows.get((papers[paper], t, run.model.name), ())]
        assert run.paper.params in printed, (name, argument)
        checked += 1
  assert checked >= 30


PRINTED = {  # the papers' errors (kEffNet: accuracies) as their tables have them
    ("fp_resnet_cifar10", "resnet32,001,single"): (8.25, 0.17),
    ("fp_resnet_cifar10", "resnet32,001"): (7.85, 0.22),
    ("fp_resnet50_imagenet", "resnet18"): 30.34, ("fp_resnet50_imagenet", "resnet34"): 26.78,
    ("fp_resnet50_imagenet", "resnet50"): 23.88, ("fp_resnet50_imagenet", "fp_resnet50"): 23.87,
    ("ic_resnet_imagenet", "resnet18"): (30.24, 10.92, 27.88, 9.42),
    ("ic_resnet_imagenet", "ic_resnet18"): (28.56, 9.80, 26.69, 8.56),
    ("ic_resnet_imagenet", "resnet34"): (26.70, 8.58, 24.52, 7.46),
    ("ic_resnet_imagenet", "ic_resnet34"): (25.55, 7.90, 23.49, 6.86),
    ("ic_resnet_imagenet", "resnet50"): (23.85, 7.13, 22.85, 6.71),
    ("ic_resnet_imagenet", "ic_resnet50"): (23.20, 6.72, 21.90, 6.08),
    ("ic_resnet50_wld", "18"): (28.82, 9.98), ("ic_resnet50_wld", "34"): (25.78, 8.02),
    ("ic_resnet50_wld", "50"): (23.07, 6.67, 21.75, 5.92), ("ic_resnet50_wld", "50_b"): (23.02, 6.66),
    ("ic_resnet50_wld", "50_c"): (22.96, 6.65),
    ("ic_efficientnet_wld", "b0"): (23.6, 6.7), ("ic_efficientnet_wld", "b1"): (21.0, 5.5),
    ("ic_efficientnet_wld", "b2"): (20.1, 5.0),
    ("ic_cifar10", "vgg16"): 6.36, ("ic_cifar10", "ic_vgg16"): 6.04, ("ic_cifar10", "vgg19"): 6.46,
    ("ic_cifar10", "ic_vgg19"): 6.27, ("ic_cifar10", "mobilenet"): 9.92, ("ic_cifar10", "ic_mobilenet"): 9.00,
    ("ic_cifar10", "se_resnet18"): 5.08, ("ic_cifar10", "ic_se_resnet18"): 4.85,
    ("ic_cifar10", "se_resnet50"): 5.10, ("ic_cifar10", "ic_se_resnet50"): 4.61,
    ("ic_cifar10", "resnext29_2x64d"): 4.62, ("ic_cifar10", "ic_resnext29_2x64d"): 4.43,
    ("ic_voc_detection", "faster_rcnn,resnet50"): 79.5, ("ic_voc_detection", "faster_rcnn,ic_resnet50"): 80.5,
    ("ic_voc_detection", "retinanet,resnet50"): 77.3, ("ic_voc_detection", "retinanet,ic_resnet50"): 78.2,
    ("keffnet", "plantdoc,baseline"): 100 - 49.08, ("keffnet", "plantdoc,keffnet"): 100 - 64.39,
    ("keffnet", "pet,baseline"): 100 - 56.73, ("keffnet", "pet,keffnet"): 100 - 60.09,
    ("keffnet", "cifar10,baseline"): 100 - 91.66, ("keffnet", "cifar10,keffnet"): 100 - 91.64}


def test_the_papers_errors_stand_in_the_configs_and_their_docstrings():
  for (name, argument), printed in PRINTED.items():
    paper, doc = get(name, argument).paper, load(name).__doc__
    values = printed if isinstance(printed, tuple) else (printed,)
    keys = {"fp_resnet_cifar10": ("top1_error", "top1_error_std"), "ic_voc_detection": ("ap50_voc07",)}.get(name, (
        "top1_error", "top5_error", "top1_error_10crop", "top5_error_10crop"))
    for key, value in zip(keys, values, strict=False):
      assert paper[key] == pytest.approx(value, abs=1e-9)
      shown = 100 - value if name == "keffnet" else value
      assert f"{shown:.{1 if name in ('ic_efficientnet_wld', 'ic_voc_detection') else 2}f}" in doc


RECIPES = [  # what each paper's text (kEffNet: the authors' notebooks too) says of the training
    ("fp_resnet_cifar10", "resnet32,001", "200 epochs", 128, dict(
        lr=0.1, boundaries=(100, 150), factor=0.1), dict(momentum=0.9, weight_decay=1e-4)),
    ("fp_resnet50_imagenet", "fp_resnet50", "90 epochs", 256, dict(
        lr=0.1, boundaries=(30, 60), factor=0.1), dict(momentum=0.9, weight_decay=1e-4)),
    ("ic_resnet_imagenet", "ic_resnet50", "120 epochs", 256, dict(
        lr=0.1, boundaries=(30, 60, 90), factor=0.1), dict(momentum=0.9, weight_decay=1e-4)),
    ("ic_resnet50_wld", "18", "30 epochs", 256, dict(
        lr=1e-3, boundaries=(15,), factor=0.1), dict(momentum=0.9, weight_decay=1e-4)),
    ("ic_efficientnet_wld", "b1", "30 epochs", 256, dict(
        lr=1e-3, boundaries=(10, 20), factor=0.1), dict(momentum=0.9, weight_decay=1e-4)),
    ("ic_cifar10", "ic_mobilenet", "200 epochs", 128, dict(
        lr=0.1, boundaries=(60, 120), factor=0.1), dict(momentum=0.9, weight_decay=1e-4)),
    ("keffnet", "cifar10,keffnet", "50 epochs", 64, dict(
        kind="exponential", lr=0.003, factor=0.99), dict(momentum=0.0, weight_decay=0.0, kind="rmsprop")),
    ("keffnet", "pet,baseline", "150 epochs", 32, dict(
        kind="cyclical25", lr=0.001), dict(momentum=0.0, weight_decay=0.0, kind="rmsprop")),
    ("keffnet", "plantdoc,k0", "75 epochs", 32, dict(
        kind="exponential", lr=0.01, factor=0.97), dict(momentum=0.0, weight_decay=0.0, kind="rmsprop")),
    ("ic_voc_detection", "retinanet,resnet50", "12 epochs", 16, dict(
        lr=0.01, boundaries=(9,), factor=0.1, reference_batch=16), dict(momentum=0.9, weight_decay=1e-4)),
]


@pytest.mark.parametrize("name,argument,duration,batch_size,schedule,optimizer", RECIPES)
def test_recipes_are_the_papers(name, argument, duration, batch_size, schedule, optimizer):
  config = get(name, argument)
  assert (config.duration, config.batch_size) == (duration, batch_size)
  for part, expected in (("schedule", {"kind": "step"} | schedule),
                         ("optimizer", {"kind": "sgd"} | optimizer)):
    assert {key: config[part][key] for key in expected} == expected
  assert config.schedule.warmup == "0 epochs" and config.schedule.reference_batch == schedule.get("reference_batch", 0)
  assert not any(config.get(key) for key in ("label_smoothing", "mixup", "cutmix", "ema_decay"))
  if config.task == "wld":
    wld = config.wld
    assert (wld.tolerance, wld.distill_weight_start, wld.distill_weight_end) == (0.005, 0.9, 0.1)
  if name == "keffnet":
    assert (config.select, config.data.test_split, config.data.drop_remainder) == ("best", "test", False)
    assert (config.optimizer.rho, config.optimizer.epsilon) == (0.9, 1e-7)


def test_the_runs_of_a_study_are_those_of_its_arguments():
  """All of them, in an order in which a teacher comes first; seeds are what a study adds."""
  for name, argument, words in (
      ("fp_resnet_cifar10", "figure2", ["resnet20", "resnet32", *(f"resnet32,{bits}" for bits in BITS)]),
      ("fp_resnet_cifar10", "figure3", ["resnet20", "resnet32", "resnet44", "resnet20,001", "resnet32,001",
                                        "resnet44,001"]),
      ("fp_resnet50_imagenet", "table2", ["fp_resnet50", "resnet18", "resnet34", "resnet50"]),
      ("ic_resnet50_wld", "table3", ["50", "50_b", "50_c"]),
      ("ic_efficientnet_wld", "table2", ["b0", "b1", "b2"]),
      ("keffnet", "pet", ["pet,baseline", "pet,keffnet", "pet,k1", "pet,k0"])):
    runs = list(runs_of(get(name, argument)).values())
    assert len(runs) == len(words)
    for run, word in zip(runs, words, strict=True):
      assert run.seeds == {"fp_resnet_cifar10": (0, 1, 2, 3), "keffnet": (0, 1, 2)}.get(name, ())
      alone = flatten(get(name, word)) | {"seeds": run.seeds}
      assert flatten(run) == alone
  assert list(get("cifar10_short", "1").runs) == [
      "resnet20", "fp_resnet32_001", "fp_resnet32_001_single", "ic_resnet20", "ic_resnet20_wld"]


def test_every_smoke_variant_is_valid_and_needs_no_file():
  for name, arguments in ARGUMENTS.items():
    for argument in arguments:
      if not argument or name == "quickstart":
        continue
      runs = runs_of(get(name, f"{argument},smoke"))
      for place, run in enumerate(runs.values()):
        check_values(run)
        assert run.data.name.startswith("generated/") and not run.paper and not run.seeds
        if run.task == "wld":
          assert run.teacher.weights.removeprefix("run:") in list(runs)[:place]


# One of each family; the others differ from one of these in the place of a unit or in numbers.
SMOKE = [("cifar10_short", "1"), ("fp_resnet50_imagenet", "fp_resnet50"), ("fp_resnet_cifar10", "resnet32,011,single"), ("ic_resnet_imagenet", "ic_resnet18"),
         ("ic_resnet50_wld", "50_c"), ("ic_efficientnet_wld", "b0"), ("ic_cifar10", "ic_mobilenet"),
         ("keffnet", "pet,keffnet"), ("ic_voc_detection", "faster_rcnn,ic_resnet50")]


@pytest.mark.parametrize("name,argument", SMOKE)
def test_smoke_variants_run_stop_go_on_and_are_evaluated(name, argument, tmp_path, monkeypatch):
  # One device: a program for four takes longer to compile, and tests/test_training.py compares the two.
  monkeypatch.setattr(setup, "make_mesh", lambda devices: make_mesh(jax.devices()[:1]))
  config = get(name, f"{argument},smoke")
  if name == "cifar10_short":  # the other networks' turn comes with the other files
    config = common.study(config.title, {n: config.runs[n] for n in ("resnet20", "ic_resnet20_wld")})
  last = list(runs_of(config))[-1]
  workdir, said = str(tmp_path / "run"), []

  def say(text):
    said.append(text)
    if text.startswith("step      1 ") and any(t.startswith("run ") and t.endswith(last) for t in said):
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(Interrupted, match="stopped at step 1 of"):
    experiments.run(config, workdir, say=say)
  said.clear()
  summary = experiments.run(config, workdir, say=said.append)
  assert any("resuming from step 1 of 3" in text for text in said)
  for run_name, run in runs_of(config).items():
    one = summary[run_name] if run_name else summary
    measure = "ap50_voc07" if run.task == "detection" else "top1_error"
    assert one["last"]["step"] == 3 and 0 <= one["last"][measure] <= 100
    assert ("test" in one) == bool(run.data.test_split)
  measured = experiments.run(config, workdir, mode="eval", say=said.append)
  for found, one in zip(*((measured.values(), summary.values()) if "runs" in config
                          else ([measured], [summary])), strict=True):
    assert found[measure] == pytest.approx(one["last"][measure])


@pytest.mark.parametrize("data", ["cifar10", "plantdoc"])
def test_the_smoke_variants_of_keffnets_other_sets_have_batches(data):
  run = get("keffnet", f"{data},keffnet,smoke")
  pipeline = setup.make_setup(run, jax.devices()[:1]).pipeline
  for batches in (pipeline.train_batches(), pipeline.eval_batches(), pipeline.test_batches()):
    assert next(batches)["image"].shape[1:] == (32, 32, 3)
    batches.close()
