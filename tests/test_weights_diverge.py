"""The first layer that differs: networks and references with one thing wrong, which has to be named.

The references are torchvision's and timm's own networks, recorded by examples/record_activations.py
(fixtures/make_activation_fixtures.py).
"""

import functools
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

import bionets_jax as bn
from bionets_jax.counting import abstract_variables
from bionets_jax.weights import layouts
from bionets_jax.weights.diverge import compare_activations, read_activations

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from golden_weights import golden_layer  # noqa: E402

# fixture: layout, name and options of our network
CASES = {
    "torchvision": ("torchvision", "resnet18", {"stage_sizes": (1, 1, 1, 1)}),
    "timm": ("timm_efficientnet", "efficientnet_b0", {"width": 0.25, "depth": 0.5, "flavour": "tf"}),
}
STEM = ("conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2")


@functools.cache
def recorded(case):
  return read_activations(FIXTURES / f"activations_{case}.npz")


def reference(case="torchvision", *, only=None, **changes):
  """The recorded layers, or those named, with some replaced."""
  kept = {key: value for key, value in recorded(case).items()
          if only is None or key in (*only, "images", "data_format")}
  return kept | changes


@functools.cache
def network(case, name="", **options):
  """Our network and its golden variables; zeros in what the layout has no place for."""
  layout, plain, its_options = CASES[case]
  model = bn.create_model(name or plain, 7, **its_options | options)
  shapes = layouts.flatten(abstract_variables(model, (32, 32, 3)))
  places = layouts.slots(layouts.find_layout(layout), {path: leaf.shape for path, leaf in shapes.items()})
  leaves = {}
  for path, leaf in shapes.items():
    place = places[path]
    if place is None:
      leaves[path] = np.zeros(leaf.shape, np.float32)
    else:
      theirs = tuple(leaf.shape[i] for i in np.argsort(place.axes))
      leaves[path] = place.from_foreign(golden_layer(place.key, theirs, 1.0))
  return model, leaves


def compare(case="torchvision", found=None, *, name="", change=None, **options):
  model, leaves = network(case, name, **options)
  leaves = leaves | (change(leaves) if change else {})
  return compare_activations(
      model, layouts.unflatten(leaves), reference(case) if found is None else found, CASES[case][0])


# --- what agrees ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case, layers", [("torchvision", 25), ("timm", 27)])
def test_the_same_network_agrees_in_every_layer(case, layers):
  result = compare(case)
  assert result.first is None and not result.hint and not result.only_theirs
  # What the fixture leaves out.
  assert {name[:6] for name in result.only_ours} == (
      {"stage3", "stage4", "stage5", "stage6"} if case == "timm" else set())
  assert len(result.rows) == layers and max(row.difference for row in result.rows) < 1e-5
  # Norms of timm's EfficientNet have their activation inside, and are recorded before it.
  assert not any(row.note for row in result.rows)
  assert f"all {layers} layers agree to 0.0001" in str(result)
  order = [row.ours for row in result.rows]
  assert order[:3] == ["stem_conv", "stem_bn", {"torchvision": "stage1_block0/conv1",
                                               "timm": "stage1_block0/depthwise_conv"}[case]]
  assert order[-1] == "head"


def test_an_ic_network_with_alpha_0_agrees_with_the_network_it_grew_from():
  assert compare(name="ic_resnet18", alpha=0.0, found=reference(only=STEM)).first is None


def test_what_holds_the_activation_too_is_compared_behind_it():
  """PyTorch's in-place ReLU writes over what a norm gave; Keras' layers have theirs inside."""
  relu, x = np.maximum(recorded("torchvision")["bn1"], 0), recorded("torchvision")["layer1.0.conv1"]
  swish, sigmoid = x / (1 + np.exp(-x)), 1 / (1 + np.exp(-recorded("torchvision")["layer1.0.conv2"]))
  changes = {"bn1": relu, "layer1.0.conv1": swish, "layer1.0.conv2": sigmoid}
  result = compare(found=reference(only=STEM, **changes))
  assert result.first is None
  assert {row.theirs: row.note for row in result.rows if row.note} == {
      "bn1": "after its ReLU", "layer1.0.conv1": "after its swish", "layer1.0.conv2": "after its sigmoid"}


