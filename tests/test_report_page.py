"""`python -m bionets_jax.report html` and the confusion matrices that it shows."""

import base64
import html.parser
import io
import json
import math
import os
import pathlib
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from report_runs import make_config, make_detector, make_run, make_summary, make_sweep, write
from sklearn.metrics import confusion_matrix
from tiny import tiny_config

from bionets_jax.data.sources import open_source
from bionets_jax.evaluate import command_line
from bionets_jax.evaluate.confusion import confusion, in_words, most_confused
from bionets_jax.models import create_model
from bionets_jax.page import markup, networks, pictures
from bionets_jax.report import workdirs
from bionets_jax.report.__main__ import main
from bionets_jax.report.ledger import read
from bionets_jax.report.results import as_json
from bionets_jax.training.loop import train
from bionets_jax.weights.native import load_native, save_native

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
EVIL = 'a "b" </script><script>alert(1)</script> <img src=x onerror=alert(2)> & \''
VOID = {"meta", "link", "img", "input", "br"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A network trained on the digits for so short that it takes many for another: its workdir."""
  workdir = str(tmp_path_factory.mktemp("page") / "run")
  train(tiny_config(duration="24 steps", eval_every="9 epochs"), workdir, say=lambda text: None)
  return workdir


@pytest.fixture(scope="module")
def stored(run):
  """What --confusion wrote of all digits of the test split."""
  assert command_line.main([run, "--confusion", "--batch-size=128"]) == 0
  with open(f"{run}/evaluations/digits-test-confusion.json", encoding="utf-8") as file:
    return file.read()


class Elements(html.parser.HTMLParser):
  """The page as a browser reads it: (tag, attributes, text) of every element, in the order of their starts."""

  def __init__(self, page: str):
    super().__init__(convert_charrefs=True)
    self.found, self._open = [], []
    self.feed(page)
    assert not self._open, f"not closed: {self._open}"

  def handle_starttag(self, tag, attrs):
    self.found.append([tag, dict(attrs), ""])
    if tag not in VOID | {"rect"}:
      self._open.append((tag, self.found[-1]))

  def handle_startendtag(self, tag, attrs):
    self.found.append([tag, dict(attrs), ""])

  def handle_endtag(self, tag):
    assert self._open and self._open[-1][0] == tag, f"</{tag}> closes {self._open[-1:]}"
    self._open.pop()

  def handle_data(self, data):
    for _, element in self._open:
      element[2] += data

  def all(self, tag, **attributes):
    return [one for one in self.found if one[0] == tag and attributes.items() <= one[1].items()]


def page_of(tmp_path, *arguments, status=0):
  """(elements, data that the scripts read, text of the file)."""
  out = tmp_path / "page.html"
  assert main(["html", *map(str, arguments), f"--out={out}"]) == status
  text = out.read_text(encoding="utf-8")
  elements = Elements(text)
  (data,) = elements.all("script", type="application/json")
  return elements, json.loads(data[2], parse_constant=lambda name: pytest.fail(f"{name} is no JSON")), text


def tables(elements):
  """Caption -> rows of cells, the header first."""
  out = {}
  for tag, _, text in elements.found:
    if tag == "caption":
      rows = out[text] = []
    elif tag == "tr" and out:
      rows.append([])
    elif tag in ("th", "td") and out and rows:
      rows[-1].append(text)
  return out


# Confusion --------------------------------------------------------------------------------------


def test_confusion_is_that_of_scikit_learn(run, stored):
  """Over four devices, with a last batch that is filled up; predictions of the same weights made here."""
  found = json.loads(stored)
  examples = list(open_source("digits", "test").read_many(range(355)))
  images, labels = np.stack([image for image, _, _ in examples]), np.array([label for _, label, _ in examples])
  variables, about = load_native(f"{run}/weights.safetensors")
  prep = about["preprocessing"]
  x = (jnp.asarray(images, jnp.float32) / 255 - prep["mean"][0]) / prep["std"][0]
  model = create_model(about["model"], 10, **about["options"])
  predicted = np.asarray(model.apply(variables, x, train=False)).argmax(-1)
  table = found["confusion"]
  assert 20 < (predicted != labels).sum() < 340  # else the matrix would say little
  assert table["counts"] == confusion_matrix(labels, predicted, labels=range(10)).tolist()
  assert [row[0] for row in table["mistakes"]] == np.flatnonzero(predicted != labels).tolist()
  assert all(labels[i] == true and predicted[i] == other for i, true, other in table["mistakes"])
  assert 100 * sum(row["errors"] for row in table["per_class"]) / 355 == pytest.approx(found["clean"]["top1_error"])
  assert table["class_names"] == [str(i) for i in range(10)] == [row["class"] for row in table["per_class"]]
  assert all(f"      {row},\n" in stored for row in table["counts"][:-1])  # a row of the matrix is a line


def test_rows_without_an_example_and_logits_that_are_no_numbers():
  examples = dict(label=np.array([0, 1, 1, 2, 0]), predicted=np.array([0, 2, -1, 2, 1]),
                  index=np.array([3, 1, 0, 2, -1]), mask=np.array([1.0, 1, 1, 1, 0]))
  found = confusion(examples, ["a", "b", "c", "d"])
  assert found["counts"] == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
  assert [(row["examples"], row["errors"], row["error"]) for row in found["per_class"]] == [
      (1, 0, 0), (2, 2, 100), (1, 0, 0), (0, 0, None)]
  assert found["without_prediction"] == 1 and found["mistakes"] == [[0, 1, -1], [1, 1, 2]]
  assert in_words(found) == "highest errors: b: 100.0 % (2 of 2)\ntaken for another: b for c (1)"


def test_the_most_confused_pairs():
  counts = [[9, 1, 0], [4, 9, 2], [0, 0, 9]]
  assert most_confused(counts, 2) == [(1, 0, 4), (1, 2, 2)]
  assert most_confused(counts, 9) == [(1, 0, 4), (1, 2, 2), (0, 1, 1)]


def test_bad_records_are_in_no_field(run, tmp_path):
  """A folder of digits of which one is cut off, by the weights of a run."""
  for i, (image, label, _) in enumerate(open_source("digits", "test").read_many(range(40))):
    path = tmp_path / "data" / "test" / str(label) / f"{i:02}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0]).save(path)
  bad = sorted((tmp_path / "data" / "test" / "3").iterdir())[0]
  bad.write_bytes(bad.read_bytes()[:40])
  # The run's images are grey, a folder's are colours: the same network for those.
  variables, about = load_native(f"{run}/weights.safetensors")
  kernel = variables["params"]["stem_conv"]["kernel"]
  variables["params"]["stem_conv"]["kernel"] = np.repeat(kernel, 3, 2) / 3
  weights = str(tmp_path / "weights.safetensors")
  save_native(weights, variables, about | {"image_shape": [8, 8, 3]})
  assert command_line.main([
      weights, "--confusion", "--data=folder", f"--data-dir={tmp_path}/data", "--split=test",
      "--transform=resize(8)|center_crop(8)", "--max-bad-records=1", "--workers=0", "--batch-size=16", "--name=x",
      f"--out={tmp_path}"]) == 0
  found = json.loads((tmp_path / "x.json").read_text())
  there = {name: len(list((tmp_path / "data" / "test" / name).iterdir())) for name in map(str, range(10))}
  there["3"] -= 1
  assert {row["class"]: row["examples"] for row in found["confusion"]["per_class"]} == there
  assert [sum(row) for row in found["confusion"]["counts"]] == list(there.values())
  assert found["clean"]["bad_records"] == 1


@pytest.mark.parametrize("other", ["--jpeg=90", "--robustness", f"--real-labels={__file__}"])
def test_confusion_is_of_undisturbed_images(run, other, capsys):
  with pytest.raises(SystemExit) as error:
    command_line.parse([run, "--confusion", other])
  assert error.value.code == 2 and "--confusion goes with undisturbed images" in capsys.readouterr().err


# The page ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(run, stored, tmp_path_factory):
  """Of the trained run, with everything that is made for it."""
  folder = tmp_path_factory.mktemp("html")
  before = sorted(os.walk(run))
  found = page_of(folder, run, "--examples=4")
  assert sorted(os.walk(run)) == before
  return found, folder / "page.html"


def test_matrix_heatmaps_and_filters_of_a_run(page, stored):
  (elements, data, _), _ = page
  table = json.loads(stored)["confusion"]
  (matrix,) = data["confusion"]["matrices"]
  assert matrix["counts"] == table["counts"] and matrix["classes"] == table["class_names"]
  assert matrix["name"] == "run, seed 0: digits test, 355 images"
  wrong = {row[0]: row[1:] for row in table["mistakes"]}
  shown = tables(elements)["digits test"][1:]
  numbers = [int(row[0].split("example ")[1]) for row in shown]
  assert len(numbers) == 4 and [n in wrong for n in numbers] == [True, True, False, False]
  for number, (true, _, says) in zip(numbers, shown, strict=True):
    label, predicted = wrong.get(number, (int(true[0]), int(true[0])))
    assert true[0] == str(label) and says.startswith(f"{predicted} ")
    assert says.endswith("wrong" if number in wrong else "right")
  errors = tables(elements)["Top-1 error of each class, run"][1:]
  rounded = [float(f"{row['error']:.2f}") for row in table["per_class"]]
  assert [float(row[1]) for row in errors] == sorted(rounded, reverse=True)
  pictures = elements.all("img")
  assert len(pictures) == 4 * 2 + 1 and all(one[1]["alt"] for one in pictures)
  for _, attributes, _ in pictures:
    kind, content = attributes["src"].split(",")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == "data:image/png;base64" and image.size == (int(attributes["width"]), int(attributes["height"]))
    assert len(np.unique(np.asarray(image.convert("L")))) > 4  # none of them is blank


def test_curves_are_those_of_metrics_jsonl(page, run):
  (_, data, _), _ = page
  with open(f"{run}/metrics.jsonl", encoding="utf-8") as file:
    lines = [json.loads(line) for line in file]
  for key in ("train/loss", "eval/top1_error"):
    points = [(line["epoch"], line[key]) for line in lines if key in line]
    np.testing.assert_allclose(np.array(data["curves"]["series"][key]["0"]).T, points, rtol=1e-5)
  assert data["curves"]["first"] == ["train/loss", "eval/top1_error"]


def test_what_is_computed_is_what_would_be_stored(run, stored, tmp_path):
  """Without the file the page evaluates the network itself, and writes nothing beside the weights."""
  copy = tmp_path / "run"
  copy.mkdir()
  for name in ("config.json", "summary.json", "metrics.jsonl", "weights.safetensors"):
    (copy / name).write_bytes(pathlib.Path(run, name).read_bytes())
  config = json.loads((copy / "config.json").read_text())
  config["data"]["max_bad_records"] = "many"  # is no number of them
  write(copy / "config.json", config)
  _, data, _ = page_of(tmp_path, copy, "--examples=0")
  assert data["confusion"]["matrices"][0]["counts"] == json.loads(stored)["confusion"]["counts"]
  assert not (copy / "evaluations").exists()
  elements, data, text = page_of(tmp_path, copy, "--stored")
  assert "confusion" not in data and "run: none is stored." in text and not elements.all("section", id="heatmaps")
  assert "python -m bionets_jax.evaluate WORKDIR --confusion" in text


def test_the_matrix_stays_in_its_own_file(run, stored):
  """A thousand classes have a million counts, and the ledger's JSON holds all evaluations of all runs."""
  (experiment,) = as_json(read([run]))["experiments"]
  (found,) = experiment["runs"][0]["evaluations"]
  assert found["top1_error"] == json.loads(stored)["clean"]["top1_error"] and "confusion" not in found


def test_heatmaps_are_of_the_images_that_were_evaluated(tmp_path):
  """Folders of the same splits and classes hold other images; and the classes of one may have changed since."""
  for place in ("one/a", "one/b", "two/a", "two/b", "three/a", "three/c"):
    (tmp_path / place).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / place / "x.png")
  examples = dict(label=np.array([0, 1]), predicted=np.array([1, 1]), index=np.arange(2), mask=np.ones(2))
  evaluation = dict(data="folder", split="all", confusion=confusion(examples, ["a", "b"]))
  group = []
  for name in ("one", "two", "three"):
    made_of = workdirs.Run(str(tmp_path), None, {}, {"data": {"dir": str(tmp_path / "one")}})
    experiment = types.SimpleNamespace(name=name)
    group.append(networks._from_file(experiment, made_of, evaluation | {"dir": str(tmp_path / name)}))
  told = []
  section = pictures.heatmaps_section(group, networks.Networks(), 2, False, told.append)
  assert told == [f"heatmaps: folder all {tmp_path}/{name}, 1 network" for name in ("one", "two", "three")]
  assert "the classes of the evaluation are not those of folder" in section.body
  assert section.body.count("is not the workdir of a run") == 2  # the two others got as far as their weights


