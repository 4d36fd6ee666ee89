"""CAM and Grad-CAM against PyTorch's gradients and their definitions, and the pictures that are made of them.

The references of PyTorch are float64 answers (fixtures/make_heatmap_fixtures.py).
"""

import functools
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image
from random_networks import random_variables
from safetensors.numpy import save_file

import bionets_jax as bn
from bionets_jax import heatmaps, weights
from bionets_jax.counting import abstract_variables
from bionets_jax.detection.loading import LoadedDetector

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from golden_weights import golden_images, golden_layer  # noqa: E402

with np.load(FIXTURES / "heatmaps.npz") as file:
  GOLDEN = dict(file)
RANDOM = np.random.default_rng(0)
PREPROCESSING = weights.Preprocessing((0.5,) * 3, (0.25,) * 3, image_size=8, resize=8)


def images_of(case):
  return golden_images("heatmaps", tuple(GOLDEN[f"{case}/image_shape"]))


@functools.cache
def ic_network():
  """The fixture's IC network and its variables, which `golden_variables` there makes in the same way."""
  model = bn.create_model("ic_resnet18", 5, stage_sizes=[1, 1], width=8)
  shapes = flatten_dict(abstract_variables(model, images_of("ic").shape[1:]), sep="/")
  names = {path: path.replace("/scale", "/weight").replace("/var", "/running_var") for path in shapes}
  flat = {path: golden_layer(names[path], leaf.shape[::-1], 1).T for path, leaf in shapes.items()}
  return model, unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def torchvision_network(tmp_path_factory):
  """The fixture's network, read from a file with torchvision's keys."""
  rows = zip(*(GOLDEN[f"torchvision/{key}"] for key in ("keys", "shapes", "gains")), strict=True)
  state = {str(key): golden_layer(str(key), tuple(int(n) for n in shape if n), gain) for key, shape, gain in rows}
  path = tmp_path_factory.mktemp("torchvision") / "network.safetensors"
  save_file(state, path)
  return weights.load(path, "resnet18", stage_sizes=(1, 1, 1, 1))


def assert_equals_torch(maps, case, kind):
  want = GOLDEN[f"{case}/{maps.layer}/{kind}"]
  assert maps.values.shape == want.shape and maps.values.dtype == np.float32
  np.testing.assert_allclose(maps.values, want, atol=1e-4 * want.max(), rtol=0)
  np.testing.assert_allclose(maps.logits, GOLDEN[f"{case}/logits"], atol=1e-4 * np.abs(maps.logits).max(), rtol=0)


# The maps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case,layer", [
    key.removesuffix("/given").split("/", 1) for key in GOLDEN if key.endswith("/given")])
def test_grad_cam_equals_torch(request, case, layer):
  if case == "ic":
    model, variables = ic_network()
  else:
    loaded = request.getfixturevalue("torchvision_network")
    model, variables = loaded.model, loaded.variables
  last = layer in ("stage2", "stage4")  # what is taken if none is named
  maps = heatmaps.grad_cam(model, variables, images_of(case), layer=None if last else layer)
  assert maps.layer == layer and maps.classes.tolist() == GOLDEN[f"{case}/logits"].argmax(1).tolist()
  assert_equals_torch(maps, case, "predicted")
  maps = heatmaps.grad_cam(model, variables, images_of(case), layer=None if last else layer, classes=(1, 0))
  assert maps.classes.tolist() == [1, 0]
  assert_equals_torch(maps, case, "given")


