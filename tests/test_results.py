"""`python -m bionets_jax.report results`: which runs belong together, what stands beside a paper's number
and what must not, and the three forms."""

import json
import math
import pathlib
import statistics

import numpy as np
import pytest
from report_runs import (
  ERRORS,
  TABLE_1,
  make_config,
  make_run,
  make_summary,
  make_sweep,
  only,
  report,
  write,
)

from bionets_jax.report import caveats, curves, ledger
from bionets_jax.report.__main__ import main
from bionets_jax.report.scatter import Point, scatter
from bionets_jax.report.table import aligned, run_table
from bionets_jax.training.spread import Spread

# Means -----------------------------------------------------------------------------------------


def test_mean_and_sample_deviation_of_the_seeds(tmp_path):
  experiment = only(make_sweep(tmp_path / "fp_pairs"))
  lowest, last = experiment.spread("best"), experiment.spread("last")
  # By hand: the mean is 31.29 / 4; the squares of the distances sum to .110275, over 3, rooted.
  assert lowest == (pytest.approx(7.8225), pytest.approx(math.sqrt(0.110275 / 3)), 4)
  assert lowest.std == pytest.approx(np.std(ERRORS, ddof=1)) == pytest.approx(statistics.stdev(ERRORS))
  assert last.mean == pytest.approx(8.0725) and last.std == pytest.approx(lowest.std)
  assert experiment.spread("test") is None and experiment.spread("best", "no_such") is None
  assert experiment.name == "fp_pairs" and experiment.departures == experiment.remarks == []
  assert experiment.difference() == pytest.approx(7.8225 - 7.85)
  assert str(Spread(7.84, 0.196, 4)) == "7.84 ± 0.20 (4)"
  assert Spread.of([3.0]) == (3.0, None, 1) and str(Spread.of([3.0])) == "3.00" and Spread.of([]) is None


@pytest.mark.parametrize("paper,of_run,statistic,ours", [
    (TABLE_1, {}, "best", 8.0), (TABLE_1 | {"statistic": "last"}, {}, "last", 8.25),
    (TABLE_1 | {"statistic": "test"}, {"test": dict(step=1, loss=1.0, top1_error=9.5)}, "test", 9.5),
    ({"top1_error": 7.85, "epochs": 200}, {"test": dict(step=1, loss=1.0, top1_error=9.5)}, "test", 9.5),
    ({"top1_error": 7.85, "epochs": 200}, {}, "last", 8.25)])
def test_the_statistic_of_the_paper_is_what_compares(tmp_path, paper, of_run, statistic, ours):
  experiment = only(make_run(tmp_path / "run", 8.0, paper=paper, **of_run))
  assert experiment.statistic == statistic
  assert experiment.difference() == pytest.approx(ours - 7.85)
  unsaid = [r for r in experiment.remarks if "paper.statistic" in r]
  assert len(unsaid) == ("statistic" not in paper)


# Which runs belong together --------------------------------------------------------------------


def test_what_is_no_difference_between_runs_and_what_is(tmp_path):
  inputs = make_summary()["inputs"]
  elsewhere = {"data.dir": "/elsewhere", "data.workers": 3, "log_every": "9 steps", "side_by_side": 2}
  make_run(tmp_path / "net_b", 8.0, seed=0, inputs=inputs | {"teacher_crc32": 1})
  make_run(tmp_path / "net_a", 8.2, seed=1, inputs=inputs | {"teacher_crc32": 2}, config=elsewhere)
  make_run(tmp_path / "wide", 8.4, seed=0, config={"batch_size": 64})
  make_run(tmp_path / "part", 8.6, seed=0, inputs=dict(train_examples=10, eval_examples=10_000))
  make_run(tmp_path / "other_row", 8.8, seed=0, paper=TABLE_1 | {"row": "another"})
  found = {e.name: [run.seed for run in e.runs] for e in ledger.collect([str(tmp_path)])}
  assert found == {"net": [0, 1], "wide": [0], "part": [0], "other_row": [0]}


