"""Keras' EfficientNets, read from every kind of file that Keras 2 and 3 write, and written for both.

The references are files and logits of the libraries themselves (fixtures/make_keras_weights_fixtures.py).
BIONETS_TEST_SLOW=1 compares the names and shapes of all published sizes.
"""

import functools
import io
import os
import sys
import zlib

import h5py
import jax
import numpy as np
import pytest
from keras_files import FILES, FIXTURES, error_of, unpacker

import bionets_jax as bn
from bionets_jax.counting import abstract_variables
from bionets_jax.weights import layouts, load_pretrained, read_tensors
from bionets_jax.weights.guess import guess_network
from bionets_jax.weights.keras_file import write_keras_weights
from bionets_jax.weights.keras_names import name_layers
from bionets_jax.weights.layouts import to_layout
from bionets_jax.weights.preprocessing import normalize

sys.path.insert(0, str(FIXTURES))
from make_keras_weights_fixtures import CLASSES, golden_pictures, golden_weight  # noqa: E402

SMALL = {"width": 0.05, "depth": 0.3}


@functools.cache
def golden():
  with np.load(FIXTURES / "keras_weights.npz") as file:
    return dict(file)


@pytest.fixture(scope="module")
def path_of(tmp_path_factory):
  return unpacker(tmp_path_factory.mktemp("keras"))


@functools.cache
def network(classes, **options):
  model = bn.create_model("efficientnet_b0", classes, **{"flavour": "tf"} | SMALL | options)
  return model, abstract_variables(model, (64, 64, 3))


def load(path, classes=CLASSES, **options):
  model, template = network(classes, **options)
  return load_pretrained(path, template, model=model, model_name="efficientnet_b0"), model


# --- what the files mean ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_holds_the_same(path_of, name):
  tensors = read_tensors(path_of(name))
  assert len(tensors) == 162
  for key, value in tensors.items():
    strict = key != "normalization/count"  # an int32 where Keras runs on JAX
    np.testing.assert_array_equal(value, golden_weight(key, value.shape), strict=strict, err_msg=key)
  # In and out again: every tensor to the bit, the normalisation of the input too.
  loaded, _ = load(path_of(name))
  assert loaded.layout == "keras_efficientnet"
  back = to_layout(loaded.variables, loaded.layout, loaded.extras)
  assert back.keys() == tensors.keys()
  for key, value in tensors.items():
    np.testing.assert_array_equal(back[key], value, strict=True, err_msg=key)


@pytest.mark.parametrize("case, modes", [("odd", ("", "train/")), ("any", ("",))])
def test_logits_equal_the_librarys(path_of, case, modes):
  """'any' is built for any size of image, and so pads in another way."""
  flavour = {"odd": "tf", "any": "keras"}[case]
  loaded, model = load(path_of("keras3.keras"), flavour=flavour, dropout=0.0, drop_connect=0.0)
  pictures = golden_pictures(tuple(golden()[f"{case}/image_shape"]))
  images = normalize(pictures, loaded.preprocessing.mean, loaded.preprocessing.std)
  found = {}
  for mode in modes:
    run = jax.jit(functools.partial(
        model.apply, train=bool(mode), mutable=["batch_stats"], endpoints=["pre_logits"]))
    (logits, ends), state = run(loaded.variables, images)
    norm = state["batch_stats"]["top_bn"]
    found |= {f"{mode}logits": logits}
    found |= {"train/mean": norm["mean"], "train/var": norm["var"]} if mode else {}
    found |= {"features": ends["pre_logits"]} if case == "any" else {}
  for key, value in found.items():
    theirs = golden()[f"{case}/{key}"]
    assert value.shape == theirs.shape
    assert np.abs(value - theirs).max() < 1e-4 * np.abs(theirs).max(), key


