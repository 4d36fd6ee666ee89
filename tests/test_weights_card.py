"""Model cards: what they say of real runs, read back by huggingface_hub."""

import json
import pathlib
import re

import numpy as np
import pytest
from huggingface_hub import ModelCard

from bionets_jax.training.summary import resizing
from bionets_jax.weights.card import write_card
from bionets_jax.weights.command_line import main
from bionets_jax.weights.native import WEIGHT_FILE, load_native, save_native
from bionets_jax.weights.papers import papers_of
from bionets_jax.weights.preprocessing import Preprocessing
from bionets_jax.weights.timm_config import read_config

RESULTS = pathlib.Path(__file__).parent.parent / "results" / "cifar10_short"
ABOUT = {
    "model": "ic_resnet20_cifar", "options": {"alpha": 1.0}, "num_classes": 10,
    "class_names": list("abcdefghij"), "image_shape": [32, 32, 3], "preprocessing": {
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "image_size": 32, "resize": 32,
        "interpolation": "bilinear"}}


def card(folder, about=ABOUT, **arguments):
  """(what huggingface_hub makes of README.md, its text, config.json)."""
  folder.mkdir(exist_ok=True)
  readme, config = write_card(folder, about, **arguments)
  text = pathlib.Path(readme).read_text(encoding="utf-8")
  return ModelCard(text).data, text, json.loads(pathlib.Path(config).read_text(encoding="utf-8"))


def tables(text):
  """Rows of all tables, as lists of cells."""
  lines = [line for line in text.splitlines() if line.startswith("|")]
  return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def run_in(tmp_path, changes=None, config=None, name="run"):
  """A workdir with a run of results/ in it, changed."""
  workdir = tmp_path / name
  workdir.mkdir(parents=True)
  for file, change in (("summary.json", changes), ("config.json", config)):
    content = json.loads((RESULTS / "ic_resnet20" / "seed_0" / file).read_text())
    (workdir / file).write_text(json.dumps(content | (change or {})))
  return workdir


def test_a_run_of_this_repository(tmp_path):
  (tmp_path / "hub").mkdir()
  (tmp_path / "hub" / "model.py").write_text("")
  data, text, config = card(
      tmp_path / "hub", run=RESULTS / "ic_resnet20" / "seed_0", repo="someone/ic-resnet20")
  summary = json.loads((RESULTS / "ic_resnet20" / "seed_0" / "summary.json").read_text())
  assert data.library_name == "bionets_jax" and data.license is None
  assert data.tags == ["jax", "flax", "pytorch", "ic-network"] and data.model_name == "ic-resnet20"
  found = {one.metric_name: one.metric_value for one in data.eval_results}
  errors = summary["last"]
  assert found == {f"top-{k} accuracy (%)": pytest.approx(100 - errors[f"top{k}_error"]) for k in (1, 5)}
  # It was measured on a copy of CIFAR-10 that is harder than the original; a caveat.txt says so.
  assert {(one.dataset_split, one.dataset_name) for one in data.eval_results} == {("test", "cifar10")}
  assert data.datasets is None and "re-encoded as JPEG" in text
  rows = tables(text)
  for row in (["parameters", "300,762"], ["epochs", "1"], ["batch size", "128"], ["commit", "e23eb6da1256"],
              ["these weights, of step 390", "cifar10, test, 10,000 images", "49.86", "6.69"]):
    assert row in rows
  assert "bn.weights.load('hf://someone/ic-resnet20')" in text and "from model import load" in text
  assert "eprint = {2102.03495}" in text and 'data.train_transform = "pad_crop(4)|flip"' in text
  assert config == {"library_name": "bionets_jax"} | ABOUT


