"""What README.md says is so: its Python runs, its commands name what exists, its counts are right."""

import pathlib
import re
import shlex

import pytest

import bionets_jax as bn
from bionets_jax.counting import count_layers
from bionets_jax.training.config import classification_config, detection_config, flatten, wld_config

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_in_it_runs(capsys):
  code = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
  assert len(code) >= 3
  exec("\n".join(code), {})
  assert "ic_resnet50_b" in capsys.readouterr().out


def test_every_file_that_it_names_exists():
  named = set(re.findall(r"\b(?:configs|tests|bionets_jax|benchmarks|examples)/[\w/.]*", TEXT))
  assert len(named) > 10
  for name in named:
    assert (ROOT / name.rstrip(".")).exists(), name


def test_every_config_key_that_it_names_exists():
  known = flatten(wld_config()) | flatten(classification_config()) | flatten(detection_config())
  keys = set(re.findall(r"--config\.([\w.]+)=", TEXT)) - {"KEY"}
  keys |= {"batch_norm", "wld.distill", "model.options", "alpha_ramp_to", "accumulate", "ema_decay",
           "optimizer.decay", "dtype", "eval_batch_size"}
  for key in keys:
    assert key in known or key.startswith(("model.options.", "detector.options.")), key


def test_make_targets_and_flags():
  makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
  for target in re.findall(r"^make (\w+)", TEXT, re.MULTILINE):
    assert f"\n{target}:" in makefile
  from bionets_jax import command_line  # noqa: F401 (defines nothing until main is called)
  source = (ROOT / "bionets_jax" / "command_line.py").read_text(encoding="utf-8")
  for line in TEXT.splitlines():
    if line.startswith("python launch.py"):
      for argument in shlex.split(line, comments=True)[2:]:
        flag = argument.lstrip("-").split("=")[0].split(".")[0]
        assert f'"{flag}"' in source, argument


@pytest.mark.parametrize("row", re.findall(r"^\| `.*` \|.*\|.*\|.*\|$", TEXT.split("## Networks")[1].split("##")[0], re.M))
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