def test_cam_is_its_definition():
  model, variables = ic_network()
  images = images_of("ic")
  logits, found = jax.jit(functools.partial(model.apply, endpoints=["stage2"]))(variables, images)
  maps = heatmaps.cam(model, variables, images, classes=[1, 0])
  kernel = variables["params"]["head"]["kernel"].astype(np.float64)
  want = np.einsum("nhwk,kn->nhw", np.asarray(found["stage2"], np.float64), kernel[:, [1, 0]])
  assert (want < 0).any() and (want > 0).any()
  np.testing.assert_allclose(maps.values, np.maximum(want, 0), atol=1e-5 * want.max())
  assert maps.layer == "stage2" and maps.classes.tolist() == [1, 0]
  np.testing.assert_allclose(maps.logits, logits, rtol=1e-5)
  # With s_c = sum_k w_kc mean_ij A_k + b_c every d s_c / d A_k is w_kc / (h w).
  of_gradients = heatmaps.grad_cam(model, variables, images, classes=[1, 0]).values
  np.testing.assert_allclose(of_gradients * want[0].size, maps.values, atol=1e-5 * want.max())


class Squares(nn.Module):
  """s_c = sum_k v[k, c] mean_ij A_k^2 of a 1x1 convolution's maps A: a gradient that is another for each image."""

  @nn.compact
  def __call__(self, x, train=False):
    maps = nn.Conv(4, (1, 1), name="maps")(x)
    return (maps**2).mean((1, 2)) @ self.param("v", nn.initializers.normal(), (4, 3))


def squares():
  images = RANDOM.standard_normal((3, 4, 5, 3)).astype(np.float32)
  model = Squares()
  return model, random_variables(model, (4, 5, 3)), images


def test_each_image_of_a_batch_has_its_own_gradient():
  model, variables, images = squares()
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
  maps = images.astype(np.float64) @ params["maps"]["kernel"][0, 0] + params["maps"]["bias"]
  classes = [2, 0, 1]
  gradient = 2 * maps * params["v"].T[classes][:, None, None] / 20
  want = np.maximum((gradient.mean((1, 2), keepdims=True) * maps).sum(-1), 0)
  found = heatmaps.grad_cam(model, variables, images, layer="maps", classes=classes)
  assert want.max() > 0 and found.layer == "maps"
  np.testing.assert_allclose(found.values, want, atol=1e-5 * want.max())


class Strange(nn.Module):
  """A network of somebody else's: a layer called twice, one whose output nobody uses, and a rematerialised one."""

  end: str = "average"

  @nn.compact
  def __call__(self, x):
    twice = nn.Conv(4, (1, 1), name="twice")
    x = nn.relu(twice(twice(nn.Conv(4, (3, 3), name="first")(x))))
    nn.Conv(2, (1, 1), name="unused")(x)
    x = nn.swish(nn.remat(Inner)(name="around")(x))
    pooled = nn.avg_pool(x, x.shape[1:3]).reshape(len(x), -1)
    if self.end == "flat":
      return nn.Dense(3, name="dense")(x.reshape(len(x), -1))
    if self.end == "squared":
      return nn.Dense(3, name="dense")(pooled**2)
    return (nn.Dense(3, name="dense")(pooled) if self.end == "average" else {"a": pooled} if self.end == "dict"
            else pooled @ jnp.ones((4, 3)))