def test_the_paper_stands_beside_ours(tmp_path):
  paper = {"table": "FP-nets, Table 1", "row": "a | b", "top1_error": 7.85, "top1_error_std": 0.22,
           "seeds": 4, "statistic": "best", "data": "cifar10", "epochs": 200, "batch_size": 128}
  changes = {"paper": paper, "select": "best", "commit": "abc+", "best": {"step": 100, "top1_error": 40.0},
             "test": {"step": 100, "top1_error": 41.5, "top5_error": 9.0}}
  workdir = run_in(tmp_path, changes, name="seed_1")
  sweep = {"seeds": {"0": {}, "1": {}}, "test": {"top1_error": {"mean": 42.0, "std": 0.5, "n": 2}}}
  (tmp_path / "summary.json").write_text(json.dumps(sweep))
  (workdir / "evaluations").mkdir()
  (workdir / "evaluations" / "a.json").write_text(json.dumps(
      {"data": {"name": "cifar10_1", "split": "test", "transform": ""}, "examples": 2000,
       "clean": {"top1_error": 50.5}}))
  data, text, _ = card(tmp_path / "hub", run=workdir)
  rows = tables(text)
  assert ["the paper's: FP-nets, Table 1, a \\| b (the lowest over the training, 4 seeds)", "cifar10",
          "7.85 ± 0.22", ""] in rows
  on = "cifar10, test, 10,000 images"
  assert ["these weights, of step 100, chosen by this error", on, "40.00", ""] in rows
  assert ["the last evaluation, at step 390: other weights", on, "49.86", "6.69"] in rows
  assert ["mean ± deviation over 2 seeds, test", "cifar10", "42.00 ± 0.50", ""] in rows
  assert ["these weights, evaluated afterwards", "cifar10_1, test, 2,000 images", "50.50", ""] in rows
  assert ["epochs", "1", "200"] in rows and ["batch size", "128", "128"] in rows
  assert "- epochs: 1 here, 200 in the paper" in text and "cannot be set against the paper's" in text
  assert "code that differs from its commit" in text
  # Of the numbers only those of these weights are in the index, without the paper's.
  values = sorted(one.metric_value for one in data.eval_results)
  assert values == [49.5, 58.5, 60.0, 91.0] and data.datasets == ["uoft-cs/cifar10"]
  assert {one.metric_args["seed"] for one in data.eval_results} == {0}


def test_what_is_not_known_is_left_out(tmp_path):
  about = ABOUT | {"model": "resnet18", "options": {}, "num_classes": 1000, "class_names": [],
                   "image_shape": [224, 224, 3],
                   "preprocessing": ABOUT["preprocessing"] | {"image_size": 224, "resize": 256}}
  data, text, config = card(tmp_path / "hub", about, source="torchvision://ResNet18_Weights.IMAGENET1K_V1")
  assert data.to_dict() == {
      "library_name": "bionets_jax", "pipeline_tag": "image-classification", "tags": ["jax", "flax"]}
  for absent in ("## Errors", "## Training", "## What to know", "PyTorch", "None", "trained on"):
    assert absent not in text
  assert "those of `torchvision://ResNet18_Weights.IMAGENET1K_V1`, with their values unchanged" in text
  assert ["parameters", "11,689,512"] in tables(text)  # torchvision's own number
  assert "The shorter side is resized to 256 pixels (bilinear), and the central 224 x 224" in text
  # timm reads it too.
  assert config["architecture"] == "resnet18" and config["pretrained_cfg"]["crop_pct"] == 0.875
  name, options, preprocessing = read_config(tmp_path / "hub" / "config.json")
  assert (name, options, preprocessing) == ("resnet18", {}, Preprocessing(**about["preprocessing"]))


def test_images_are_prepared_as_the_run_evaluated(tmp_path):
  about = ABOUT | {"model": "resnet18", "options": {}, "image_shape": [224, 224, 3],
                   "preprocessing": ABOUT["preprocessing"] | resizing("resize(256)|center_crop(224)", 224)}
  config = {"data": {"name": "imagenet2012", "eval_transform": "resize(256)|center_crop(224)"}}
  _, text, written = card(tmp_path / "hub", about, run=run_in(tmp_path, config=config))
  assert "The shorter side is resized to 256 pixels (bilinear), and the central 224 x 224" in text
  assert written["preprocessing"]["resize"] == 256 and written["pretrained_cfg"]["crop_pct"] == 0.875
  config["data"]["eval_transform"] = "resize(256)|ten_crop(224)"
  _, text, _ = card(tmp_path / "other", about, run=run_in(tmp_path, config=config, name="ten"))
  assert "shorter side" not in text and "`resize(256)\\|ten_crop(224)`" in text


