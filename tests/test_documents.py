"""What README.md and docs/ say is so: their Python runs, their commands and links name what exists, their counts are right."""

import argparse
import ast
import os
import pathlib
import re
import runpy
import sys

import pytest
from documents import COMMANDS, FENCE, OF_LAUNCH, OF_MODULES, PAGES, ROOT, blocks

import bionets_jax as bn
from bionets_jax import command_line
from bionets_jax.config_files import load_config
from bionets_jax.counting import count_layers
from bionets_jax.training.config import (
  classification_config,
  detection_config,
  flatten,
  within,
  wld_config,
)
from bionets_jax.training.setup import check_values

README = PAGES["README.md"]


# Python --------------------------------------------------------------------------------------

@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks(text, "python")])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = {}
  for code in blocks(PAGES[page], "python"):
    exec(compile(code, page, "exec"), names)


# Commands ------------------------------------------------------------------------------------

class Read(BaseException):
  """What a parser made of a command line: '', or what is wrong with it. No Exception: commands catch those."""


def test_command_lines_of_modules(monkeypatch):
  """Each is read by the parser of its module, which is stopped before anything is done."""
  assert len(OF_MODULES) > 30
  parse = argparse.ArgumentParser.parse_args

  def parse_args(self, *arguments):
    parse(self, *arguments)
    raise Read("")

  def error(self, message):
    raise Read(message)

  monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
  monkeypatch.setattr(argparse.ArgumentParser, "error", error)
  for page, module, arguments in OF_MODULES:
    if module.endswith(".local_processes"):  # passes on what it does not know
      assert arguments[0].isdigit() and arguments[1:3] == ["--", "launch.py"], (page, arguments)
      continue
    monkeypatch.setattr(sys, "argv", [module, *(a for a in arguments if a not in ("--help", "SUBCOMMAND"))])
    with pytest.raises(Read) as read:
      runpy.run_module(module, run_name="__main__")
    # Prose names commands and subcommands without what follows them.
    named = len(arguments) <= 1 and str(read.value).startswith("the following arguments are required")
    assert named or not str(read.value), (page, module, arguments)


def test_command_lines_of_launch():
  assert len(OF_LAUNCH) > 20
  known = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', pathlib.Path(command_line.__file__).read_text(encoding="utf-8")))
  assert {"config", "workdir", "mode"} <= known
  for page, arguments in OF_LAUNCH:
    given = dict(argument.lstrip("-").partition("=")[::2] for argument in arguments if argument != "...")
    for name in given:
      assert name.partition(".")[0] in known, (page, name)
    if given.get("config", "...") == "...":
      assert "config" in given or "..." in arguments, (page, arguments)
    else:
      config = load_config(str(ROOT / given["config"]))
      override(config, [argument for argument in arguments if argument.startswith("--config.")])
      for run in config.runs.values() if "runs" in config else [config]:
        check_values(run)


def override(config, arguments):
  """What ml_collections and the command line do with `--config.KEY=VALUE`."""
  there = flatten(config)
  arguments, added = command_line._new_options(arguments, there)
  for key, value in [argument.removeprefix("--config.").split("=", 1) for argument in arguments] + list(added.items()):
    if key not in added:
      kind = type(there[key])
      value = value if kind is str else {"true": True, "false": False}[value.lower()] if kind is bool else (
          kind(ast.literal_eval(value)))
    *parents, leaf = key.split(".")
    node = config
    for parent in parents:
      node = node[parent]
    with node.unlocked():
      node[leaf] = value
  command_line._check_read(arguments, config)


def test_other_commands_name_what_exists():
  targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
  seen = 0
  for page, words in COMMANDS:
    if words[0] == "make" and len(words) > 1:
      assert {word for word in words[1:] if "=" not in word} <= targets, (page, words)
    file = words[1] if words[0] == "python" and len(words) > 1 else words[0]
    if "/" in file and not file.startswith("."):
      seen += 1
      source = "".join((ROOT / name).read_text(encoding="utf-8") for name in (file, "benchmarks/timing.py"))
      for flag in (word.split("=")[0] for word in words[2:] if word.startswith("--") and file.endswith(".py")):
        assert f'"{flag}"' in source, (page, words)
  assert seen > 10


# Names ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("page", PAGES)
def test_files_and_keys_that_a_page_names_exist(page):
  text = PAGES[page]
  for name in set(re.findall(r"\b(?:configs|tests|bionets_jax|benchmarks|examples|scripts|docs)/[\w/.]*\w", text)):
    assert (ROOT / name).exists() or name.startswith("docs/_build"), name
  known = flatten(wld_config()) | flatten(classification_config()) | flatten(detection_config())
  for key in set(re.findall(r"--config\.([\w.]+\w)", text)) - {"KEY", "duraton"}:
    key = re.sub(r"^runs\.\w+\.", "", key)
    assert key in known or within(key, ("model.options", "detector.options")) or key == "KEY", key


def slug(heading):
  """GitHub's and MyST's name of a heading."""
  return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
  text = FENCE.sub("", PAGES[page])
  for target in re.findall(r"\]\(([^)\s]+)\)", text):
    if re.match(r"https?://[\w.-]+\.\w+(/\S*)?$", target):
      continue
    file, _, anchor = target.partition("#")
    there = (ROOT / page).parent / file if file else ROOT / page
    assert there.exists(), target
    if anchor:
      headings = re.findall(r"^#+ (.+)$", FENCE.sub("", there.read_text(encoding="utf-8")), re.MULTILINE)
      assert anchor in map(slug, headings), target


def test_every_page_is_in_the_site():
  listed = {os.path.join(os.path.dirname(page), name) for page, text in PAGES.items()
            for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL) for name in tree.split()}
  pages = {page.removesuffix(".md") for page in PAGES if page.startswith("docs/")} - {"docs/index"}
  assert pages <= listed


# Numbers -------------------------------------------------------------------------------------

@pytest.mark.parametrize("row", re.findall(r"^\| `.*` \|.*\|.*\|.*\|$", README.split("## Networks")[1].split("##")[0], re.M))
def test_the_counts_in_the_table(row):
  names, parameters, macs = [cell.strip() for cell in row.split("|")[1:4]]
  names = [n for n in re.findall(r"`([\w]+)`", names) if n in bn.list_models()]
  counts = [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]{5,}", parameters)]
  works = re.findall(r"(\d+\.\d+)", macs)
  unit, size = (1e6, 32) if macs.endswith("M") else (1e9, 224)
  assert counts and works
  for name, count, work in zip(names, counts, works, strict=False):
    model = bn.create_model(name)
    assert bn.count_parameters(model, size) == count
    total = sum(layer.macs for layer in count_layers(model, size)) / unit
    assert float(work) == pytest.approx(total, abs=0.5 * 10 ** -len(work.split(".")[1]) + 1e-9)


def test_every_config_has_its_place_in_the_recipes():
  there = {name for name in os.listdir(ROOT / "configs") if name.endswith(".py")} - {"__init__.py", "common.py"}
  assert there == set(re.findall(r"configs/(\w+\.py)` \|", PAGES["docs/recipes.md"]))
