"""`python -m bionets_jax.report paper-tables`: all rows agree, and one that does not is seen."""

import collections
import contextlib
import io
import json
from fractions import Fraction

import pytest

from bionets_jax.report import paper_tables
from bionets_jax.report.__main__ import main
from bionets_jax.report.paper_rows import Row

# How many numbers each table prints, and one of them: (network, printed, ours).
PRINTED = {
    ("IC networks", "Table 1"): (12, ("ic_resnet34", "4.07 G", 4_072_922_600)),
    ("IC networks", "Table 3"): (6, ("ic_resnet50_c", "36.2 M", 36_219_176)),
    ("IC networks", "Section 4.1"): (3, ("ic_resnet34", "10.60 %", pytest.approx(10.5978, abs=1e-4))),
    ("FP-nets", "Section 3.1"): (2, ("resnet44_cifar", "660 K", 658_586)),
    ("FP-nets", "Table 1"): (2, ("fp_resnet32_cifar", "162 K", 162_330)),
    ("FP-nets", "Section 4"): (2, ("fp_resnet32_cifar", "3,456", 3_456)),
    ("FP-nets", "Table 2"): (4, ("resnet50", "23 M", 23_508_032)),
    ("kEffNet", "Section 3"): (3, ("1,024 -> 512 channels", "12,288", 12_288)),
    ("kEffNet", "Table 1"): (6, ("keffnet_b0", "674,289", 674_289)),
    ("kEffNet", "Table 2"): (24, ("keffnet_b7", "92.68 %", pytest.approx(92.6829, abs=1e-4)))}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
  """The one run of the whole table: (exit status, text, JSON)."""
  path = tmp_path_factory.mktemp("tables") / "numbers.json"
  with contextlib.redirect_stdout(io.StringIO()) as out:
    status = main(["paper-tables", f"--json={path}"])
  return status, out.getvalue(), json.loads(path.read_text(encoding="utf-8"))


def test_all_numbers_of_the_papers_agree(everything):
  status, text, numbers = everything
  assert [row for row in numbers["rows"] if not row["ok"]] == []
  assert status == 0 and numbers["off"] == 0 and text.endswith("all agree\n")
  tables = collections.Counter((row["paper"], row["table"]) for row in numbers["rows"])
  for table, (count, (network, printed, ours)) in PRINTED.items():
    assert tables.pop(table) == count, table
    (row,) = [r for r in numbers["rows"] if (r["paper"], r["table"], r["network"], r["printed"])
              == (*table, network, printed)]
    assert row["ours"] == ours and row["difference"] == "ok"
  assert set(tables) == {(paper, "recomputed") for paper in ("IC networks", "FP-nets", "kEffNet")}
  assert f"{sum(c for c, _ in PRINTED.values())} numbers that the papers print" in text


def test_exact_rows_have_no_residual_and_the_others_say_theirs(everything):
  rows = everything[2]["rows"]
  for row in rows:
    if row["printed"].replace(",", "").isdigit():
      assert row["residual"] == 0 and row["ours"] == int(row["printed"].replace(",", ""))
  residuals = {(r["table"], r["network"], r["printed"]): r["residual"] for r in rows}
  assert residuals["Table 1", "ic_resnet18", "12.9 M"] == 17_800
  assert residuals["Table 2", "resnet50", "23 M"] == 508_032
  (note,) = {r["note"] for r in rows if r["network"] == "resnet50" and r["printed"] == "23 M"}
  assert "truncated, and without the last layer" in note


def test_the_table_is_aligned(everything):
  lines = everything[1].splitlines()
  at = lines[0].index("difference") + len("difference")
  rows = [line for line in lines[2:-1] if line and line not in ("IC networks", "FP-nets", "kEffNet")]
  assert len(rows) == len(everything[2]["rows"])
  assert all(line[at - 2:at] == "ok" and not line[at:at + 2].strip() for line in rows)