def test_of_several_evaluations_that_on_the_runs_own_images_counts(tmp_path):
  data = dict(name="digits", split="test", transform="resize(10)|ten_crop(8)")
  for name, count, made in (("other", 9, data), ("own", 2, data | {"transform": ""})):
    examples = {key: np.ones(count, int) for key in ("label", "predicted", "index", "mask")}
    write(tmp_path / "run" / "evaluations" / f"{name}.json", dict(
        data=made, clean=dict(top1_error=50.0), examples=count, confusion=confusion(examples, ["a", "b"])))
  make_run(tmp_path / "run", 8.0, config={"data.name": "digits", "data.eval_split": "test", "data.eval_transform": ""})
  for place, images in (("own", ": digits test, 2 images"), ("other", ": digits test, resize(10)|ten_crop(8), 9 images")):
    _, data, _ = page_of(tmp_path, tmp_path / "run", "--stored")
    assert data["confusion"]["matrices"][0]["name"].endswith(images)
    (tmp_path / "run" / "evaluations" / f"{place}.json").unlink()


def test_names_that_are_no_text():
  assert markup.text("a\udcff<") == r"a\udcff&lt;"
  markup.text("a\udcff").encode()


def test_a_page_asks_for_nothing(page):
  (elements, _, text), _ = page
  addresses = [one[1][key] for one in elements.found for key in ("src", "href", "action") if key in one[1]]
  assert all(address.startswith(("#", "data:")) for address in addresses) and "url(" not in text.split("</style>")[0]
  (policy,) = (one[1]["content"] for one in elements.all("meta") if "http-equiv" in one[1])
  rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
  assert rules["default-src"] == "'none'"
  assert rules["script-src"].startswith("'sha256-") and "unsafe" not in rules["script-src"]
  assert len(elements.all("script")) == 2
  assert not any(key.startswith("on") for one in elements.found for key in one[1])
  targets = {one[1].get("id") for one in elements.found}
  assert {address[1:] for address in addresses if address.startswith("#")} <= targets