def test_softmax_of_a_head():
  logits = recorded("torchvision")["fc"].astype(np.float64)
  found = reference(only=("fc",), fc=np.float32(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)))
  (row,) = compare(found=found).rows
  assert row.difference < 1e-5 and row.note == "after its softmax"


# --- what is wrong is named -----------------------------------------------------------------------


def test_epsilon():
  found = reference("timm", only=("conv_stem", "bn1", "blocks.0.0.conv_dw"))
  result = compare("timm", norm_epsilon=1e-5, found=found)
  assert result.first.ours == "stem_bn" and result.first.theirs == "bn1"
  assert result.hint == "it agrees with epsilon=0.001 in place of 1e-05"
  assert "first layer that differs is stem_bn (bn1 in the reference), by " in str(result)


def test_padding():
  """Of the strided stem: other values, or another shape."""
  stem = reference("timm", only=("conv_stem", "bn1"))
  result = compare("timm", flavour="torchvision", norm_epsilon=1e-3, found=stem)
  assert result.first.ours == "stem_conv" and "padding on both sides (PyTorch)" in result.hint
  taller = np.zeros((1, 8, 7, 6), np.float32)
  result = compare("timm", found=stem | {"conv_stem": taller})
  assert result.first.ours == "stem_conv" and result.first.difference == float("inf")
  assert result.first.note == "theirs is 1x7x6x8" and result.first.shape == (1, 6, 6, 8)
  assert "(1, 6, 6, 8), in the reference (1, 7, 6, 8): its strides or padding differ" in result.hint
  assert "by inf" not in str(result)
  json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize("axes", [(0, 1, 3, 2), (1, 0, 2, 3)])
def test_a_transposed_kernel(axes):
  path = ("params", "stage1_block0", "conv2", "kernel")
  result = compare(found=reference(only=STEM), change=lambda leaves: {path: leaves[path].transpose(axes)})
  assert (result.first.ours, result.first.theirs) == ("stage1_block0/conv2", "layer1.0.conv2")
  assert "its kernel (order of the axes" in result.hint and "stage1_block0/bn1" in result.hint
  assert [row.theirs for row in result.rows if row.difference < 1e-5] == list(STEM[:4])


def test_reversed_channels():
  result = compare(found=reference(only=STEM, images=recorded("torchvision")["images"][:, ::-1]))
  assert result.first.ours == "stem_conv" and "BGR for RGB" in result.hint


def test_images_that_were_not_normalised():
  result = compare(found=reference(only=STEM, images=recorded("torchvision")["images"] * 255))
  assert result.first.ours == "stem_conv" and "normalised as it expects" in result.hint


def test_alpha():
  result = compare(name="ic_resnet18", alpha=0.5, found=reference(only=STEM))
  assert result.first.ours == "stage1_block0/conv1" and result.first.kind == "ICConv"
  assert "its alpha" in result.hint


def test_statistics_of_another_layer_and_of_the_batch():
  path = ("batch_stats", "stage1_block0", "bn1", "mean")
  result = compare(found=reference(only=STEM), change=lambda leaves: {path: leaves[path][::-1]})
  assert result.first.ours == "stage1_block0/bn1" and "running statistics" in result.hint

  _, leaves = network("torchvision")
  x = recorded("torchvision")["layer1.0.conv1"]
  mean, var = (getattr(x, what)((0, 2, 3), keepdims=True) for what in ("mean", "var"))
  scale, bias = (leaves["params", "stage1_block0", "bn1", key][:, None, None] for key in ("scale", "bias"))
  trained = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
  result = compare(found=reference(only=STEM, **{"layer1.0.bn1": trained}))
  assert result.first.ours == "stage1_block0/bn1" and "record it in evaluation mode" in result.hint