@pytest.mark.parametrize("printed,ours,difference,rule", [
    ("12.9 M", 12_917_800, "ok", "rounded"), ("12.9 M", 12_850_000, "ok", "rounded"),
    ("12.9 M", 12_849_999, "-0.1 M", "rounded"), ("12.9 M", 13_950_000, "+1.1 M", "rounded"),
    ("6.10 G", 6_104_830_440, "ok", "rounded"), ("6.10 G", 6_105_000_000, "+0.01 G", "rounded"),
    ("4,020,358", 4_020_358, "ok", "rounded"), ("4,020,358", 4_020_357, "-1", "rounded"),
    ("4,020,358", 5_020_358, "+1,000,000", "rounded"),
    ("23 M", 23_999_999, "ok", "truncated"), ("23 M", 22_999_999, "-1 M", "truncated"),
    ("660 K", 658_586, "ok", "rounded to tens"), ("660 K", 654_999, "-10 K", "rounded to tens"),
    ("84.09 %", Fraction(840_884, 10_000), "ok", "rounded"),
    ("84.09 %", Fraction(84_095, 1000), "+0.01 %", "rounded"), ("5 M", -5_683_968, "-11 M", "rounded")])
def test_differences_have_the_digits_of_the_paper(printed, ours, difference, rule):
  result = paper_tables.compare(Row("Table 1", "net", "parameters", printed, lambda: ours, rule))
  assert result.difference == difference and result.ok == (difference == "ok")


@pytest.mark.parametrize("printed,rule", [("12.9 m", "rounded"), ("", "rounded"), ("12 M", "roundd"),
                                          ("1.2.3", "rounded")])
def test_rows_that_cannot_be_read(printed, rule):
  with pytest.raises(ValueError, match="Table 9, net: cannot read"):
    paper_tables.compare(Row("Table 9", "net", "parameters", printed, lambda: 1, rule))


def test_a_number_that_is_off_is_marked_and_gives_status_1(tmp_path, capsys):
  rows = [Row("Table 1", "good", "parameters", "12 K", lambda: 12_300),
          Row("Table 2", "bad", "parameters", "12 K", lambda: 13_300, note="a note")]
  path = tmp_path / "off.json"
  status = paper_tables.run(json_path=str(path), papers={"x": ("A paper", lambda: rows)})
  text = capsys.readouterr().out
  assert status == 1 and "1 off: bad (parameters)" in text.splitlines()[-1]
  (line,) = [line for line in text.splitlines() if line.startswith("Table 2")]
  assert "13,300" in line and "+1 K  a note" in line
  numbers = json.loads(path.read_text(encoding="utf-8"))
  assert numbers["off"] == 1 and [row["ok"] for row in numbers["rows"]] == [True, False]
  assert set(numbers["versions"]) == {"jax", "flax"}


def test_only_counts_what_was_asked_for(capsys):
  def never():
    raise AssertionError("not asked for")
  papers = {"a": ("A", lambda: [Row("Table 1", "net", "parameters", "1", lambda: 1)]), "b": ("B", never)}
  assert paper_tables.run(["a"], papers=papers) == 0
  assert "1 numbers that the papers print and 0 recomputed ones: all agree" in capsys.readouterr().out


def test_progress_is_told_when_it_takes_long(monkeypatch):
  rows = {"A": [Row("Table 1", f"net{i}", "parameters", "1", lambda: 1) for i in range(3)]}
  out = io.StringIO()
  paper_tables.compare_all(rows, out)
  assert out.getvalue() == ""
  monkeypatch.setattr(paper_tables, "_QUIET_SECONDS", -1)
  paper_tables.compare_all(rows, out)
  assert out.getvalue().splitlines()[2] == "2 of 3 numbers; now net2"


@pytest.mark.parametrize("arguments,message", [
    ([], "required: SUBCOMMAND"), (["papertables"], "invalid choice: 'papertables'"),
    (["paper-tables", "--only=vgg"], "invalid choice: 'vgg'"),
    (["paper-tables", "--json=/no/such/folder/x.json"], "there is no folder /no/such/folder")])
def test_wrong_usage_has_status_2(arguments, message, capsys):
  with pytest.raises(SystemExit) as stop:
    main(arguments)
  assert stop.value.code == 2 and message in capsys.readouterr().err