def test_nothing_that_a_run_says_is_read_as_html(tmp_path):
  folder = tmp_path / 'it "q" <b>&'
  lines = [dict(step=i, epoch=float(i), **{"train/loss": value, f"eval/{EVIL[:20]}": 1.0})
           for i, value in enumerate((1.0, math.nan, math.inf, None, "x", 0.5))]
  make_run(folder, 8.0, metrics=lines, devices=EVIL, commit=EVIL, data=EVIL, bad_records={EVIL: 1},
           versions={"jax": EVIL}, config={"data.name": EVIL})
  write(folder / "caveat.txt", EVIL)
  write(folder / "bad_records.jsonl", json.dumps(dict(split=EVIL, index=1, key=EVIL, reason=EVIL)))
  rows = [{"class": EVIL, "examples": 2, "errors": 1, "error": 50.0}] * 2
  table = dict(class_names=[EVIL, "</style>"], counts=[[1, 1], [1, 1]], per_class=rows, mistakes=[[0, 0, 1]])
  level = dict(level=50, top1_error=9.0, changed=math.nan, loss=math.inf)
  write(folder / "evaluations" / "a.json", dict(
      data=dict(name=EVIL, split=EVIL), clean=dict(top1_error=50.0), examples=4, confusion=table,
      jpeg=[level, {"level": EVIL}]))
  plain = make_run(tmp_path / "plain", 8.0)
  elements, data, text = page_of(tmp_path, folder)
  expected, _, _ = page_of(tmp_path, plain)
  assert not elements.all("b") and len(elements.all("script")) == len(expected.all("script")) == 2
  assert not [one for one in elements.all("img") if one[1]["src"] == "x"]
  assert text.count(markup.text(EVIL)) > 8  # it is all there, as text
  assert data["curves"]["series"]["train/loss"]["0"] == [[0, 5], [1, 0.5]]
  assert data["robustness"]["groups"][0]["panels"][0]["series"][0]["y"] == [9]
  assert data["confusion"]["matrices"][0]["classes"] == table["class_names"]
  assert "<" not in markup.embedded([EVIL]) and json.loads(markup.embedded([EVIL, math.nan])) == [EVIL, None]