def test_configs_of_before_a_key_came_belong_to_those_with_its_default(tmp_path):
  make_sweep(tmp_path, (8.0, 8.1))
  old = make_config(1)
  del old["mixup"], old["select"], old["data"]["test_split"]
  write(tmp_path / "seed_1" / "config.json", old)
  assert len(only(tmp_path).runs) == 2


def test_overlapping_workdirs_count_once(tmp_path):
  sweep = make_sweep(tmp_path / "study" / "pairs")
  (tmp_path / "link").symlink_to(sweep, target_is_directory=True)
  read = ledger.read(map(str, (tmp_path, tmp_path / "study", sweep, sweep / "seed_2", tmp_path / "link")))
  (experiment,) = read.experiments
  assert [run.seed for run in experiment.runs] == [0, 1, 2, 3] and not read.warnings


def test_a_folder_of_links_is_read_and_a_circle_ends(tmp_path):
  sweep = make_sweep(tmp_path / "elsewhere" / "pairs")
  links = tmp_path / "links"
  links.mkdir()
  (links / "pairs").symlink_to(sweep, target_is_directory=True)
  (links / "self").symlink_to(links, target_is_directory=True)
  (sweep / "up").symlink_to(tmp_path, target_is_directory=True)
  assert [run.seed for run in only(links).runs] == [0, 1, 2, 3]


def test_a_seed_counts_once_and_the_second_is_named(tmp_path):
  make_sweep(tmp_path / "a")
  make_run(tmp_path / "b" / "seed_1", ERRORS[1], seed=1)
  make_run(tmp_path / "c" / "seed_2", 1.0, seed=2)
  read = ledger.read([str(tmp_path)])
  assert read.experiments[0].spread("best").mean == pytest.approx(7.8225)
  (copy_at, copied), (other_at, other) = read.warnings
  assert copy_at.endswith("/b") and "seed 1 left out: copies of those in" in copied
  assert other_at.endswith("/c") and "seed 2 left out: other runs than those in" in other


def test_summaries_of_sweeps_and_studies_are_no_runs_of_their_own(tmp_path):
  make_sweep(tmp_path / "study" / "pairs", ERRORS[:2])
  inside = {str(seed): make_summary(ERRORS[seed], seed=seed) for seed in range(3)}
  sweep = dict(model="x", last={"top1_error": dict(mean=1.0, std=0.1, n=3)}, seeds=inside)
  write(tmp_path / "study" / "pairs" / "summary.json", sweep)
  write(tmp_path / "study" / "summary.json", {"pairs": sweep, "alone": make_summary(5.0)})
  found = {e.name: e for e in ledger.collect([str(tmp_path)])}
  assert [run.seed for run in found["pairs"].runs] == [0, 1]
  # What has no folder any more is read from the summary above it, but nothing says that it belongs there.
  assert set(found) == {"pairs", "pairs (2)", "alone"}
  assert [run.seed for run in found["pairs (2)"].runs] == [2]
  assert found["alone"].remarks[-1].startswith("without a config.json")


def test_names_are_as_long_as_it_takes(tmp_path):
  for study, batch in (("a", 64), ("b", 32)):
    make_run(tmp_path / study / "net", config={"batch_size": batch})
  assert [e.name for e in ledger.collect([str(tmp_path)])] == ["a/net", "b/net"]


# What must not pass for a reproduction ---------------------------------------------------------


@pytest.mark.parametrize("paper,changes,config,why", [
    ({}, {"epochs": 2.0}, {}, "epochs 2; the paper has 200"),
    ({"epochs": None}, {}, {}, "does not say how long the paper trained"),
    ({"data": "cifar100"}, {}, {}, "data cifar10; the paper has cifar100"),
    ({}, {"data": "generated/cifar10"}, {}, "made-up images, not cifar10"),
    ({"batch_size": 64}, {}, {}, "batch size 128; the paper has 64"),
    ({}, {"inputs": dict(train_examples=64, eval_examples=10_000)}, {},
     "64 of the 50,000 images of cifar10's train"),
    ({}, {"inputs": dict(train_examples=50_000, eval_examples=32)}, {},
     "32 of the 10,000 images of cifar10's test"),
    ({"eval_examples": 10_000}, {"inputs": dict(train_examples=50_000, eval_examples=32)}, {},
     "32 images in the eval split; the paper has 10,000"),
    ({}, {"data": "imagenet2012", "inputs": dict(train_examples=400, eval_examples=50_000)},
     {"data.eval_split": "validation"}, "400 of the 1,281,167 images of imagenet2012's train")])