def test_what_a_run_writes_of_its_resizing():
  assert resizing("resize(235, bicubic)|ten_crop(224)", 224) == {
      "image_size": 224, "resize": 235, "interpolation": "bicubic"}
  for text in ("", "center_crop(24)", "resize(24)|resize(48)", "center_crop(30)|resize(24)"):
    assert resizing(text, 24) == {"image_size": 24, "resize": 24, "interpolation": "bilinear"}


def test_another_librarys_config_is_no_run(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
  assert "## Training" not in card(tmp_path / "hub", run=tmp_path)[1]


def test_whatever_stands_in_a_run_stays_where_it_belongs(tmp_path):
  odd = 'cifar: "10"\n- x # ```\n---\n<script>alert(1)</script> | {a} \'b\' \x85 \u2028 é'
  changes = {"data": odd, "devices": odd, "commit": odd, "versions": {odd: odd},
             "paper": {"table": odd, "row": odd, "top1_error": 1.0, "data": odd}}
  config = {"data": {"name": odd, "eval_split": odd, "dir": "/home/someone/secret"}, "duration": odd,
            "teacher": {"weights": "/home/someone/secret/teacher"}}
  workdir = run_in(tmp_path, changes, config)
  (workdir / "caveat.txt").write_text(f"{odd}\nsecond line")
  data, text, config = card(tmp_path / "hub", ABOUT | {"class_names": [odd] * 10}, run=workdir)
  assert [(one.dataset_name, one.dataset_split) for one in data.eval_results] == [(odd, odd)] * 2
  body = text.split("\n---\n", 1)[1]
  assert "<script>" not in re.sub(r"(`{3,})\n.*?\n\1", "", body, flags=re.DOTALL)
  assert len(re.findall(r"^## ", body, re.MULTILINE)) == 6
  assert {len(row) for row in tables(text)} == {2, 3, 4}
  assert config["class_names"] == [odd] * 10
  assert "secret" not in text and str(tmp_path) not in text


def test_a_damaged_run_is_named(tmp_path):
  workdir = run_in(tmp_path)
  (workdir / "summary.json").write_text("{")
  with pytest.raises(ValueError, match="summary.json is damaged"):
    card(tmp_path / "hub", run=workdir)
  assert not list((tmp_path / "hub").iterdir())


DETECTOR = ABOUT | {
    "task": "detection", "model": "retinanet", "eval_transform": "letterbox(96, 128)", "image_shape": [96, 128, 3],
    "options": {"backbone": "ic_resnet18", "backbone_options": {"alpha": "1.0"}, "channels": 64}}


def detector_in(tmp_path):
  """The workdir of a run of a detector, with made-up weights."""
  values = {"step": 9, "ap50_voc07": 61.25, "ap": 33.5, "class/a": 60.0}
  changes = {"task": "detection", "detector": "retinanet", "model": "ic_resnet18", "data": "voc", "select": "best",
             "last": values | {"ap50_voc07": 60.0, "step": 12}, "best": values, "paper": {
                 "table": "IC networks, Table 5", "row": "RetinaNet", "ap50_voc07": 78.2, "statistic": "last",
                 "epochs": 12}}
  workdir = run_in(tmp_path, changes, {"task": "detection", "data": {"name": "voc", "eval_split": "2007/test"}})
  save_native(workdir / WEIGHT_FILE, {"params": {"x": {"kernel": np.ones(3, np.float32)}}}, DETECTOR)
  return workdir


def test_the_card_of_a_detector(tmp_path):
  data, text, config = card(tmp_path / "hub", DETECTOR, run=detector_in(tmp_path))
  assert data.pipeline_tag == "object-detection" and data.tags == ["jax", "flax", "ic-network"]
  # Precisions are as they were measured, and not 100 less an error.
  assert {(one.metric_name, one.metric_value, one.task_type) for one in data.eval_results} == {
      ("AP50 %, VOC07", 61.25, "object-detection"), ("AP %, COCO", 33.5, "object-detection")}
  rows = tables(text)
  on = "voc, 2007/test, 10,000 images"
  for row in (["", "measured on", "AP50 %, VOC07", "AP %, COCO"],
              ["these weights, of step 9, chosen by this AP", on, "61.25", "33.50"],
              ["the last evaluation, at step 12: other weights", on, "60.00", "33.50"],
              ["the paper's: IC networks, Table 5, RetinaNet (after the last step)", "", "78.2", ""]):
    assert row in rows
  assert "top-1" not in text and "so the APs above cannot be set against the paper's" in text
  assert text.count("# retinanet with ic_resnet18\n") == 1 and "bionets_jax.detection import Finder, load" in text
  assert re.findall(r"@misc{(\w+)", text) == ["an2021ic", "he2016deep", "lin2017focal", "lin2017feature"]
  assert config == {"library_name": "bionets_jax"} | DETECTOR


def test_what_the_command_line_does_with_a_detector(tmp_path, capsys):
  workdir = str(detector_in(tmp_path))
  assert main(["card", workdir, f"--out={tmp_path}/card"]) == 0
  assert {path.name for path in (tmp_path / "card").iterdir()} == {WEIGHT_FILE, "README.md", "config.json"}
  for to, name in (("safetensors", WEIGHT_FILE), ("npz", "weights.npz")):
    assert main(["export", workdir, f"--to={to}", f"--out={tmp_path}/{to}"]) == 0
    variables, about = load_native(tmp_path / to / name)
    assert about == DETECTOR and variables["params"]["x"]["kernel"].tolist() == [1, 1, 1]
  assert "no model.py: there is none of detectors" in capsys.readouterr().out
  assert main(["inspect", workdir, "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["options"] == DETECTOR["options"]
  for arguments, what in (
      (["export", workdir, "--to=timm"], "`export --to=timm` is"), (["check", workdir], "`check` is"),
      (["push-to-hub", workdir, "--repo=a/b", "--dry-run"], "`push-to-hub` is"),
      (["inspect", workdir, "--model=resnet18"], "--model and --model-option are")):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert f"a detector (retinanet with ic_resnet18); {what} not for detectors. What is: inspect, card" in error


def test_a_detectors_file_without_a_backbone_is_damaged(tmp_path, capsys):
  save_native(tmp_path / WEIGHT_FILE, {"params": {"x": {"kernel": np.ones(3)}}}, DETECTOR | {"options": {}})
  assert main(["inspect", str(tmp_path)]) == 1
  assert "damaged weight file (its description has no 'backbone' of type str)" in capsys.readouterr().err


@pytest.mark.parametrize("name, options, task, keys", (
    ("ic_resnet50", {}, "wld", "an2021ic he2016deep"),
    ("resnet50", {"groups": 32}, "", "he2016deep xie2017aggregated"),
    ("resnet50", {"se_reduction": 16}, "", "he2016deep hu2018squeeze"),
    ("resnext29_2x64d", {}, "", "he2016deep xie2017aggregated"),
    ("ic_se_resnet18", {}, "", "an2021ic he2016deep hu2018squeeze"),
    ("fp_resnet32_cifar", {}, "", "gruening2020feature he2016deep"),
    ("fp_resnet32_cifar", {"variant": "journal"}, "", "gruening2022fp he2016deep"),
    ("resnet50", {"fp_layers": "0100"}, "", "gruening2020feature he2016deep"),
    ("keffnet_b0", {}, "", "schwarzschuler2021grouped tan2019efficientnet"),
    ("ic_efficientnet_b0", {}, "", "an2021ic tan2019efficientnet"),
    ("ic_vgg16", {}, "", "an2021ic simonyan2015very"), ("mobilenet", {}, "", "howard2017mobilenets"),
))
def test_the_right_papers_are_cited(name, options, task, keys):
  papers = papers_of(name, options, task)
  assert [paper.key for paper in papers] == keys.split()
  for paper in papers:
    assert paper.bibtex().count("{") == paper.bibtex().count("}")