def test_what_is_not_finite_differs():
  broken = recorded("torchvision")["layer1.0.bn1"].copy()
  broken[0, 3, 1, 0] = np.nan
  result = compare(found=reference(only=STEM, **{"layer1.0.bn1": broken}))
  assert result.first.ours == "stage1_block0/bn1" and result.first.note == "not finite in theirs"
  path = ("batch_stats", "stem_bn", "var")
  result = compare(found=reference(only=STEM), change=lambda leaves: {path: -leaves[path]})
  assert result.first.ours == "stem_bn" and result.first.note == "not finite in ours"
  assert json.loads(json.dumps(result.to_json(), allow_nan=False))["first"]["difference"] == "inf"


def test_a_head_that_flattens_otherwise():
  path = ("params", "head", "kernel")
  found = reference(only=("layer4.0.bn2", "fc"))
  result = compare(found=found, change=lambda leaves: {path: leaves[path][::-1]})
  assert result.first.ours == "head" and "flattened" in result.hint


def test_layers_that_only_one_has_are_listed():
  found = reference(only=STEM, **{"layer1.1.conv1": np.zeros((1, 64, 3, 2), np.float32)})
  result = compare(found=found)
  assert result.only_theirs == ("layer1.1.conv1",)
  assert result.only_ours[0] == "stage2_block0/conv1" and result.only_ours[-1] == "head"
  text = str(result)
  assert "only in the reference: layer1.1.conv1" in text
  assert "not in the reference: stage2_block0/conv1" in text


# --- our own names, and files ---------------------------------------------------------------------


def test_our_own_names_with_the_axes_of_either():
  model, leaves = network("torchvision")
  rename = {"conv1": "stem_conv", "layer1.0.bn1": "stage1_block0/bn1"}
  own = {new: recorded("torchvision")[old].transpose(0, 2, 3, 1) for old, new in rename.items()}
  own["images"] = recorded("torchvision")["images"].transpose(0, 2, 3, 1)
  torchs = {key.replace("/", "."): value.transpose(0, 3, 1, 2) for key, value in own.items()}
  for found in (own, torchs | {"data_format": np.array("NCHW")}):
    result = compare_activations(model, layouts.unflatten(leaves), found, "bionets_jax")
    assert [row.ours for row in result.rows] == ["stem_conv", "stage1_block0/bn1"] and result.first is None
    assert not result.only_theirs and "head" in result.only_ours


def test_what_cannot_be_compared_is_refused(tmp_path):
  for changes, message in (
      ({"images": np.zeros((1, 3, 8, 8), np.uint8)}, "got uint8 of shape"),
      ({"images": np.zeros((8, 8), np.float32)}, r"got float32 of shape \(8, 8\)"),
      ({"images": np.zeros((1, 8, 8, 3), np.float32)}, "do not fit ResNet"),
      ({"data_format": np.array("CHWN")}, "expected one of NCHW, NHWC"),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=message):
      compare(found=reference(only=STEM, **changes))
  with pytest.raises(ValueError, match=r"none of the 1 layers of the reference \(stem\) .* \(.*bn1, "):
    compare(found=reference(only=(), stem=np.zeros((1, 2), np.float32)))
  with pytest.raises(ValueError, match="unknown weight layout 'caffe'"):
    compare_activations(*network("torchvision"), reference(only=STEM), "caffe")

  with pytest.raises(FileNotFoundError):
    read_activations(tmp_path / "none.npz")
  (tmp_path / "text.npz").write_text("no arrays")
  with pytest.raises(ValueError, match="no .npz file of arrays"):
    read_activations(tmp_path / "text.npz")
  np.savez(tmp_path / "empty.npz", conv1=np.zeros(3))
  with pytest.raises(ValueError, match="has no array 'images'"):
    read_activations(tmp_path / "empty.npz")
  np.savez(tmp_path / "objects.npz", images=np.array([{}], object))
  with pytest.raises(ValueError, match="no .npz file of arrays"):
    read_activations(tmp_path / "objects.npz")


def test_tolerance():
  model, leaves = network("torchvision")
  tree = jax.tree.map(np.asarray, layouts.unflatten(leaves))
  result = compare_activations(model, tree, reference(only=STEM), "torchvision", tolerance=1e-12)
  assert result.first is not None and result.tolerance == 1e-12
