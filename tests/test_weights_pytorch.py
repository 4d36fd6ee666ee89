"""The generated PyTorch source: its text, and what torch computes with it.

The references are torch's own logits (fixtures/make_pytorch_source_fixtures.py), computed by that very
source: its text is compared by checksum, so that torch is not needed here. Where it can be imported the
source runs.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import bionets_jax as bn
from bionets_jax.counting import abstract_variables
from bionets_jax.weights import Preprocessing
from bionets_jax.weights.native import save_native
from bionets_jax.weights.pytorch import assemble, networks, pytorch_source

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from golden_weights import golden_images, golden_layer  # noqa: E402

PACKAGE = pathlib.Path(bn.__file__).parent
SOURCES = PACKAGE / "weights" / "pytorch" / "sources"
RERUN = "the generated source is not the fixture's; run make_pytorch_source_fixtures.py again"


def read_cases():
  cases = {}
  with np.load(FIXTURES / "pytorch_source.npz") as file:
    for key, value in file.items():
      case, key = key.split("/", 1)
      cases.setdefault(case, {})[key] = value
  return cases


CASES = read_cases()
# In train mode too: every kind of batch norm.
TRAINED = ("pyramid", "fp", "fp_journal")


def preprocessing_of(shape):
  return Preprocessing((0.5,) * shape[-1], (0.25,) * shape[-1], min(shape[:2]), min(shape[:2]) + 4)


def source_of(case):
  arguments = json.loads(str(CASES[case]["arguments"]))
  return pytorch_source(**arguments, preprocessing=preprocessing_of(arguments["image_shape"]))


@functools.cache
def network(case):
  arguments = json.loads(str(CASES[case]["arguments"]))
  return bn.create_model(arguments["name"], arguments["num_classes"], **arguments["options"])


@functools.cache
def variables_of(case):
  """The golden tensors under the names that the source has for them in a weight file."""
  golden = CASES[case]
  template = flatten_dict(abstract_variables(network(case), tuple(golden["image_shape"][1:])))
  flat = {}
  for name, key, shape in zip(golden["keys"], golden["file_keys"], golden["shapes"], strict=True):
    value = golden_layer(str(name), tuple(int(n) for n in shape if n), 1 if not shape[1] else golden["gain"])
    if value.ndim == 4:
      value = value[:, :, 0, 0].T if key.endswith("/adjust") else value.transpose(2, 3, 1, 0)
    flat[tuple(key.split("/"))] = value.T if value.ndim == 2 and not key.endswith("/adjust") else value
  assert {k: v.shape for k, v in flat.items()} == {k: v.shape for k, v in template.items()}
  return unflatten_dict(flat)


@functools.cache
def run(case, train):
  """Our logits."""
  @jax.jit
  def apply(variables, images):
    out = network(case).apply(variables, images, train=train, mutable=["batch_stats"] if train else False)
    return out[0] if train else out

  return apply(variables_of(case), golden_images(case, tuple(CASES[case]["image_shape"])))


def assert_close(ours, theirs):
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.shape == theirs.shape
  assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_the_source_in_torch(case):
  text = source_of(case)
  assert hashlib.sha256(text.encode()).hexdigest() == str(CASES[case]["sha256"]), RERUN
  compile(text, "model.py", "exec")
  assert_close(run(case, False), CASES[case]["logits"])
  if case in TRAINED:
    assert_close(run(case, True), CASES[case]["trained"])


def test_every_network_has_a_source_without_loose_ends(tmp_path):
  """Names that are defined nowhere, or imported and not used, would be flaws of the putting together."""
  for name in bn.list_models():
    text = pytorch_source(name, {}, 10, (64, 64, 3), preprocessing_of((64, 64, 3)))
    (tmp_path / f"{name}.py").write_text(text)
    assert max(map(len, text.splitlines())) <= 110
    tree = ast.parse(text, feature_version=(3, 9))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"IC_CONV", "KCONV", "FLAVOUR"}
    constants = ast.literal_eval(next(n.value for n in tree.body if isinstance(n, ast.Assign)))
    assert constants["model"] == name and constants["num_classes"] == 10
  pytest.importorskip("ruff")
  checked = subprocess.run(
      [sys.executable, "-m", "ruff", "check", "--isolated", "--select=E7,E9,F,I,W", tmp_path],
      capture_output=True, text=True)
  assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_an_option_is_not_leaves_no_trace():
  plain = pytorch_source("resnet18", {}, 0, (32, 32, 3), preprocessing_of((32, 32, 3)))
  for word in ("ICConv", "SqueezeExcite", "head=", "__main__", "argsort", "alpha"):
    assert word not in plain
  ic = pytorch_source("ic_resnet18", {"use_bias": False}, 10, (32, 32, 3), preprocessing_of((32, 32, 3)))
  unit = ic[ic.index("class ICBranch"):ic.index("def conv3x3")]
  assert "inner_bias" in unit and "self.bias" not in unit and "if " not in unit


@pytest.mark.parametrize("name,options,match", [
    ("resnet_18", {}, "did you mean 'resnet18'"),
    ("resnet18", {"widht": 8}, "did you mean 'width'"),
    ("resnet18", {"dtype": "bfloat16"}, "dtype: leave it out"),
    ("resnet18", {"conv": bn.layers.ICConv}, "conv=.*JSON"),
    ("resnet18", {"width": "64), print("}, "width=.*give a whole number"),
    ("resnet18", {"stage_sizes": 2}, "stage_sizes=2: give a tuple"),
    ("ic_resnet18", {"alpha": float("nan")}, "alpha=nan.*JSON"),
    ("efficientnet_b0", {"flavour": "timm"}, "flavour='timm': give one of keras")])
def test_what_cannot_be_written_is_refused_by_name(name, options, match):
  with pytest.raises(ValueError, match=match):
    pytorch_source(name, options, 10, (32, 32, 3), preprocessing_of((32, 32, 3)))


def test_text_does_not_become_code():
  """The second barrier: the first one is that create_model takes no text for a number."""
  assert networks.call("nn.Conv2d", 3, (1, 2), bias=None) == "nn.Conv2d(3, (1, 2), bias=None)"
  for value in ("64), print(", (1, "2"), object()):
    with pytest.raises(ValueError, match="should be a number"):
      networks.call("nn.Conv2d", value)


@pytest.mark.parametrize("change,match", [
    ({"class_names": ["a", "b"]}, "2 class names for 3 classes"),
    ({"image_shape": (32, 32)}, "height, width and channels"),
    ({"image_shape": (32, 32, 1)}, "3 means for images of 1 channels")])
def test_what_does_not_go_together_is_refused(change, match):
  arguments = {"num_classes": 3, "image_shape": (32, 32, 3)} | change
  with pytest.raises(ValueError, match=match):
    pytorch_source("resnet18", {}, **arguments, preprocessing=preprocessing_of((32, 32, 3)))


def test_branches_are_decided():
  source = """