def test_departures_leave_no_difference(tmp_path, capsys, paper, changes, config, why):
  run = make_run(tmp_path / "run", paper=TABLE_1 | paper, config=config, **changes)
  experiment = only(run)
  assert len(experiment.departures) == 1 and why in experiment.departures[0]
  assert experiment.difference() is None
  status, text, _ = report(capsys, run)
  assert status == 0 and text.splitlines()[2].startswith("run [a]")
  assert f"[a] not compared with the paper: {experiment.departures[0]}" in text
  cells = dict(zip(text.splitlines()[0].split(), text.splitlines()[2].split(), strict=False))
  assert cells and " 8.00 " in text and f"{8.0 - 7.85:+.2f}" not in text


def test_a_part_held_out_of_the_training_set_is_not_missing(tmp_path):
  splits = {"data.train_split": "train[5000:]", "data.eval_split": "train[:5000]", "data.test_split": "test"}
  run = make_run(tmp_path / "run", config=splits,
                 inputs=dict(train_examples=45_000, eval_examples=5_000, test_examples=10_000))
  assert only(run).departures == []


def test_the_sizes_are_the_published_ones():
  assert caveats._sizes("cifar100") == {"train": 50_000, "test": 10_000}
  assert caveats._sizes("imagenet2012") == {"train": 1_281_167, "validation": 50_000}
  assert caveats._sizes("digits") == {}


def test_a_caveat_above_the_runs_is_a_note_and_takes_the_difference(tmp_path, capsys):
  make_sweep(tmp_path / "study" / "pairs")
  write(tmp_path / "study" / "caveat.txt", "a JPEG copy\n of the images\n")
  status, text, _ = report(capsys, tmp_path / "study" / "pairs")
  assert status == 0 and "[a] not compared with the paper: a JPEG copy of the images" in text


def test_remarks(tmp_path):
  make_sweep(tmp_path, ERRORS[:2], paper=TABLE_1 | {"note": "read off a figure"}, commit="0123456789ab+")
  make_run(tmp_path / "seed_1", 8.0, seed=1, paper=TABLE_1, dtype="float32", commit="ba9876543210")
  for folder, seed in (("seed_2", 2), ("again", 2), ("finished_elsewhere", 1)):
    write(tmp_path / folder / "config.json", make_config(seed))
  experiment = only(tmp_path)
  assert experiment.departures == [] and experiment.difference() is not None
  assert experiment.remarks == [
      "1 of 3 seeds not finished and not in the mean", "2 seeds; the paper has 4",
      "the paper's number: read off a figure", "seeds of different arithmetic: bfloat16, float32",
      "seeds of different commits: 0123456789ab, ba9876543210", "made from code that differs from its commit"]


# The three forms -------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path):
  """A sweep with 10-crop evaluations, a run that has gone wrong ways, an unfinished one, and damage."""
  sweep = make_sweep(tmp_path / "results" / "pairs", paper=TABLE_1 | {"top1_error_10crop": 7.0})
  for seed in range(4):
    write(sweep / f"seed_{seed}" / "evaluations" / "crops.json", dict(
        data=dict(name="cifar10", split="test", dir="", transform="resize(40)|ten_crop(32)"), examples=10_000,
        crops=10, crop_average="softmax", clean=dict(loss=0.3, top1_error=7.0 + 0.1 * seed, top5_error=0.2)))
  write(sweep / "seed_0" / "evaluations" / "v2.json",
        dict(data="other", split="test", transform="a|b", top1_error=20))
  write(sweep / "seed_0" / "evaluations" / "odd.json", {"accuracy": 3})
  make_run(tmp_path / "results" / "short", 60.0, epochs=1.0, steps=391, config={"duration": "1 epochs"})
  write(tmp_path / "results" / "begun" / "config.json", make_config(3, batch_size=64))
  write(tmp_path / "results" / "begun" / "metrics.jsonl", '{"step": 782, "epoch": 2.0}\n{"st')
  (tmp_path / "results" / "begun" / "checkpoints" / "391").mkdir(parents=True)
  write(tmp_path / "results" / "torn" / "summary.json", '{"model": "x", ')
  write(tmp_path / "results" / "foreign" / "summary.json", {"accuracy": 3})
  write(tmp_path / "results" / "empty" / "summary.json", make_summary() | {"last": {"top1_error": None}})
  write(tmp_path / "results" / "app" / "config.json", {"port": 80})
  return tmp_path / "results"