@pytest.mark.parametrize("damage", [
    {"counts": [[1]]}, {"counts": [[1, "2"], [3, 4]]}, {"class_names": []}, {"per_class": [{}, {}]},
    {"mistakes": [[0, 0, 9]]}, {"mistakes": [[0]]}, {"mistakes": [[-1, 0, 1]]}, {"class_names": [1, 2]}])
def test_damaged_confusion_is_left_out(tmp_path, damage):
  examples = dict(label=np.array([0, 1]), predicted=np.array([1, -1]), index=np.arange(2), mask=np.ones(2))
  table = confusion(examples, ["a", "b"])
  for name, content in (("good", table), ("bad", table | damage)):
    make_run(tmp_path / name, 8.0)
    write(tmp_path / name / "evaluations" / "a.json", dict(
        data=dict(name="x", split="y"), clean=dict(top1_error=50.0), examples=2, confusion=content))
    _, data, text = page_of(tmp_path, tmp_path / name, "--stored")
    assert ("confusion" in data) == (name == "good") and ("none is stored" in text) == (name == "bad")


def test_seeds_are_a_band_and_runs_that_go_on_are_there(tmp_path):
  curves = [[(1, 4.0), (2, 2.0), (3, 1.0)], [(1, 6.0), (2, 3.0), (3, 1.0)]]
  for seed, curve in enumerate(curves):
    make_run(tmp_path / "net" / f"seed_{seed}", 8.0 + seed, seed=seed,
             metrics=[{"step": e, "epoch": float(e), "train/loss": loss} for e, loss in curve])
  write(tmp_path / "going" / "config.json", make_config(9, **{"batch_size": 3}))
  write(tmp_path / "going" / "metrics.jsonl", json.dumps({"step": 7, "epoch": 1.5, "train/loss": 9.0}))
  elements, data, _ = page_of(tmp_path, tmp_path)
  assert data["curves"]["runs"][0] == "net (2 seeds)" and data["curves"]["runs"][1].endswith("going (not finished)")
  assert data["curves"]["series"]["train/loss"] == {
      "0": [[1, 2, 3], [5, 2.5, 1], [4, 2, 1], [6, 3, 1]], "1": [[1.5], [9]]}
  shown = tables(elements)
  header, net = shown["Top-1 errors in per cent"]
  assert net[header.index("lowest")] == "8.50 ± 0.71 (2)"
  assert shown["Runs that have not finished"][1][1].startswith("7 / ")