def test_a_written_file_is_as_keras_writes_it(path_of, tmp_path):
  """Keras goes by the order of layers and of their weights; both loaders look for these attributes."""
  def described(path):
    with h5py.File(path) as file:
      names = [str(name) for name in file.attrs["layer_names"].astype(str)]
      weights = {name: [str(one) for one in np.array(file[name].attrs["weight_names"]).astype(str)]
                 for name in names}
      arrays = {(name, one): file[name][one][()] for name in names for one in weights[name]}
      return {name: found for name, found in weights.items() if found}, arrays, dict(file.attrs)

  write_keras_weights(tmp_path / "file.h5", read_tensors(path_of("keras2.h5")))
  assert os.listdir(tmp_path) == ["file.h5"]
  weights, arrays, attributes = described(tmp_path / "file.h5")
  theirs, their_arrays, their_attributes = described(path_of("keras2.h5"))
  plain = [(layer.replace("_1", ""), [one.replace("normalization_1", "normalization") for one in found])
           for layer, found in theirs.items()]
  assert list(weights.items()) == plain
  for (layer, one), value in their_arrays.items():
    ours = arrays[layer.replace("_1", ""), one.replace("normalization_1", "normalization")]
    np.testing.assert_array_equal(ours, value, strict=True)
  assert int(str(their_attributes["keras_version"])[0]) == int(attributes["keras_version"][:1]) == 2


def test_a_written_file_needs_the_whole_network(path_of, tmp_path):
  tensors = read_tensors(path_of("keras2.h5"))
  path = tmp_path / "file.h5"
  without = {key: value for key, value in tensors.items() if not key.startswith("normalization")}
  assert "lacks 3, such as normalization/count, normalization/mean" in error_of(
      write_keras_weights, path, without)
  assert "has besides 1, such as fc.weight" in error_of(
      write_keras_weights, path, tensors | {"fc.weight": np.zeros(1)})
  assert "not *.weights.h5" in error_of(write_keras_weights, tmp_path / "file.weights.h5", tensors)
  assert os.listdir(tmp_path) == []


def test_files_without_a_head(path_of, tmp_path):
  tensors = {key: value for key, value in read_tensors(path_of("keras3.weights.h5")).items()
             if not key.startswith("predictions")}
  write_keras_weights(tmp_path / "notop.h5", tensors)
  loaded, _ = load(tmp_path / "notop.h5", classes=0)
  assert "head" not in loaded.variables["params"]
  whole, _ = load(path_of("keras3.weights.h5"))
  np.testing.assert_array_equal(loaded.variables["params"]["top_conv"]["kernel"],
                                whole.variables["params"]["top_conv"]["kernel"])
  message = error_of(load, tmp_path / "notop.h5")
  assert "params/head/kernel (predictions/kernel)" in message and "num_classes=0" in message
  assert "left over in the file (2):\n    predictions/" in error_of(load, path_of("keras3.keras"), classes=0)


@pytest.mark.parametrize("size", range(8 if os.environ.get("BIONETS_TEST_SLOW") else 3))
def test_names_and_shapes_of_the_published_sizes(size):
  name, layout = f"efficientnet_b{size}", layouts.find_layout("keras_efficientnet")
  tree = abstract_variables(bn.create_model(name), (64, 64, 3))
  shapes = {path: leaf.shape for path, leaf in layouts.flatten(tree).items()}
  theirs = {place.key: jax.ShapeDtypeStruct([shapes[path][i] for i in np.argsort(place.axes)], np.float32)
            for path, place in layouts.slots(layout, shapes).items()}
  extras = {"normalization/mean": (3,), "normalization/variance": (3,), "normalization/count": ()}
  lines = [f"{key} {tuple(leaf.shape)}" for key, leaf in theirs.items()]
  lines += [f"{key} {shape}" for key, shape in extras.items()]
  assert zlib.crc32("\n".join(sorted(lines)).encode()) == golden()[f"sizes/b{size}"]
  assert layouts.recognise(theirs) is layout
  assert guess_network(theirs) == (name, {})