def test_text(results, capsys):
  status, text, errors = report(capsys, results)
  assert status == 0
  lines = text.splitlines()
  header, pairs, short = lines[0], lines[2], lines[3]
  assert header.split()[:3] == ["experiment", "paper's", "row"] and set(lines[1]) == {"-"}
  assert "FP-nets, Table 1, Filter Pairs" in pairs and "7.85 ± 0.22 (4)" in pairs and "165,786" in pairs
  for heading, cell in (
      ("ours", f"{statistics.fmean(ERRORS):.2f} ± 0.19 (4)"), ("difference", "-0.03"),
      ("last", "8.07 ± 0.19 (4)"), ("10-crop", "7.15 ± 0.13 (4)"), ("MACs", "52.6 M"), ("epochs", "200"),
      ("hours", "1")):
    end = header.index(f" {heading} ") + 1 + len(heading)  # numbers are flush right
    assert pairs[:end].endswith(f" {cell}"), heading
  assert short.startswith("short [a] [b]") and "60.00" in short and "+52.15" not in text
  assert "[a] not compared with the paper: epochs 1; the paper has 200" in lines
  assert "[b] 1 seed; the paper has 4" in lines
  (begun,) = [line for line in lines if "begun" in line]
  assert "782 / 78,200" in begun and begun.endswith("its command, given again, goes on from step 391")
  (other,) = [line for line in lines if " other " in line]
  assert "1 of 4" in other and "20.00" in other
  for name, problem in (("torn/summary.json", "cannot be read"), ("foreign/summary.json", "not the summary"),
                        ("empty/summary.json", "last.top1_error is None"), ("odd.json", "no top1_error"),
                        ("app/config.json", "not the config of a run")):
    (line,) = [line for line in errors.splitlines() if name in line]
    assert line.startswith("warning: ") and problem in line