def f(x):
  if A == 1 and not B:
    # kept
    return 1
  elif C:
    if x:
      return C
  else:

    return 3
"""
  def lines(**flags):
    return [line for line in assemble.fold(source, flags).splitlines() if line]

  assert lines(A=1, B=False, C=0) == ["def f(x):", "  # kept", "  return 1"]
  assert lines(A=2, B=False, C=5) == ["def f(x):", "  if x:", "    return C"]
  assert lines(A=2, B=False, C=0) == ["def f(x):", "  return 3"]
  assert lines(D=0) == [line for line in source.splitlines() if line]


def test_torch_stays_in_the_sources():
  """Nothing of the package imports torch but files that nothing of the package imports."""
  decided = {*networks.FLAGS, "CONFIG", "CLASS_NAMES", "GREY", "NAMED", "create"}
  asked = set()
  for path in PACKAGE.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
          [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
      if path.parent == SOURCES:
        asked |= {alias.name for alias in node.names} if names == ["generated"] else set()
        continue
      assert not any(name.split(".")[0] in ("torch", "torchvision") for name in names), path
      assert not any("pytorch.sources" in name for name in names), path
  assert asked == decided
  assert {path.stem for path in SOURCES.glob("*.py")} == {"__init__", *assemble.MODULES}
  code = ("import sys, bionets_jax.weights.pytorch as p; "
          "print([m for m in ('jax', 'flax', 'torch', f'{p.__name__}.sources') if m in sys.modules])")
  assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                        cwd=PACKAGE.parent).stdout.strip() == "[]"


# --- with torch -------------------------------------------------------------------------------------


def written(case, folder, name="weights.safetensors"):
  """The case's source, imported from a folder with its weights."""
  pytest.importorskip("torch")
  arguments = json.loads(str(CASES[case]["arguments"]))
  preprocessing = preprocessing_of(arguments["image_shape"])
  about = {"model": arguments.pop("name"), "preprocessing": vars(preprocessing)} | arguments
  save_native(folder / name, variables_of(case), about)
  (folder / "model.py").write_text(source_of(case), encoding="utf-8")
  spec = importlib.util.spec_from_file_location("generated_model", folder / "model.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("case", CASES)
def test_the_source_runs(case, tmp_path):
  torch = pytest.importorskip("torch")
  net = written(case, tmp_path).load()
  images = torch.from_numpy(golden_images(case, tuple(CASES[case]["image_shape"]))).permute(0, 3, 1, 2)
  with torch.no_grad():
    assert_close(run(case, False), net(images))
  out = net.train()(images)
  assert_close(run(case, True), out.detach())
  out.square().mean().backward()
  assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
  assert all(p.grad.abs().max() > 0 for name, p in net.named_parameters() if name.endswith("weight"))


def test_files_that_do_not_fit_are_refused(tmp_path):
  module = written("ic", tmp_path, "weights.npz")
  module.load()
  with np.load(tmp_path / "weights.npz") as file:
    arrays = dict(file)
  arrays["params/head/scale"] = np.ones(3, np.float32)
  arrays["params/head/bias"] = np.ones(7, np.float32)
  del arrays["batch_stats/stem_bn/mean"]
  np.savez(tmp_path / "weights.npz", **arrays)
  with pytest.raises(ValueError) as error:
    module.load()
  assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
      "missing: batch_stats/stem_bn/mean (8,)",
      "misshapen: params/head/bias is (7,) here, (5,) in the network",
      "left over: params/head/scale (3,)"]