def test_configs_side_by_side_say_what_differs(tmp_path):
  make_sweep(tmp_path / "wide", (8.0, 8.1), config={"batch_size": 64, "label_smoothing": 0.1})
  make_sweep(tmp_path / "plain", (8.2,))
  elements, _, _ = page_of(tmp_path, tmp_path)
  header, *rows = tables(elements)["In what the configs differ"]
  assert header[1:] == ["plain", "wide"]
  assert rows == [["batch_size", str(make_config()["batch_size"]), "64"], ["label_smoothing", "0.0", "0.1"]]


def test_detectors_have_the_precision_of_each_class_and_no_confusion(tmp_path):
  make_detector(tmp_path / "a", ap=78.5)
  elements, data, text = page_of(tmp_path, tmp_path)
  rows = tables(elements)["AP50 %, VOC07, of each class of voc (last)"]
  assert rows[1:] == [["aeroplane", "82.50"], ["bicycle", "73.50"]]
  assert "confusion" not in data and not any(word in text for word in ("Heatmaps", "Confusion:", "Robustness:"))


def test_long_curves_are_thinned_and_the_page_stays_small(tmp_path):
  lines = [{"step": i, "epoch": i / 100, **{f"train/{k}": math.sin(i * k) for k in range(8)}} for i in range(20_000)]
  make_run(tmp_path / "run", 8.0, metrics=lines)
  _, data, text = page_of(tmp_path, tmp_path / "run")
  xs, ys = data["curves"]["series"]["train/3"]["0"]
  assert len(xs) == 600 and (xs[0], xs[-1]) == (0, 199.99) and len(text) < 300_000
  np.testing.assert_allclose(ys, np.sin(np.array(xs) * 300), atol=1e-3)