def test_markdown_has_the_same_cells(results, capsys):
  text = report(capsys, results)[1]
  status, markdown, _ = report(capsys, results, "--markdown")
  assert status == 0
  table = [line for line in markdown.splitlines() if line.startswith("|")]
  rows = [[cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")] for line in table]
  assert len({len(row) for row in rows[:4]}) == 1 and set(rows[1]) == {"---", "---:"}
  for row in (*rows[:1], *rows[2:4]):
    assert all(cell.replace("¦", "|") in text for cell in row)
  assert "- [a] not compared with the paper: epochs 1; the paper has 200" in markdown
  assert "resize(40)\\|ten_crop(32)" in markdown


def test_json_has_everything_in_full(results, tmp_path, capsys):
  path = tmp_path / "numbers.json"
  assert report(capsys, results, f"--json={path}")[0] == 0
  numbers = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
  pairs, short = numbers["experiments"]
  assert pairs["best"]["top1_error"] == {
      "mean": statistics.fmean(ERRORS), "std": statistics.stdev(ERRORS), "n": 4}
  assert [run["best"]["top1_error"] for run in pairs["runs"]] == list(ERRORS)
  assert [run["seed"] for run in pairs["runs"]] == [0, 1, 2, 3]
  assert pairs["difference"] == pytest.approx(-0.0275) and pairs["paper"]["top1_error_std"] == 0.22
  assert pairs["ten_crop"]["top1_error"]["mean"] == pytest.approx(7.15) and pairs["test"] is None
  assert short["difference"] is None and short["departures"] == ["epochs 1; the paper has 200"]
  (begun,) = numbers["unfinished"]
  assert (begun["step"], begun["checkpoint"], begun["steps"], begun["seed"]) == (782, 391, 78_200, 3)
  assert len(numbers["warnings"]) == 5


def test_ten_crops_of_fewer_images_or_of_one_seed_are_not_shown(tmp_path):
  crops = dict(data="cifar10", split="test", transform="ten_crop(32)", top1_error=7.0)
  run = make_run(tmp_path / "a")
  write(run / "evaluations" / "few.json", crops | {"examples": 100})
  assert only(run).crops() is None
  write(run / "evaluations" / "few.json", crops | {"examples": 10_000})
  assert only(run).crops().mean == 7.0
  make_run(tmp_path / "b", seed=1)
  assert only(tmp_path).crops() is None


# Exit statuses ---------------------------------------------------------------------------------


def test_status_1_if_there_is_nothing(tmp_path, capsys):
  write(tmp_path / "summary.json", "[1, 2]")
  status, text, errors = report(capsys, tmp_path)
  assert status == 1 and text == "" and "not the summary of a run" in errors and "no run in" in errors


def test_unfinished_runs_alone_are_something(tmp_path, capsys):
  write(tmp_path / "config.json", make_config())
  status, text, _ = report(capsys, tmp_path)
  assert status == 0 and "0 / 200 epochs" in text and text.endswith("its command, given again, begins it\n")


@pytest.mark.parametrize("arguments,message", [
    ([], "required: WORKDIR"), (["/no/such/folder"], "there is no folder /no/such/folder"),
    ([".", "--json=/no/such/folder/x"], "there is no folder /no/such/folder"),
    ([".", "--json=."], "--json: . is a folder"),
    ([".", f"--figures={__file__}"], "is a file; name a folder")])
def test_wrong_usage_has_status_2(arguments, message, capsys):
  with pytest.raises(SystemExit) as stop:
    main(["results", *arguments])
  assert stop.value.code == 2 and message in capsys.readouterr().err


# Figures and the table of a study --------------------------------------------------------------


def test_figures(tmp_path, capsys):
  def metrics(final):
    return [{"step": s, "epoch": s / 10, key: final + 30 / s}
            for key in ("train/top1_error", "eval/top1_error") for s in (10, 20, 30)]
  make_sweep(tmp_path / "runs" / "pairs", ERRORS[:2], metrics=metrics(8))
  plain = dict(model="resnet20_cifar", parameters=269_722, paper={})
  make_run(tmp_path / "runs" / "resnet20", metrics=metrics(7), config={"model.name": "resnet20_cifar"},
           **plain)
  status, _, errors = report(capsys, tmp_path / "runs", f"--figures={tmp_path / 'figures'}")
  names = {"parameters-cifar10", "fp-nets-figure-2", "fp-nets-figure-3", "curves-cifar10-resnet20_cifar",
           "curves-cifar10-resnet32_cifar"}
  assert status == 0 and errors.count("wrote ") == 2 * len(names)
  for name in names:
    assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_a_scatter_shows_ours_and_what_was_published():
  points = [Point(100_000, Spread(8.0, 0.2, 4), "a", published=(7.5, 0.1)),
            Point(200_000, Spread(7.0, None, 1), "b")]
  axes = scatter(points, title="t", ylabel="error (%)").axes[0]
  lines = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
  drawn = {(round(float(line.get_xdata()[0])), float(line.get_ydata()[0])): line for line in lines}
  assert {key for key in drawn if key[0] in (100, 200)} == {(100, 8.0), (200, 7.0)}
  (published,) = [line for (_, y), line in drawn.items() if y == 7.5]
  assert published.get_markerfacecolor() == "none" and 100 < published.get_xdata()[0] < 110
  assert axes.get_xlabel() == "parameters (thousands)" and {t.get_text() for t in axes.texts} == {"a", "b"}


def test_curves_are_means_with_the_range_of_the_seeds(tmp_path):
  for seed, values in enumerate(((5.0, 3.0, 1.0), (7.0, 4.0), (9.0, 8.0, 4.0))):
    write(tmp_path / str(seed) / "metrics.jsonl", "".join(
        json.dumps({"step": i, "epoch": float(i), curves.ERROR: v}) + "\n" for i, v in enumerate(values)))
  curve = curves.read_curve([str(tmp_path / str(seed)) for seed in range(3)], curves.ERROR)
  assert curve.epochs.tolist() == [0, 1]  # as far as all of them go
  assert curve.mean.tolist() == [7, 5]
  assert curve.lowest.tolist() == [5, 3] and curve.highest.tolist() == [9, 8]
  alone = curves.read_curve(str(tmp_path / "0"), curves.ERROR)
  assert alone.mean.tolist() == alone.lowest.tolist() == [5, 3, 1]
  assert curves.read_curve(str(tmp_path / "0"), curves.LOSS) is None
  curves.plot_runs({"all": [str(tmp_path / str(s)) for s in range(3)], "one": str(tmp_path / "0")},
                   str(tmp_path / "plots" / "curves.png"))
  assert (tmp_path / "plots" / "curves.png").stat().st_size > 5000


def test_the_table_of_a_study_with_seeds():
  runs = {str(seed): make_summary(error, seed=seed) for seed, error in enumerate(ERRORS)}
  sweep = make_summary() | {
      part: {"top1_error": dict(mean=mean, std=0.2, n=4)} for part, mean in (("last", 8.0), ("best", 7.5))}
  text = run_table({"pairs": sweep | {"seeds": runs}, "alone": make_summary(8.0, test={"top1_error": 9.0})})
  header, rule, pairs, alone = text.splitlines()
  assert "8.00 ± 0.20 (4)" in pairs and "7.50 ± 0.20 (4)" in pairs and pairs.endswith("4:26:40")
  assert alone.split()[-4:] == ["8.25", "8.00", "9.00", "1:06:40"] and "test %" in header
  assert len(rule) == max(map(len, (header, pairs, alone)))


def test_aligned():
  assert aligned([["a", "bb"], ["ccc", "d"]], left=(0,)) == ["a    bb", "ccc   d"]


@pytest.mark.parametrize("changes,words", [
    (dict(seed=[0]), "seed"), (dict(paper="Table 1"), "paper"), (dict(inputs=3), "inputs"),
    (dict(model=1), "model")])
def test_a_foreign_summary_is_named_and_left_out(tmp_path, capsys, changes, words):
  make_run(tmp_path / "good")
  write(tmp_path / "odd" / "summary.json", make_summary() | changes)
  status, out, err = report(capsys, tmp_path)
  assert status == 0 and "good" in out and f"odd/summary.json: {words} is" in err


def test_what_is_no_number_is_not_shown(tmp_path, capsys):
  """The loss on held-out images may be infinite; classes and seconds of others may be anything."""
  for seed, loss in enumerate((0.4, math.inf)):
    run = make_run(tmp_path / f"seed_{seed}", seed=seed)
    summary = make_summary(seed=seed, inputs=dict(classes="ten"), train_seconds="long")
    summary["last"]["loss"] = loss
    write(run / "summary.json", summary)
  write(tmp_path / "begun" / "config.json", make_config())
  write(tmp_path / "begun" / "metrics.jsonl", "[1]\n")
  status, out, _ = report(capsys, tmp_path, f"--json={tmp_path}/out.json")
  assert status == 0 and "Not finished" in out
  (experiment,) = json.loads((tmp_path / "out.json").read_text())["experiments"]
  assert "loss" not in experiment["last"] and experiment["last"]["top1_error"]["n"] == 2


def test_the_committed_results_are_shown_as_they_are(capsys):
  folder = pathlib.Path(__file__).parent.parent / "results"
  assert main(["results", str(folder), "--markdown"]) == 0
  shown = (folder / "README.md").read_text(encoding="utf-8")
  rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
  assert len(rows) > 2 and all(row in shown for row in rows)
