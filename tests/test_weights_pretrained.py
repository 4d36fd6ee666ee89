"""Layouts and load_pretrained: round trips, messages, and a real published checkpoint."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import bionets_jax as bn
from bionets_jax.counting import abstract_variables
from bionets_jax.weights import layouts, load_pretrained, to_layout
from bionets_jax.weights.guess import guess_network

NAMES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet20_cifar", "resnet32_cifar")


@functools.cache
def template(name, **options):
  model = bn.create_model(name, **options)
  side = 32 if name.endswith("_cifar") else 64
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))


def layout_of(name):
  return "pytorch_resnet_cifar10" if name.endswith("_cifar") else "torchvision"


def numbered(name):
  """Variables whose every leaf, and every element of it, differs."""
  leaves, tree = jax.tree.flatten(template(name))
  random = np.random.default_rng(0)
  return jax.tree.unflatten(tree, [random.random(x.shape, np.float32) for x in leaves])


def write(tmp_path, name, change=lambda tensors: None):
  tensors = to_layout(numbered(name), layout_of(name))
  change(tensors)
  path = tmp_path / "file.safetensors"
  save_file(tensors, path)
  return path


def error_of(path, name):
  with pytest.raises(ValueError) as error:
    load_pretrained(path, template(name), model_name=name)
  return str(error.value)


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("resnet18", "resnet50", "resnet20_cifar"))
def test_export_and_import_are_inverse(tmp_path, name):
  variables = numbered(name)
  loaded = load_pretrained(write(tmp_path, name), template(name), model_name=name)
  assert jax.tree.structure(loaded.variables) == jax.tree.structure(variables)
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
  assert loaded.layout == layout_of(name)
  assert loaded.path == str(tmp_path / "file.safetensors")
  side = (32, 32) if name.endswith("_cifar") else (224, 256)
  assert (loaded.preprocessing.image_size, loaded.preprocessing.resize) == side
  assert loaded.preprocessing.mean == (0.485, 0.456, 0.406)
  assert loaded.preprocessing.interpolation == "bilinear"


@pytest.mark.parametrize("name", NAMES)
def test_export_has_torchs_keys_and_names_itself(name):
  tree = template(name)
  blank = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), tree)
  tensors = to_layout(blank, layout_of(name))
  norms = sum(key.endswith("running_var") for key in tensors)
  assert len(tensors) == len(jax.tree.leaves(tree)) + norms
  assert guess_network(tensors) == (name, {})
  assert layouts.recognise(tensors).name == layout_of(name)


@pytest.mark.parametrize("name, options", (
    ("resnet101", {"stage_sizes": (3, 8, 36, 3)}),  # ResNet-152
    ("resnet50", {"base_width": 128}),  # Wide ResNet-50-2
    ("resnet18", {"stem": "3x3", "width": 32}),
    ("resnet34", {"stage_sizes": (3, 6, 6, 3), "se_reduction": 16}),
    ("resnet56_cifar", {"stage_sizes": (18, 18, 18)}),  # ResNet-110
    ("resnet20_cifar", {"stage_sizes": (1, 1, 1), "width": 8}),
    ("vgg16", {"stage_sizes": (1, 1, 2, 2, 2), "width": 8, "hidden": (24, 20), "pool": 7}),
))  # fmt: skip
@pytest.mark.parametrize("num_classes", (10, 0))
def test_what_a_file_looks_like_can_be_created(name, options, num_classes):
  tree = abstract_variables(bn.create_model(name, num_classes, **options), (64, 64, 3))
  layout = {"resnet34": "timm_seresnet", "vgg16": "torchvision_vgg"}.get(name, layout_of(name))
  tensors = to_layout(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), tree), layout)
  assert guess_network(tensors) == (name, options)


def test_a_file_without_counts_of_batches_leaves_without(tmp_path):
  """As the published files of pytorch_resnet_cifar10 are."""
  def change(tensors):
    for key in [key for key in tensors if key.endswith("num_batches_tracked")]:
      del tensors[key]

  loaded = load_pretrained(write(tmp_path, "resnet20_cifar", change), template("resnet20_cifar"))
  assert loaded.extras == {}
  back = to_layout(loaded.variables, loaded.layout, loaded.extras)
  assert not any(key.endswith("num_batches_tracked") for key in back) and len(back) == len(
      jax.tree.leaves(loaded.variables))  # fmt: skip


def test_extras_of_no_use_are_errors():
  variables, counter = numbered("resnet20_cifar"), "layer1.0.bn1.num_batches_tracked"
  count = {counter: np.array(7)}
  tensors = to_layout(variables, "pytorch_resnet_cifar10", count)
  assert tensors[counter] == 7 and tensors["bn1.num_batches_tracked"] == 0
  for key in ("layer9.0.bn1.num_batches_tracked", "linear.weight", "extra"):
    with pytest.raises(ValueError, match=f"no use for 1 of them: {key}"):
      to_layout(variables, "pytorch_resnet_cifar10", count | {key: np.zeros(())})


def test_export_axes():
  """A kernel (H, W, in, out) becomes (out, in, H, W), a dense one (out, in)."""
  variables = numbered("resnet20_cifar")
  tensors = to_layout(variables, "pytorch_resnet_cifar10")
  kernel = variables["params"]["stage2_block0"]["conv1"]["kernel"]
  assert kernel.shape == (3, 3, 16, 32)
  assert tensors["layer2.0.conv1.weight"].shape == (32, 16, 3, 3)
  assert tensors["layer2.0.conv1.weight"][5, 7, 1, 2] == kernel[1, 2, 7, 5]
  head = variables["params"]["head"]["kernel"]
  assert tensors["linear.weight"][3, 4] == head[4, 3]
  assert tensors["bn1.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize("dtype", (np.float16, np.float64, ml_dtypes.bfloat16))
def test_any_precision_becomes_float32(tmp_path, dtype):
  def change(tensors):
    tensors.update({k: v.astype(dtype) for k, v in tensors.items() if v.dtype == np.float32})

  path = write(tmp_path, "resnet20_cifar", change)
  loaded = load_pretrained(path, template("resnet20_cifar"))
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {np.dtype(np.float32)}
  expected = numbered("resnet20_cifar")["params"]["head"]["bias"].astype(dtype)
  np.testing.assert_array_equal(loaded.variables["params"]["head"]["bias"], expected)


def test_loaded_arrays_can_be_changed(tmp_path):
  loaded = load_pretrained(write(tmp_path, "resnet20_cifar"), template("resnet20_cifar"))
  loaded.variables["params"]["head"]["bias"][0] = 1


# --- what does not fit ----------------------------------------------------------------------------


def test_another_depth_is_recognised(tmp_path):
  message = error_of(write(tmp_path, "resnet34"), "resnet18")
  assert "does not fit resnet18" in message
  assert "this file looks like resnet34" in message
  # resnet34 has 8 more basic blocks, of 10 tensors each without the counters.
  assert "left over in the file (80)" in message and "... and 68 more" in message
  assert "layer1.2.conv1.weight" in message

  message = error_of(write(tmp_path, "resnet20_cifar"), "resnet32_cifar")
  assert "this file looks like resnet20_cifar" in message
  assert "missing in the file (60)" in message
  assert "params/stage1_block3/conv1/kernel (layer1.3.conv1.weight)" in message


def test_another_family_is_recognised(tmp_path):
  message = error_of(write(tmp_path, "resnet20_cifar"), "resnet18")
  assert "pytorch_resnet_cifar10" in message and "this file looks like resnet20_cifar" in message


def test_single_differences_are_named(tmp_path):
  def change(tensors):
    del tensors["layer1.0.bn1.running_var"]
    tensors["extra.weight"] = np.zeros(3, np.float32)
    tensors["linear.weight"] = np.zeros((100, 64), np.float32)
    tensors["linear.bias"] = np.zeros(100, np.float32)

  message = error_of(write(tmp_path, "resnet20_cifar", change), "resnet20_cifar")
  assert "looks like" not in message
  assert "batch_stats/stage1_block0/bn1/var (layer1.0.bn1.running_var)" in message
  assert "left over in the file (1):\n    extra.weight" in message
  assert "params/head/kernel: the model has (64, 10), the file (64, 100)" in message
  assert "misshapen (2)" in message


def test_the_number_of_classes_comes_first(tmp_path):
  path = write(tmp_path, "resnet20_cifar")

  def first_line(path, num_classes):
    with pytest.raises(ValueError) as error:
      load_pretrained(path, template("resnet20_cifar", num_classes=num_classes), model_name="resnet20_cifar")
    return str(error.value).splitlines()[0]

  start = f"{path} (pytorch_resnet_cifar10 layout): the file has "
  assert first_line(path, 100) == start + "10 classes, the model 100; create the model with num_classes=10"
  assert first_line(path, 0).startswith(
      start + "a head for 10 classes, the model none; create the model with num_classes=10. ")

  def behead(tensors):
    del tensors["linear.weight"], tensors["linear.bias"]

  headless = write(tmp_path, "resnet20_cifar", behead)
  assert first_line(headless, 10) == (
      start + "no head, the model one for 10 classes; create the model with num_classes=0")
  loaded = load_pretrained(headless, template("resnet20_cifar", num_classes=0))
  assert "head" not in loaded.variables["params"] and loaded.layout == "pytorch_resnet_cifar10"


def test_other_classes_of_another_network(tmp_path):
  path = write(tmp_path, "resnet34")
  with pytest.raises(ValueError) as error:
    load_pretrained(path, template("resnet18", num_classes=10), model_name="resnet18")
  lines = str(error.value).splitlines()
  assert lines[0].endswith("does not fit resnet18:") and lines[1] == "  this file looks like resnet34"
  assert lines[2] == "  the file has 1000 classes, the model 10; create the model with num_classes=1000"


def test_unknown_layout_names_those_known(tmp_path):
  path = tmp_path / "file.safetensors"
  save_file({"encoder.weight": np.zeros(3, np.float32)}, path)
  message = error_of(path, "resnet18")
  assert "encoder.weight" in message
  assert "torchvision" in message and "pytorch_resnet_cifar10" in message


@pytest.mark.parametrize(
    "value, message",
    (
        (np.full(10, np.nan, np.float32), "linear.bias holds NaN"),
        (np.zeros(10, np.int64), "linear.bias has dtype int64"),
    ),
)
def test_unusable_values_are_errors(tmp_path, value, message):
  path = write(tmp_path, "resnet20_cifar", lambda tensors: tensors.update({"linear.bias": value}))
  assert message in error_of(path, "resnet20_cifar")


def test_a_template_without_shapes_is_an_error(tmp_path):
  path = write(tmp_path, "resnet20_cifar")
  for bad in ({}, {"params": {"head": {"bias": None}}}):
    with pytest.raises(ValueError, match="template: expected"):
      load_pretrained(path, bad)


def test_ic_networks_have_no_place_in_torchs_layout():
  blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape), template("ic_resnet20_cifar"))
  with pytest.raises(ValueError, match=r"no place for .*stage1_block0/conv1/"):
    to_layout(blank, "pytorch_resnet_cifar10")
  with pytest.raises(ValueError, match="known: torchvision, pytorch_resnet_cifar10"):
    to_layout(blank, "torch")


# --- a published checkpoint -----------------------------------------------------------------------


def directory(variable):
  folder = os.environ.get(variable)
  if not folder:
    pytest.skip(f"set {variable} to run this test")
  return pathlib.Path(folder)


@functools.cache
def published():
  path = directory("BIONETS_TEST_WEIGHTS") / "resnet20-12fca82f.th"
  loaded = load_pretrained(path, template("resnet20_cifar"), model_name="resnet20_cifar")
  assert loaded.layout == "pytorch_resnet_cifar10"
  model = bn.create_model("resnet20_cifar")
  return loaded, jax.jit(functools.partial(model.apply, endpoints=True))


def test_published_resnet20_logits():
  folder = directory("BIONETS_TEST_FIXTURES")
  loaded, forward = published()
  with np.load(folder / "fpnets_resnet20_fixture.npz") as golden:
    logits, found = forward(loaded.variables, golden["input_nchw"].transpose(0, 2, 3, 1))
    scale = np.abs(golden["logits"]).max()
    assert np.abs(logits - golden["logits"]).max() < 1e-4 * scale
    for i in (1, 2, 3):
      mean = found[f"stage{i}"].mean((1, 2))
      np.testing.assert_allclose(mean, golden[f"layer{i}"], rtol=1e-4, atol=1e-4)


def test_published_resnet20_accuracy():
  """81.03 % of a JPEG copy of the 10,000 test images, as PyTorch with PIL's decoder finds."""
  import io

  import PIL.Image
  import tensorflow_datasets as tfds

  data = directory("BIONETS_TEST_DATA")
  loaded, forward = published()
  source = tfds.data_source(
      "cifar10", data_dir=data, split="test", decoders={"image": tfds.decode.SkipDecoding()}
  )
  images = np.stack(
      [np.asarray(PIL.Image.open(io.BytesIO(row["image"])).convert("RGB")) for row in source]
  )
  labels = np.array([row["label"] for row in source])
  assert images.shape == (10_000, 32, 32, 3)
  mean, std = np.array(loaded.preprocessing.mean), np.array(loaded.preprocessing.std)
  correct = 0
  for start in range(0, len(images), 1000):
    batch = ((images[start : start + 1000] / 255 - mean) / std).astype(np.float32)
    logits, _ = forward(loaded.variables, batch)
    correct += int((logits.argmax(-1) == labels[start : start + 1000]).sum())
  assert correct == 8103


def test_negative_variances_are_refused(tmp_path):
  model = bn.create_model("resnet20_cifar", stage_sizes=(1, 1, 1), width=4)
  template = abstract_variables(model, (32, 32, 3))
  tensors = to_layout(jax.tree.map(lambda a: np.ones(a.shape, np.float32), template), "pytorch_resnet_cifar10")
  tensors["bn1.running_var"][2] = -0.5
  save_file(tensors, tmp_path / "w.safetensors")
  with pytest.raises(ValueError, match="bn1.running_var holds negative variances"):
    load_pretrained(tmp_path / "w.safetensors", template)
