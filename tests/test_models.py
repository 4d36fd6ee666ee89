"""Networks: counts printed in the papers, names, endpoints, inheritance, and what an import costs."""

import ast
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import bionets_jax as bn
from bionets_jax.counting import count_layers

PACKAGE = pathlib.Path(bn.__file__).parent

# IC networks, Table 1 and 3: millions of parameters and GFLOPs as printed; the exact values beside them
# were recomputed with ptflops on PyTorch models (see also torchvision's documentation for the plain ones).
TABLE = {
    "resnet18": (11_689_512, 1_814_073_344, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408, 3_663_761_408),
    "resnet50": (25_557_032, 4_089_184_256, 4_089_184_256),
    "resnet101": (44_549_160, 7_801_405_440, 7_801_405_440),
    "ic_resnet18": (12_917_800, 2_000_326_656, 2_013_083_904),
    "ic_resnet34": (24_155_688, 4_055_535_616, 4_079_582_464),
    "ic_resnet50": (26_822_056, 4_294_705_152, 4_307_123_712),
    "ic_resnet50_b": (31_159_080, 5_232_394_240, 5_244_812_800),
    "ic_resnet50_c": (36_219_176, 6_054_477_824, 6_066_896_384),
}
PRINTED_MILLIONS = {"ic_resnet18": 12.9, "ic_resnet34": 24.2, "ic_resnet50": 26.8,
                    "ic_resnet50_b": 31.2, "ic_resnet50_c": 36.2, "resnet18": 11.7, "resnet34": 21.8,
                    "resnet50": 25.6}


@pytest.mark.parametrize("name", TABLE)
def test_counts_of_the_imagenet_networks(name):
  parameters, macs, with_box = TABLE[name]
  model = bn.create_model(name)
  assert bn.count_parameters(model) == parameters
  layers = count_layers(model, 224)
  assert sum(layer.macs for layer in layers) == macs
  assert sum(layer.macs + layer.box_adds for layer in layers) == with_box
  if name in PRINTED_MILLIONS:
    assert round(parameters / 1e6, 1) == PRINTED_MILLIONS[name]


def test_count_macs_is_the_sum_over_layers():
  model = bn.create_model("ic_resnet18")
  layers = count_layers(model, (64, 64, 3))
  assert bn.count_macs(model, 64) == sum(layer.macs for layer in layers)
  assert bn.count_macs(model, (64, 64, 3), include_box=True) == sum(
      layer.macs + layer.box_adds for layer in layers)
  assert [layer.path for layer in layers][:3] == ["stem_conv", "stage1_block0/conv1", "stage1_block0/conv2"]


@pytest.mark.parametrize("name,literal,with_alpha", [
    ("ic_resnet18", 12_910_120, 12_917_800 + 16), ("ic_resnet34", 24_140_584, 24_155_688 + 32),
    ("ic_resnet50", 26_814_504, 26_822_056 + 16), ("ic_resnet50_b", 31_143_976, 31_159_080 + 32),
    ("ic_resnet50_c", 36_173_864, 36_219_176 + 48)])
def test_counts_without_biases_and_with_learned_alpha(name, literal, with_alpha):
  assert bn.count_parameters(bn.create_model(name, use_bias=False, use_inner_bias=False)) == literal
  assert bn.count_parameters(bn.create_model(name, alpha="learned")) == with_alpha


@pytest.mark.parametrize("depth,parameters,mega_macs", [
    (20, 269_722, 40.6), (32, 464_154, 68.9), (44, 658_586, 97.2), (56, 853_018, None)])