@pytest.mark.parametrize("arguments,status,message", [
    (["no/such"], 2, "there is no folder no/such"), (["{tmp}", "--examples=-1"], 2, "--examples=-1"),
    (["{tmp}", "--out={tmp}"], 2, "is a folder"), (["{tmp}", "--out={tmp}/no/page.html"], 2, "there is no folder"),
    (["{tmp}"], 1, "no run in")])
def test_wrong_usage(tmp_path, arguments, status, message, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  arguments = ["html", *(argument.format(tmp=tmp_path) for argument in arguments)]
  if status == 2:
    with pytest.raises(SystemExit) as error:
      main(arguments)
    assert error.value.code == 2
  else:
    assert main(arguments) == status
  assert message in capsys.readouterr().err and not (tmp_path / "report.html").exists()


def test_a_file_that_cannot_be_written_is_an_error_in_a_line(tmp_path, capsys):
  make_run(tmp_path / "run", 8.0)
  assert main(["html", str(tmp_path / "run"), f"--out={tmp_path}/{'x' * 300}.html"]) == 1
  assert capsys.readouterr().err.startswith("error: ")


def test_in_a_browser(page):
  """Light and dark, wide and narrow: no errors, no requests, no text that is hard to read; plots answer."""
  command = [sys.executable, str(BENCHMARKS / "check_page.py"), str(page[1])]
  found = subprocess.run(command, capture_output=True, text=True)
  if found.returncode == 2:
    pytest.skip("there is no Chromium here")
  assert found.returncode == 0 and found.stdout.count(": fine") == 4, found.stdout + found.stderr


def test_summary_without_anything_else_makes_a_page(tmp_path):
  write(tmp_path / "old" / "summary.json", make_summary())
  elements, _, text = page_of(tmp_path, tmp_path)
  assert tables(elements)["Each run"][1][0] == "old" and "no run has a metrics.jsonl" in text