class Inner(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.relu(nn.Conv(4, (3, 3), name="hidden")(x))


@functools.cache
def strange(end="average"):
  images = np.random.default_rng(1).standard_normal((2, 6, 6, 4)).astype(np.float32)
  model = Strange(end)
  return model, random_variables(model, (6, 6, 4)), images


def test_networks_of_others():
  model, variables, images = strange()
  shapes = {"first": (6, 6, 4), "around": (6, 6, 4)}
  assert heatmaps.layers(model, variables, (6, 6, 4)) == shapes
  # The pool's input is behind an activation, and no module's output.
  by_gradients, by_weights = heatmaps.grad_cam(model, variables, images), heatmaps.cam(model, variables, images)
  assert by_gradients.layer == by_weights.layer == "last map" and by_weights.values.max() > 0
  np.testing.assert_allclose(36 * by_gradients.values, by_weights.values, atol=1e-5)
  assert heatmaps.grad_cam(model, variables, images, layer="around").values.shape == (2, 6, 6)
  twin = bn.transplant(model, bn.layers.ICConv, where="first")
  assert heatmaps.layers(twin, abstract_variables(twin, (6, 6, 4)), (6, 6, 4)) == shapes


@pytest.mark.parametrize("twin", [lambda m: m, lambda m: bn.transplant(m, bn.layers.ICConv, where=".*conv1")])
def test_rematerialised_blocks_have_the_layers_of_others(twin):
  found = []
  for remat in ("", "blocks"):
    model = twin(bn.create_model("resnet20_cifar", 3, stage_sizes=(1, 1), width=4, remat=remat))
    found.append(heatmaps.layers(model, abstract_variables(model, (8, 8, 3)), (8, 8, 3)))
  assert found[0] == found[1] and found[0]["stage2_block0/conv1"] == (4, 4, 8)


@pytest.mark.parametrize("layer,match", [
    ("twice", "'twice' is called 2 times"), ("unused", "logits do not depend on what 'unused' returns"),
    ("around/hidden", "inside of a lifted transformation"), ("dense", r"'dense' gives \(2, 3\), and a heatmap"),
    ("frist", "no layer 'frist'. Did you mean 'first'"), ("", "no layer ''")])
def test_layers_that_have_no_heatmap(layer, match):
  model, variables, images = strange()
  with pytest.raises(ValueError, match=match):
    heatmaps.grad_cam(model, variables, images, layer=layer)


@pytest.mark.parametrize("end,match", [
    ("flat", "no maps of 144 channels"), ("squared", "off its logits by .*no global average pool between them"),
    ("none", "no nn.Dense gives its 3 logits"), ("dict", r"returns {'a': \(2, 4\)}; a heatmap is of one score")])
def test_cam_is_for_networks_that_end_in_a_pool_and_a_dense_layer(end, match):
  with pytest.raises(ValueError, match=match):
    heatmaps.cam(*strange(end))


class Gated(nn.Module):
  """A dense layer inside that has as many outputs as there are classes, and a later name than the last one."""

  @nn.compact
  def __call__(self, x):
    x = x * nn.Dense(x.shape[-1], name="zoom")(x.mean((1, 2)))[:, None, None]
    return nn.Dense(x.shape[-1], name="dense")(x.mean((1, 2)))


def test_cam_takes_the_dense_layer_that_is_called_last():
  images = RANDOM.standard_normal((2, 3, 3, 4)).astype(np.float32)
  params = random_variables(Gated(), (3, 3, 4))["params"]
  gates, last = ((np.asarray(params[name]["kernel"], np.float64), np.asarray(params[name]["bias"], np.float64))
                 for name in ("zoom", "dense"))
  maps = images * (images.mean((1, 2)) @ gates[0] + gates[1])[:, None, None]
  want = np.maximum(maps @ last[0][:, 3], 0)
  found = heatmaps.cam(Gated(), {"params": params}, images, classes=3)
  np.testing.assert_allclose(found.values, want, atol=1e-5 * want.max())


def test_single_pixels_are_no_heatmap():
  model = bn.create_model("vgg16", 3, stage_sizes=(1, 1, 1), width=4)
  variables = random_variables(model, (8, 8, 3))
  images = RANDOM.standard_normal((2, 8, 8, 3)).astype(np.float32)
  with pytest.raises(ValueError, match="no global average pool"):  # but the largest of four
    heatmaps.cam(model, variables, images)
  large = RANDOM.standard_normal((2, 16, 16, 3)).astype(np.float32)
  # Of 8 x 8 pixels stage 3 leaves one.
  assert [heatmaps.grad_cam(model, variables, x).layer for x in (images, large, images)] == ["stage2", "stage3", "stage2"]


@pytest.mark.parametrize("changes,match", [
    (dict(images=np.zeros((2, 6, 6, 4), np.uint8)), r"uint8 \(2, 6, 6, 4\); expected floats"),
    (dict(images=np.zeros((6, 6, 4), np.float32)), "expected floats"), (dict(images=[[1.0]]), "list; expected floats"),
    (dict(images=np.zeros((2, 6, 6, 3), np.float32)), "do not fit Strange"),
    (dict(classes=[1]), r"classes=\[1\]: give a whole number from 0 on, or 2"), (dict(classes=[0, -1]), "from 0 on"),
    (dict(classes=1.5), "whole number"), (dict(classes=3), "no class 3; the network has 3")])
def test_wrong_input_is_named(changes, match):
  model, variables, images = strange()
  with pytest.raises(ValueError, match=match):
    heatmaps.grad_cam(**{"model": model, "variables": variables, "images": images} | changes)


# What is shown ---------------------------------------------------------------------------------


def test_normalised():
  values = 1e-4 * np.array([[[1, 2], [3, 5]], [[0, 0], [0, 0]], [[2, 2], [2, 2]]], np.float32)
  np.testing.assert_allclose(heatmaps.normalised(values), [[[0, 0.25], [0.5, 1]], np.zeros((2, 2)), np.zeros((2, 2))])
  np.testing.assert_allclose(
      heatmaps.normalised(values, "cam"), [[[0.2, 0.4], [0.6, 1]], np.zeros((2, 2)), np.ones((2, 2))])
  for wrong, match in (((values[0],), "expected finite"), ((values * np.nan,), "expected finite"),
                       ((values, "lime"), "method='lime'")):
    with pytest.raises(ValueError, match=match):
      heatmaps.normalised(*wrong)


def test_enlarged_equals_torch():
  small, want = GOLDEN["torchvision/stage4/predicted"][0], GOLDEN["enlarged"]
  np.testing.assert_allclose(heatmaps.enlarged(small, want.shape), want, atol=1e-5 * want.max())
  with pytest.raises(ValueError, match="a size not below it"):
    heatmaps.enlarged(small, (1, 1))


def test_overlay_mixes_the_picture_with_the_colours():
  picture = RANDOM.integers(0, 256, (4, 6, 3), np.uint8)
  heatmap = np.array([[0.0, 1.0], [1.0, 0.0]])
  np.testing.assert_array_equal(heatmaps.overlay(picture, heatmap, 0), picture)
  colours = heatmaps.overlay(picture, heatmap, 1)
  # The ends of viridis, as its authors publish them.
  np.testing.assert_array_equal(colours[[0, -1, 0], [0, -1, -1]], [[68, 1, 84], [68, 1, 84], [253, 231, 37]])
  np.testing.assert_allclose(heatmaps.overlay(picture, heatmap), (picture.astype(float) + colours) / 2, atol=1.01)
  for wrong in ((picture / 255, heatmap), (picture[..., 0], heatmap), (picture, 2 * heatmap), (picture, heatmap, 2)):
    with pytest.raises(ValueError, match="picture|heatmap|opacity"):
      heatmaps.overlay(*wrong)


def make_loaded(**changes):
  model, variables, _ = squares()
  return weights.Loaded(**dict(
      model=model, name="squares", options={}, num_classes=3, variables=variables, preprocessing=PREPROCESSING,
      layout="bionets_jax", source="squares", path="squares.npz", class_names=("a", "b", "c"), image_shape=(8, 8, 3),
      extras={}) | changes)


def photo(height, width):
  return RANDOM.integers(0, 256, (height, width, 3), np.uint8)


def test_a_network_sees_pictures_as_its_run_evaluated_them():
  picture = photo(60, 90)
  pil = Image.fromarray(picture)
  large = np.asarray(pil.resize((48, 32), Image.Resampling.BILINEAR))[4:28, 12:36]
  square = np.asarray(pil.resize((24, 24), Image.Resampling.BICUBIC))
  own = functools.partial(make_loaded, image_shape=(24, 24, 3))
  for text, want in (
      ("resize(32)|center_crop(24)", large), ("resize(32)|ten_crop(24)", large),
      ("affine(15, 0.1, 0.1, 0.2, 0.3)|flip|resize_to(24, bicubic)", square), ("resize_to(24, bicubic)", square),
      # Without a fixed size in it the picture covers the input: 60 x 90 becomes 24 x 36.
      ("", np.asarray(pil.resize((36, 24), Image.Resampling.BILINEAR))[:, 6:30])):
    np.testing.assert_array_equal(heatmaps.seen(own(eval_transform=text), picture), want, err_msg=text)
  foreign = weights.Preprocessing((0.5,) * 3, (0.5,) * 3, image_size=40, resize=48, interpolation="bicubic")
  theirs = make_loaded(image_shape=(40, 40, 3), preprocessing=foreign)
  want = np.asarray(pil.resize((72, 48), Image.Resampling.BICUBIC))[4:44, 16:56]
  np.testing.assert_array_equal(heatmaps.seen(theirs, picture), want)
  grey = heatmaps.seen(make_loaded(image_shape=(60, 90, 1)), picture)
  np.testing.assert_allclose(grey, np.repeat((picture @ [0.299, 0.587, 0.114])[..., None], 3, -1), atol=1)
  same = photo(24, 24)
  np.testing.assert_array_equal(heatmaps.seen(own(eval_transform=""), same), same)


def test_heatmaps_of_pictures_are_those_of_what_the_network_sees():
  loaded = make_loaded()
  pictures = [photo(8, 8) for _ in range(18)]  # more than are computed at a time
  floats = ((np.stack(pictures) / 255 - 0.5) / 0.25).astype(np.float32)
  want = heatmaps.grad_cam(loaded.model, loaded.variables, floats)
  found = heatmaps.of_pictures(loaded, pictures)
  np.testing.assert_allclose(found.values, want.values, atol=1e-5 * want.values.max())
  np.testing.assert_array_equal(found.classes, want.classes)
  compiled = []

  def hear(event, seconds, **kwargs):
    compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(hear)
  given = heatmaps.of_pictures(loaded, pictures, classes=np.arange(18) % 3)
  jax.monitoring.unregister_event_duration_listener(hear)
  assert "/jax/core/compile/backend_compile_duration" not in compiled
  assert given.classes.tolist() == [0, 1, 2] * 6
  np.testing.assert_allclose(
      given.values[17], heatmaps.of_pictures(loaded, pictures[17:], classes=2).values[0], atol=1e-5)


@pytest.mark.parametrize("loaded,arguments,match", [
    ({}, ([],), "none were given"), ({}, ([np.zeros((8, 8, 3))],), r"a picture is float64 \(8, 8, 3\)"),
    ({}, ([np.zeros((8, 8), np.uint8)],), r"uint8 \(8, 8\); expected uint8 \(H, W, 3\)"),
    ({}, ([photo(8, 8)], "lime"), "method='lime'"), ({}, ([photo(8, 8)], "cam", "maps"), "CAM is of the last maps"),
    ({}, ([photo(8, 8)], "grad-cam", None, [1, 2]), r"classes=\[1, 2\]: give one for all, or 1 of them"),
    ({}, ([photo(8, 8)], "cam"), "no nn.Dense gives"), ({"num_classes": 0}, ([photo(8, 8)],), "has no head"),
    ({"image_shape": (8, 8, 4)}, ([photo(8, 8)],), "images of 4 channels"),
    ({"eval_transform": "rseize(3)"}, ([photo(8, 8)],), "damaged weight file .*Did you mean 'resize'"),
    ({"eval_transform": 3}, ([photo(8, 8)],), "damaged weight file")])
def test_what_no_heatmap_of_pictures_can_be_of(loaded, arguments, match):
  with pytest.raises(ValueError, match=match):
    heatmaps.of_pictures(make_loaded(**loaded), *arguments)


def test_detectors_are_refused():
  detector = LoadedDetector(None, "retinanet", {}, 2, {}, ("a", "b"), PREPROCESSING, None, "a file")
  with pytest.raises(ValueError, match="a detector gives many boxes theirs"):
    heatmaps.of_pictures(detector, [photo(8, 8)])