def test_counts_of_the_cifar_networks(depth, parameters, mega_macs):
  model = bn.create_model(f"resnet{depth}_cifar")
  assert bn.count_parameters(model, 32) == parameters
  if mega_macs:
    assert bn.count_macs(model, 32) / 1e6 == pytest.approx(mega_macs, abs=.05)
  # W' adds C C' to each 3x3 convolution of the blocks, the biases 2 C'.
  widths = [(16, 16)] * (2 * (depth - 2) // 6)
  for a, b in ((16, 32), (32, 64)):
    widths += [(a, b)] + [(b, b)] * (2 * (depth - 2) // 6 - 1)
  extra = sum(i * o + 2 * o for i, o in widths)
  assert bn.count_parameters(bn.create_model(f"ic_resnet{depth}_cifar"), 32) == parameters + extra


@pytest.fixture(scope="module")
def small():
  model = bn.create_model("ic_resnet20_cifar", alpha="learned")
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  return model, variables


def test_endpoints_by_name(small):
  model, variables = small
  x = jnp.ones((1, 16, 16, 3))
  logits, found = model.apply(variables, x, endpoints=("stage2",))
  assert list(found) == ["stage2"] and found["stage2"].shape == (1, 8, 8, 32)
  headless = bn.create_model("ic_resnet20_cifar", 0, alpha="learned")
  features = {k: {n: v for n, v in t.items() if n != "head"} for k, t in variables.items()}
  _, all_found = model.apply(variables, x, endpoints=True)
  np.testing.assert_array_equal(headless.apply(features, x), all_found["pre_logits"])
  with pytest.raises(ValueError, match="no endpoint 'stage9'; this network has stem"):
    model.apply(variables, x, endpoints="stage9")


@pytest.mark.parametrize("options", [dict(alpha="learned"), dict(alpha="scheduled"), dict(alpha=0.0)])
def test_at_alpha_zero_the_twin_is_its_base_bit_for_bit(small, options):
  plain = bn.create_model("resnet20_cifar")
  x = jax.random.normal(jax.random.key(3), (4, 16, 16, 3))
  base = jax.jit(plain.init)(jax.random.key(1), x)
  twin = bn.create_model("ic_resnet20_cifar", **options)
  variables = jax.jit(twin.init)(jax.random.key(2), x)
  grown = unflatten_dict(flatten_dict(variables) | flatten_dict(base))
  np.testing.assert_array_equal(jax.jit(twin.apply)(grown, x), jax.jit(plain.apply)(base, x))
  assert np.abs(jax.jit(twin.apply)(variables, x) - jax.jit(plain.apply)(base, x)).max() > 1e-3


def test_a_unit_from_outside_fits_a_socket():
  import functools

  import flax.linen as nn
  model = bn.create_model("resnet18", 5, conv=functools.partial(nn.Conv, use_bias=True))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
  assert "bias" in shapes["params"]["stage1_block0"]["conv1"]
  mixed = bn.create_model("resnet50", reduce=functools.partial(bn.layers.ICConv, alpha="learned"))
  assert bn.count_parameters(mixed) > bn.count_parameters(bn.create_model("resnet50"))


@pytest.mark.parametrize("call,match", [
    (lambda: bn.create_model("resnet_50"), "did you mean 'resnet50'"),
    (lambda: bn.create_model("resnet50", alpha=1), "did you mean 'ic_resnet50'"),
    (lambda: bn.create_model("ic_resnet50", aplha=1), "did you mean 'alpha'"),
    (lambda: bn.create_model("resnet50", widht=1), "did you mean 'width'"),
    (lambda: bn.create_model("ic_resnet18", conv=bn.layers.Conv, alpha="learned"), "keeps none")])
def test_mistakes_get_the_nearest_names(call, match):
  with pytest.raises(ValueError, match=match):
    call()


def test_bfloat16_keeps_parameters_and_logits_in_float32():
  model = bn.create_model("ic_resnet20_cifar", dtype=jnp.bfloat16)
  x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  logits, found = jax.eval_shape(lambda v, x: model.apply(v, x, endpoints=True), variables, x)
  assert logits.dtype == jnp.float32 and found["stage1"].dtype == jnp.bfloat16


# Imports -------------------------------------------------------------------------------------

FLOORS = {  # each may import only those named, and itself
    "ops": set(), "layers": {"ops"}, "models": {"ops", "layers"}, "losses": set(),
    "counting": {"layers"}, "surgery": {"layers"}, "data": {"terminal"}, "terminal": set(),
    "late": set(),
    "detection": {"layers", "models", "weights", "data", "counting", "terminal", "late"},
    "weights": {"models", "layers", "counting", "terminal", "late"},
    "training": {"ops", "layers", "models", "losses", "counting", "surgery", "weights", "data", "detection"},
    "report": {"ops", "layers", "models", "losses", "counting", "weights", "data", "training"},
    "evaluate": {"ops", "losses", "models", "counting", "weights", "data", "training", "report", "terminal"},
    "heatmaps": {"ops", "counting", "weights", "data", "detection", "report", "terminal", "late"},
    "figures": {"ops", "layers", "weights", "data", "report", "terminal"},
    "page": {"data", "detection", "weights", "training", "report", "evaluate", "heatmaps", "figures", "terminal"},
    "report/__main__": {"report", "page", "terminal"},  # a command line, which stands above what it runs
    "experiments": {"training", "report"}, "selfcheck": {"training", "data"},
    "config_files": {"training"},
    "command_line": {"training", "experiments", "config_files", "terminal"},
}
LIGHT = {"jax", "flax", "optax", "numpy"}


def imports(path: pathlib.Path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      if node.module == "bionets_jax":
        yield from (f"bionets_jax.{alias.name}" for alias in node.names)
      else:
        yield node.module


def floor_of(path: pathlib.Path) -> str:
  path = path.relative_to(PACKAGE)
  module = path.with_suffix("").as_posix()
  return module if module in FLOORS else path.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_floor_imports_from_above(path):
  floor = floor_of(path)
  if floor == "__init__":
    return
  for name in imports(path):
    top, _, rest = name.partition(".")
    if top == "bionets_jax":
      target = rest.split(".")[0] or "bionets_jax"
      package_itself = target == "bionets_jax" and floor in ("training", "evaluate", "page", "selfcheck")
      assert target in FLOORS[floor] | {floor} or package_itself, f"{floor} imports {name}"
    elif floor in ("ops", "layers", "models", "losses", "surgery"):
      assert top in LIGHT or top in sys.stdlib_module_names, f"{floor} imports {name}"


def test_layers_and_models_need_only_jax_and_flax():
  """In a process of its own: what is loaded beyond importing flax, and how long it takes."""
  code = """
import sys, time
import flax.linen, optax
before = set(sys.modules)
start = time.perf_counter()
import bionets_jax.layers, bionets_jax.models, bionets_jax as bn
bn.create_model('ic_resnet50')
print(time.perf_counter() - start)
print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))
"""
  seconds, loaded = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, check=True,
      cwd=PACKAGE.parent).stdout.splitlines()
  assert loaded == "['bionets_jax']"
  assert float(seconds) < 1.0  # flax itself takes more than that


def test_importing_the_package_loads_nothing():
  code = "import sys, bionets_jax; print('jax' in sys.modules, 'numpy' in sys.modules)"
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                       cwd=PACKAGE.parent).stdout
  assert out.split() == ["False", "False"]
  with pytest.raises(AttributeError, match="create_model"):
    bn.no_such_thing  # noqa: B018