def test_layers_are_named_only_where_they_fit(path_of, tmp_path):
  """Classes and numbers alone name an EfficientNet's layers, if every shape is one of an EfficientNet."""
  numbered, counts, kinds = {}, {}, {
      "predictions": "dense", "normalization": "normalization", "dwconv": "depthwise_conv2d"}
  tensors = read_tensors(path_of("keras2.weights.h5"))
  for key, value in tensors.items():
    layer, leaf = key.split("/")
    kind = kinds.get(layer.split("_")[-1], "batch_normalization" if layer.endswith("bn") else "conv2d")
    known = counts.setdefault(kind, {})
    number = known.setdefault(layer, len(known))
    numbered[f"{kind}_{number}/{leaf}" if number else f"{kind}/{leaf}"] = value
  named = name_layers(numbered)
  assert named.keys() == tensors.keys() and all(named[key] is value for key, value in tensors.items())
  for key, shape in (("depthwise_conv2d_2/kernel", (3, 3, 48, 1)), ("conv2d_4/kernel", (1, 1, 48, 2)),
                     ("dense/kernel", (8, 7))):
    other = numbered | {key: np.zeros(shape, np.float32)}
    assert name_layers(other) is other
  for key in ("conv2d_2/bias", "batch_normalization_1/gamma", "depthwise_conv2d_7/kernel",
              "conv2d_32/kernel"):
    other = {one: value for one, value in numbered.items() if one != key}
    assert name_layers(other) is other
  # Not named, and so no network of ours.
  with h5py.File(path_of("keras2.weights.h5")) as file, h5py.File(tmp_path / "other.weights.h5", "w") as out:
    file.copy("layers", out)
    del out["layers/conv2d_2/vars/1"]
  assert "conv2d_4/kernel" in read_tensors(tmp_path / "other.weights.h5")
  assert "without names of layers" in error_of(load, tmp_path / "other.weights.h5")


def test_bfloat16(tmp_path):
  """h5py knows none: Keras lets it write pairs of bytes."""
  import ml_dtypes

  value = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)
  buffer = io.BytesIO()
  with h5py.File(buffer, "w") as file:
    file["layers/dense/vars/0"] = value.view("V2")
    file["layers/dense/vars/0"].attrs["dtype"] = "bfloat16"
  (tmp_path / "file.weights.h5").write_bytes(buffer.getvalue())
  found = read_tensors(tmp_path / "file.weights.h5")["dense/kernel"]
  np.testing.assert_array_equal(found, value, strict=True)


# --- how the images are prepared ------------------------------------------------------------------------


def with_normalization(path_of, path, **changed):
  tensors = read_tensors(path_of("keras2.h5"))
  changed = {f"normalization/{key}": np.float32(value) for key, value in changed.items()}
  write_keras_weights(path, tensors | changed)
  return path


@pytest.mark.parametrize("mean, variance, expected", [
    # keras.applications' ImageNet weights, behind whose normalisation stands a layer without weights
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
    ((0, 0, 0), (1, 1, 1), ((0, 0, 0), (1, 1, 1))),  # weights=None, and never adapted
    ((0.5, -0.25, 2), (0.25, 4, 0.0625), ((0.5, -0.25, 2), (0.5, 2, 0.25))),
])  # fmt: skip
def test_mean_and_deviation_are_the_files(path_of, tmp_path, mean, variance, expected):
  loaded, _ = load(with_normalization(path_of, tmp_path / "file.h5", mean=mean, variance=variance))
  assert (loaded.preprocessing.mean, loaded.preprocessing.std) == expected
  # And out: what a network that Keras builds with weights=None takes for the same.
  extras = layouts.find_layout(loaded.layout).write_inputs(loaded.preprocessing)
  np.testing.assert_allclose(extras["normalization/variance"], np.square(expected[1]), rtol=1e-6)
  np.testing.assert_allclose(extras["normalization/mean"], expected[0], rtol=1e-6)
  assert extras["normalization/count"].dtype == np.int64


@pytest.mark.parametrize("changed, message", [
    (dict(variance=(0, 1, 1)), "no statistics of images"),
    (dict(mean=(np.nan, 1, 1)), "no statistics of images"),
    (dict(mean=(123.7, 116.3, 103.5)), "0..255"),
])  # fmt: skip
def test_a_normalisation_that_cannot_be_is_an_error(path_of, tmp_path, changed, message):
  path = with_normalization(path_of, tmp_path / "file.h5", **changed)
  assert message in (text := error_of(load, path)) and str(path) in text


def test_published_sizes_are_kerass():
  flavours = layouts.find_layout("keras_efficientnet").flavours
  for flavour in flavours.values():
    assert [one.image_size for one in flavour.inputs.values()] == golden()["image_sizes"].tolist()


def test_the_flavour_must_be_one_of_kerass(path_of):
  message = error_of(load, path_of("keras3.keras"), flavour="torchvision")
  assert "'tf'" in message and "'keras'" in message and "flavour='torchvision'" in message
  message = error_of(load, path_of("keras3.keras"), norm_epsilon=1e-5)
  assert "epsilon 0.001" in message