@pytest.mark.parametrize("case,mode", [("fp", "RGB"), ("pyramid", "L")])
def test_images_are_prepared_as_ours(case, mode, tmp_path):
  from PIL import Image

  from bionets_jax.data.transforms import CenterCrop, Resize

  torch = pytest.importorskip("torch")
  module = written(case, tmp_path)
  prep = preprocessing_of(json.loads(str(CASES[case]["arguments"]))["image_shape"])
  random = np.random.RandomState(0)
  pictures = [random.randint(0, 256, (37, 52, 3), np.uint8), random.randint(0, 256, (61, 33, 3), np.uint8)]
  pictures = [Image.fromarray(p).convert(mode) for p in pictures]
  expected = []
  for picture in pictures:
    pixels = np.asarray(picture).reshape(picture.height, picture.width, -1)
    for step in (Resize(prep.resize, prep.interpolation), CenterCrop(prep.image_size)):
      pixels = step(pixels, None)
    expected.append(pixels)
  expected = np.stack(expected)
  found = module.preprocess(pictures)
  assert found.dtype == torch.float32
  np.testing.assert_allclose(
      found.permute(0, 2, 3, 1).numpy(), (expected / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(module.preprocess(expected), found)
  np.testing.assert_array_equal(module.preprocess(pictures[1]), found[1:])
  with pytest.raises(ValueError, match="expected uint8"):
    module.preprocess(expected.astype(np.float32))


def test_the_command_prints_classes(tmp_path):
  from PIL import Image

  written("fp", tmp_path)
  Image.new("RGB", (20, 30), (255, 0, 0)).save(tmp_path / "red.png")
  command = [sys.executable, tmp_path / "model.py"]
  out = subprocess.run(
      [*command, tmp_path / "red.png"], capture_output=True, text=True, check=True, cwd="/").stdout
  assert out.startswith(str(tmp_path / "red.png")) and "it's" in out and 'a "b"' in out
  assert subprocess.run(command, capture_output=True, text=True).stderr == "usage: python model.py IMAGE...\n"
