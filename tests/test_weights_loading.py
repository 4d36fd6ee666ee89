"""`weights.load` and the command line: one line from a file to logits, and back out."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bionets_jax as bn
from bionets_jax.counting import abstract_variables
from bionets_jax.training.start import load_start
from bionets_jax.weights import command_line, commands, to_layout
from bionets_jax.weights.foreign import LIBRARIES
from bionets_jax.weights.native import is_native, load_native, save_native
from bionets_jax.weights.preprocessing import CIFAR
from bionets_jax.weights.whole import write_whole

SMALL = {"stage_sizes": (1, 1, 1), "width": 4}
ROOT = pathlib.Path(__file__).parents[1]


def variables_of(model, size=32, seed=0):
  """Random variables, statistics too."""
  template = abstract_variables(model, (size, size, 3))
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda a: random.uniform(0.5, 1.5, a.shape).astype(np.float32), template)


def about_of(name, options, num_classes=10, size=32):
  return {"model": name, "options": options, "num_classes": num_classes, "class_names": [],
          "image_shape": [size, size, 3], "preprocessing": {
              "mean": CIFAR.mean, "std": CIFAR.std, "image_size": size, "resize": size,
              "interpolation": "bilinear"}}  # fmt: skip


@pytest.fixture(scope="module")
def cifar():
  """(options, variables) of a small CIFAR ResNet."""
  options = {"stage_sizes": [1, 1, 1], "width": 4}
  return options, variables_of(bn.create_model("resnet20_cifar", **options))


@pytest.fixture
def workdir(tmp_path, cifar):
  """Of a finished run, as far as weights go."""
  options, variables = cifar
  folder = tmp_path / "run"
  folder.mkdir()
  save_native(folder / "weights.safetensors", variables, about_of("resnet20_cifar", options))
  return folder


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def run(*arguments):
  return command_line.main([str(a) for a in arguments])


# --- in -----------------------------------------------------------------------------------------------


def test_own_weights_in_both_formats(workdir, cifar, tmp_path):
  options, variables = cifar
  for source in (workdir, workdir / "weights.safetensors"):
    loaded = bn.weights.load(source)
    same(loaded.variables, variables)
    assert (loaded.name, loaded.num_classes, loaded.layout) == ("resnet20_cifar", 10, "bionets_jax")
    assert loaded.model == bn.create_model("resnet20_cifar", 10, **options)
  save_native(tmp_path / "w.npz", variables, loaded.about())
  again = bn.weights.load(tmp_path / "w.npz")
  same(again.variables, variables)
  assert again.about() == loaded.about()
  with np.load(tmp_path / "w.npz") as file:  # by NumPy alone
    np.testing.assert_array_equal(file["params/head/kernel"], variables["params"]["head"]["kernel"])


@pytest.mark.parametrize("name", ["w.safetensors", "w.npz"])
def test_scalars_and_other_memory_orders_come_back(name, tmp_path):
  """A learned alpha is a scalar; a transposed view lies in memory otherwise than its shape says."""
  options = {"alpha": "learned", "stage_sizes": [1, 1, 1], "width": 4}
  variables = variables_of(bn.create_model("ic_resnet20_cifar", **options))
  variables["params"]["head"]["kernel"] = np.asfortranarray(variables["params"]["head"]["kernel"])
  save_native(tmp_path / name, variables, about_of("ic_resnet20_cifar", options))
  same(bn.weights.load(tmp_path / name).variables, variables)


def test_foreign_weights_say_what_they_are(cifar, tmp_path):
  """Name, depth, classes and channels of a file come from its keys and shapes."""
  model = bn.create_model("resnet32_cifar", 7)
  variables = variables_of(model)
  save_file(to_layout(variables, "pytorch_resnet_cifar10"), tmp_path / "r.safetensors")
  loaded = bn.weights.load(tmp_path / "r.safetensors")
  assert (loaded.name, loaded.num_classes, loaded.options) == ("resnet32_cifar", 7, {})
  assert loaded.model == model and loaded.preprocessing == CIFAR
  same(loaded.variables, {k: variables[k] for k in loaded.variables})
  with pytest.raises(ValueError, match="the file has 7 classes"):
    bn.weights.load(tmp_path / "r.safetensors", num_classes=10)
  with pytest.raises(ValueError, match="r.safetensors .*width='a': give a whole number"):
    bn.weights.load(tmp_path / "r.safetensors", "resnet32_cifar", width="a")
  grey = bn.create_model("resnet32_cifar", 7)
  template = abstract_variables(grey, (32, 32, 1))
  blank = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), template)
  save_file(to_layout(blank, "pytorch_resnet_cifar10"), tmp_path / "g.safetensors")
  with pytest.raises(ValueError, match="images of 1 channels; how these are normalised nobody publishes"):
    bn.weights.load(tmp_path / "g.safetensors")


def test_a_file_of_the_efficientnets_gets_the_flavour_it_needs(tmp_path):
  options = {"width": 0.25, "depth": 0.5, "flavour": "torchvision"}
  variables = variables_of(bn.create_model("efficientnet_b0", 5, **options), 64)
  path = tmp_path / "e.safetensors"
  save_file(to_layout(variables, "torchvision_efficientnet"), path)
  loaded = bn.weights.load(path, "efficientnet_b0", width=0.25, depth=0.5)
  assert loaded.options["flavour"] == "torchvision" and loaded.model.norm_options()[0] == 1e-5
  with pytest.raises(ValueError, match="do not say which network"):
    bn.weights.load(path)
  # timm has the same keys for two flavours: there somebody has to choose.
  save_file(to_layout(variables, "timm_efficientnet"), path)
  with pytest.raises(ValueError, match="which its keys do not tell apart"):
    bn.weights.load(path, "efficientnet_b0", width=0.25, depth=0.5)


def test_what_own_weights_are_refused_for(workdir, cifar, tmp_path):
  options, variables = cifar
  about = about_of("resnet20_cifar", options)
  for wrong, message in (
      (about | {"model": "resnet20_cifr"}, "unknown model"),
      (about | {"options": options | {"widht": 3}}, "no option 'widht'"),
      (about | {"num_classes": 9}, "does not fit resnet20_cifar, 2 of"),
      (about | {"preprocessing": {"mean": [0.5], "std": [0], "image_size": 32, "resize": 32}}, "positive"),
      ({k: v for k, v in about.items() if k != "options"}, "no 'options'"),
      ([1], "its description is a list"),
      (about | {"options": options | {"stage_sizes": [10**7] * 3}}, "stage_sizes=10000000: give a whole number"),
      (about | {"options": options | {"stage_sizes": [900] * 3}}, "2700 blocks"),
      (about | {"options": options | {"width": "wide"}}, "not of a network that this version knows"),
      (about | {"image_shape": [10**9, 10**9, 3]}, "image_shape"),
      (about | {"class_names": ["a"]}, "are not 10 names"),
      (about | {"class_names": [{}] * 10}, "are not 10 names"),
  ):
    for name in ("w.safetensors", "w.npz"):
      save_native(tmp_path / name, variables, wrong)
      with pytest.raises(ValueError, match=re.escape(message)) as error:
        bn.weights.load(tmp_path / name)
      assert name in str(error.value)
  path = workdir / "weights.safetensors"
  with pytest.raises(ValueError, match="holds 'resnet20_cifar', not 'resnet50'"):
    bn.weights.load(path, "resnet50")
  with pytest.raises(ValueError, match="says itself what its network is"):
    bn.weights.load(path, width=8)
  save_native(tmp_path / "int.npz", jax.tree.map(np.int32, variables), about)
  with pytest.raises(ValueError, match="dtype int32; expected floating point"):
    bn.weights.load(tmp_path / "int.npz")
  bad = jax.tree.map(lambda a: a * np.nan, variables)
  save_native(tmp_path / "nan.safetensors", bad, about)
  with pytest.raises(ValueError, match="NaN or infinite"):
    bn.weights.load(tmp_path / "nan.safetensors")
  whole = path.read_bytes()
  path.write_bytes(whole[:-100])
  assert not is_native(path)
  with pytest.raises(ValueError, match="damaged"):
    load_native(path)


def test_a_pipe_is_no_file_to_wait_for(tmp_path, capsys):
  os.mkfifo(tmp_path / "w.safetensors")
  assert run("inspect", tmp_path / "w.safetensors") == 1 and "error: " in capsys.readouterr().err
  assert run("inspect", tmp_path) == 1 and "is not the workdir" in capsys.readouterr().err


def test_renamed_files_are_what_they_hold(cifar, tmp_path):
  options, variables = cifar
  about = about_of("resnet20_cifar", options)
  for name, other in (("w.npz", "n.safetensors"), ("w.safetensors", "s.npz"), ("w.npz", "n.pth")):
    save_native(tmp_path / name, variables, about)
    os.rename(tmp_path / name, tmp_path / other)
    same(bn.weights.load(tmp_path / other).variables, variables)


def test_a_failed_write_leaves_what_was_there(tmp_path):
  old, other = tmp_path / "a", tmp_path / "folder"
  old.write_text("old")
  other.mkdir()
  with pytest.raises(OSError, match="folder"):
    write_whole({old: b"new", other: b"new"})
  (tmp_path / "b.tmp").mkdir()
  with pytest.raises(OSError, match="/b'"):
    write_whole({old: b"new", tmp_path / "b": b"new"})
  assert old.read_text() == "old" and {p.name for p in tmp_path.iterdir()} == {"a", "folder", "b.tmp"}


def test_keys_that_are_no_paths_are_refused(tmp_path, cifar):
  about = json.dumps(about_of("resnet20_cifar", cifar[0]))
  for keys in (("params/a", "params/a/b"), ("kernel",)):
    tensors = {key: np.zeros(1, np.float32) for key in keys}
    save_file(tensors, tmp_path / "w.safetensors", metadata={"bionets_jax": about})
    with pytest.raises(ValueError, match="is no path of a variable"):
      bn.weights.load(tmp_path / "w.safetensors")


def test_reading_needs_no_jax_and_no_other_framework():
  code = ("import sys, bionets_jax.weights as w; w.read_tensors, w.load_pretrained\n"
          "print(sorted({'jax', 'torch', 'tensorflow', 'keras', 'h5py', 'huggingface_hub'} & set(sys.modules)))")
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
  assert out.stdout.strip() == "[]"


# --- to start from ------------------------------------------------------------------------------------


def test_a_run_starts_from_the_plain_network_with_a_head_of_its_own(workdir, cifar):
  options, variables = cifar
  for name, classes, kinds in (("resnet20_cifar", 10, set()), ("resnet20_cifar", 3, {"head"}),
                               ("ic_resnet20_cifar", 3, {"head", "adjust", "inner_bias", "bias"})):
    model = bn.create_model(name, classes, **options)
    start = load_start(str(workdir), model, name=name, options=options, image_shape=(32, 32, 3))
    new = {path.split("/")[1] if "head" in path else path.split("/")[-1] for path in start.new}
    assert new == kinds
    assert ("head" in start.variables["params"]) == (classes == 10)
    np.testing.assert_array_equal(
        start.variables["params"]["stem_conv"]["kernel"], variables["params"]["stem_conv"]["kernel"])
  bad = {**variables, "params": {**variables["params"], "head": {
      "kernel": variables["params"]["head"]["kernel"] * np.nan, "bias": variables["params"]["head"]["bias"]}}}
  save_native(workdir / "nan.safetensors", bad, about_of("resnet20_cifar", options))
  with pytest.raises(ValueError, match=r"^config.model.weights: .*holds NaN"):
    load_start(str(workdir / "nan.safetensors"), model, name=name, options=options, image_shape=(32, 32, 3))
  with pytest.raises(ValueError, match=r"config.model.weights='.*': fp_resnet20_cifar cannot start from"):
    load_start(str(workdir), bn.create_model("fp_resnet20_cifar"), name="fp_resnet20_cifar", options={},
               image_shape=(32, 32, 3))


# --- the command line ---------------------------------------------------------------------------------


def test_plain_networks_go_out_under_others_names(workdir, cifar, capsys):
  assert run("export", workdir, "--to=pytorch_resnet_cifar10") == 0
  path = workdir / "export" / "pytorch_resnet_cifar10" / "model.safetensors"
  assert str(path) in capsys.readouterr().out
  tensors = load_file(path)
  for key, value in to_layout(cifar[1], "pytorch_resnet_cifar10").items():
    np.testing.assert_array_equal(tensors[key], value, strict=True)
  same(bn.weights.load(path, "resnet20_cifar", **SMALL).variables, cifar[1])
  assert run("export", workdir, "--to=torchvision") == 1
  error = capsys.readouterr().err
  assert error.startswith("error: torchvision has no resnet20_cifar") and error.count("\n") == 1
  assert not (workdir / "export" / "torchvision").exists()


def test_what_came_in_goes_out_as_it_was(cifar, tmp_path):
  """Counts of batches too, which are no variables of the network."""
  tensors = to_layout(cifar[1], "pytorch_resnet_cifar10")
  tensors = {k: np.asarray(v + 17) if k.endswith("num_batches_tracked") else v for k, v in tensors.items()}
  save_file(tensors, tmp_path / "in.safetensors")
  source = [tmp_path / "in.safetensors", "--model=resnet20_cifar", "--model-option=stage_sizes=(1, 1, 1)",
            "--model-option=width=4"]
  assert run("export", *source, "--to=pytorch_resnet_cifar10", f"--out={tmp_path / 'out'}") == 0
  out = load_file(tmp_path / "out" / "model.safetensors")
  assert out.keys() == tensors.keys()
  assert all(out[k].tobytes() == v.tobytes() and out[k].dtype == v.dtype for k, v in tensors.items())


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_own_networks_go_out_with_a_pytorch_module(workdir, cifar, suffix):
  assert run("export", workdir, f"--to={suffix}") == 0
  folder = workdir / "export" / suffix
  assert {p.name for p in folder.iterdir()} == {f"weights.{suffix}", "model.py"}
  same(bn.weights.load(folder / f"weights.{suffix}").variables, cifar[1])
  compile((folder / "model.py").read_text(), "model.py", "exec")


def test_inspect_and_check(workdir, capsys):
  assert run("inspect", workdir, "--json") == 0
  about = json.loads(capsys.readouterr().out)
  assert about["model"] == "resnet20_cifar" and about["layout"] == "bionets_jax"
  assert run("inspect", workdir) == 0
  assert "resnet20_cifar" in capsys.readouterr().out
  assert run("check", workdir) == 0
  assert "every tensor has its place" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["inspect", "nowhere"], "nowhere: no such file or directory"),
    (["export", "README.md", "--to=npz"], "--out=DIR: say where to write"),
    (["export", ".", "--to=tf"], "invalid choice: 'tf'"),
    (["check", ".", "--report=no.npz"], "no.npz: no such file"),
    (["check", ".", "--tolerance=0"], "give a positive number"),
    (["card", ".", "--out=README.md"], "is a file; name a folder"),
    (["push-to-hub", "."], "--repo"),
])
def test_wrong_usage(arguments, message, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(SystemExit) as status:
    command_line.main(arguments)
  assert status.value.code == 2 and message in capsys.readouterr().err


def test_errors_are_lines_and_leave_nothing(tmp_path, capsys):
  (tmp_path / "w.safetensors").write_bytes(b"not weights at all")
  for arguments in (["inspect", tmp_path / "w.safetensors"], ["inspect", tmp_path], ["inspect", "ftp://x/y"],
                    ["export", tmp_path / "w.safetensors", "--to=npz", f"--out={tmp_path / 'out'}"]):
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
  assert not (tmp_path / "out").exists()


def test_the_command_line_knows_what_there_is():
  assert set(command_line._TARGETS) == {*LIBRARIES, "safetensors", "npz", "stablehlo"}
  assert commands.run.__doc__
  code = ("import sys; from bionets_jax.weights import command_line\n"
          "try:\n  command_line.main(['--help'])\nfinally:\n  assert 'jax' not in sys.modules")
  assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT).returncode == 0
