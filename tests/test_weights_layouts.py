"""torchvision's and timm's EfficientNets, SE-ResNets and ResNeXts, read from files with their keys.

The references are the libraries' own networks (fixtures/make_layout_fixtures.py): names and shapes of
their state dicts, and the logits of narrow ones with golden weights. BIONETS_TEST_SLOW=1 compares the
names and shapes of all published sizes, not only those of the configs.
"""

import functools
import os
import pathlib
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import bionets_jax as bn
from bionets_jax.counting import abstract_variables
from bionets_jax.evaluate import command_line
from bionets_jax.models.common import adaptive_mean_pool
from bionets_jax.training.teacher import check_inheritance, load_teacher
from bionets_jax.weights import layouts, load_pretrained, to_layout
from bionets_jax.weights.guess import guess_network

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from golden_weights import golden_images, golden_layer  # noqa: E402

SMALL = {"width": 0.25, "depth": 0.5}
RESNEXT = {"stage_sizes": (2, 1, 1, 1), "groups": 8, "base_width": 4}
# fixture: layout, name and options of our network
CASES = {
    "torchvision_efficientnet": (
        "torchvision_efficientnet", "efficientnet_b0", SMALL | {"flavour": "torchvision"}),
    "timm_efficientnet_tf": ("timm_efficientnet", "efficientnet_b0", SMALL | {"flavour": "tf"}),
    "timm_efficientnet": ("timm_efficientnet", "efficientnet_b0", SMALL | {"flavour": "torchvision"}),
    "torchvision_resnext": ("torchvision", "resnet50", RESNEXT),
    "timm_seresnext": ("timm_seresnet", "resnet50", RESNEXT | {"se_reduction": 16}),
    "torchvision_resnet": ("torchvision", "resnet18", {"stage_sizes": (1, 2, 1, 1)}),
    "torchvision_wide_resnet": ("torchvision", "resnet50", {"stage_sizes": (1, 1, 1, 1), "base_width": 24}),
    "timm_resnet": ("torchvision", "resnet50", {"stage_sizes": (1, 1, 1, 1), "base_width": 16}),
    "torchvision_vgg": (
        "torchvision_vgg", "vgg16", {"stage_sizes": (1, 2, 1, 2, 1), "width": 8, "hidden": (24, 20), "pool": 7}),
    "timm_mobilenetv1": ("timm_mobilenetv1", "mobilenet", {"stem_stride": 2, "act": "relu6", "width": 8}),
}  # fmt: skip
# Options without which training is random.
STILL = {"efficientnet_b0": {"dropout": 0.0, "drop_connect": 0.0}, "vgg16": {"dropout": 0.0}}
BLANK = np.zeros((), np.float32)


@functools.cache
def golden():
  with np.load(FIXTURES / "layouts.npz") as file:
    return dict(file)


@functools.cache
def tensors_of(case):
  """The golden state dict of a fixture, each norm with a count of batches of its own."""
  file = golden()
  rows = zip(*(file[f"{case}/{what}"] for what in ("keys", "shapes", "gains")), strict=True)
  return {
      str(key): np.array(zlib.crc32(key.encode()) % 1000, np.int64) if key.endswith("num_batches_tracked")
      else golden_layer(str(key), tuple(int(n) for n in shape if n), gain) for key, shape, gain in rows}


@pytest.fixture(scope="module")
def file_of(tmp_path_factory):
  """case -> path of a file that holds its golden state dict."""
  @functools.cache
  def write(case):
    path = tmp_path_factory.mktemp("weights") / f"{case}.safetensors"
    save_file(tensors_of(case), path)
    return path

  return write


def network(name, **options):
  model = bn.create_model(name, 7, **options)
  return model, abstract_variables(model, (64, 64, 3))


def load(path, name, **options):
  model, template = network(name, **options)
  return load_pretrained(path, template, model=model, model_name=name)


def error_of(*args, **options):
  with pytest.raises(ValueError) as error:
    load(*args, **options)
  return str(error.value)


# --- what the files mean ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_librarys(case, file_of):
  layout, name, options = CASES[case]
  options = options | STILL.get(name, {})
  loaded = load(file_of(case), name, **options)
  assert loaded.layout == layout
  images = golden_images(case, tuple(golden()[f"{case}/image_shape"]))
  model = bn.create_model(name, 7, **options)

  @jax.jit
  def run(variables):
    rngs = {"dropout": jax.random.key(0)}
    return [model.apply(variables, images, train=train, mutable=["batch_stats"], rngs=rngs)[0]
            for train in (False, True)]

  for ours, mode in zip(run(loaded.variables), ("logits", "train_logits"), strict=True):
    theirs = golden()[f"{case}/{mode}"]
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max(), mode
  # And out again: every key to the bit, counts of batches too.
  back = to_layout(loaded.variables, layout, loaded.extras)
  assert back.keys() == tensors_of(case).keys()
  for key, value in tensors_of(case).items():
    np.testing.assert_array_equal(back[key], value, strict=True, err_msg=key)


def test_adaptive_pooling_is_pytorchs():
  images = golden_images("adaptive", (2, 9, 16, 3))
  np.testing.assert_allclose(adaptive_mean_pool(images, 7), golden()["adaptive"], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(adaptive_mean_pool(images[:, :7, :7], 7), images[:, :7, :7])


SIZES = {f"timm/b{i}": ("timm_efficientnet", f"efficientnet_b{i}", {}) for i in range(8)}
SIZES |= {f"torchvision/b{i}": ("torchvision_efficientnet", f"efficientnet_b{i}", {}) for i in range(8)}
SIZES |= {
    "timm/seresnet50": ("timm_seresnet", "resnet50", {"se_reduction": 16}),
    "timm/seresnext50_32x4d": (
        "timm_seresnet", "resnet50", {"groups": 32, "base_width": 4, "se_reduction": 16}),
    "torchvision/resnext50_32x4d": ("torchvision", "resnet50", {"groups": 32, "base_width": 4}),
    "torchvision/resnet152": ("torchvision", "resnet101", {"stage_sizes": (3, 8, 36, 3)}),
    "torchvision/resnext101_64x4d": ("torchvision", "resnet101", {"groups": 64, "base_width": 4}),
    "torchvision/wide_resnet50_2": ("torchvision", "resnet50", {"base_width": 128}),
    "timm/resnet26": ("torchvision", "resnet50", {"stage_sizes": (2, 2, 2, 2)}),
    "timm/mobilenetv1_100": ("timm_mobilenetv1", "mobilenet", {"stem_stride": 2, "act": "relu6"}),
    "timm/mobilenetv1_125": ("timm_mobilenetv1", "mobilenet", {"stem_stride": 2, "act": "relu6", "width": 40}),
}  # fmt: skip
DENSE = {"hidden": (4096, 4096), "pool": 7}
SIZES |= {f"torchvision/{vgg}": ("torchvision_vgg", name, DENSE | sizes) for vgg, name, sizes in (
    ("vgg11_bn", "vgg16", {"stage_sizes": (1, 1, 2, 2, 2)}),
    ("vgg13_bn", "vgg16", {"stage_sizes": (2, 2, 2, 2, 2)}),
    ("vgg16_bn", "vgg16", {}), ("vgg19_bn", "vgg19", {}))}  # fmt: skip
# As long to trace as all others together.
LARGE = {f"{library}/b{i}" for library in ("timm", "torchvision") for i in range(3, 8)} | {
    "torchvision/resnet152", "torchvision/resnext101_64x4d"}


@pytest.mark.parametrize("size", [
    size for size in SIZES if size not in LARGE or os.environ.get("BIONETS_TEST_SLOW")])
def test_names_and_shapes_of_the_published_sizes(size):
  layout, name, options = SIZES[size]
  layout = layouts.find_layout(layout)
  tree = tree_of(name) if name.startswith("efficientnet") else abstract_variables(
      bn.create_model(name, 1000, **options), (64, 64, 3))
  leaves, theirs = layouts.flatten(tree), {}
  for path, slot in layouts.slots(layout, {path: leaf.shape for path, leaf in leaves.items()}).items():
    shape = leaves[path].shape
    theirs[slot.key] = jax.ShapeDtypeStruct([shape[i] for i in np.argsort(slot.axes)], np.float32)
  lines = sorted(f"{key} {tuple(leaf.shape)}" for key, leaf in theirs.items())
  assert zlib.crc32("\n".join(lines).encode()) == golden()[f"sizes/{size}"]
  assert layouts.recognise(theirs) == layout
  assert guess_network(theirs) == (name, options)


@functools.cache
def tree_of(name):  # of an EfficientNet, the same for both libraries
  return abstract_variables(bn.create_model(name), (64, 64, 3))


# --- preprocessing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case, name, options, size, resize", [
    # IMAGENET1K_V1's transforms in torchvision; input_size and crop_pct of timm's pretrained_cfg.
    ("torchvision", "efficientnet_b2", {"flavour": "torchvision"}, 288, 288),
    ("timm", "efficientnet_b2", {"flavour": "tf"}, 260, 292),
    ("timm", "efficientnet_b2", {"flavour": "torchvision"}, 288, 288),
])  # fmt: skip
def test_preprocessing_is_that_of_the_size(tmp_path, case, name, options, size, resize):
  model = bn.create_model(name, **options)
  tree = jax.tree.map(lambda leaf: np.broadcast_to(BLANK, leaf.shape), tree_of(name))
  save_file(to_layout(tree, f"{case}_efficientnet"), tmp_path / "file.safetensors")
  found = load_pretrained(tmp_path / "file.safetensors", tree, model=model).preprocessing
  assert (found.image_size, found.resize, found.interpolation) == (size, resize, "bicubic")
  assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_preprocessing_of_vgg_and_mobilenet(file_of):
  def inputs(case):
    return load(file_of(case), *CASES[case][1:2], **CASES[case][2]).preprocessing

  size, resize, mean, std = golden()["mobilenetv1"]
  found = inputs("timm_mobilenetv1")
  assert (found.image_size, found.resize, found.interpolation) == (size, resize, "bicubic")
  assert (found.mean, found.std) == ((mean,) * 3, (std,) * 3)
  assert inputs("torchvision_vgg") == inputs("torchvision_resnet")


def test_a_file_of_the_right_names_and_absurd_shapes_is_no_network():
  keys = ["conv1.weight", "fc.weight", "layer1.0.se.fc1.weight", "layer1.0.conv3.weight"]
  keys += [f"layer{stage}.{block}.conv{i}.weight" for stage, blocks in enumerate((3, 4, 6, 3), start=1)
           for block in range(blocks) for i in (1, 2)]
  for shape in ((), (64,), (64, 0, 1, 1), (64, 128, 3, 3)):
    assert guess_network(dict.fromkeys(keys, np.zeros(shape, np.int8))) is None


# Ours by the option, and the fixture's name for it.
WHOSE = [("torchvision_efficientnet", "torchvision", "torchvision"), ("timm_efficientnet", "tf", "timm_tf"),
         ("timm_efficientnet", "torchvision", "timm")]


@pytest.mark.parametrize("layout, flavour, whose", WHOSE)
def test_epsilons_and_inputs_of_all_sizes_are_the_librarys(layout, flavour, whose):
  tables, file = layouts.find_layout(layout).flavours[flavour], golden()
  names = [f"efficientnet_b{i}" for i in range(8)]
  epsilons = [tables.other_epsilons.get(name, tables.epsilon) for name in names]
  np.testing.assert_array_equal(np.float32(epsilons), file[f"epsilon/{whose}"])
  assert list(tables.inputs) == names[:len(file[f"inputs/{whose}"])]
  inputs = [(one.image_size, one.resize) for one in tables.inputs.values()]
  np.testing.assert_array_equal(inputs, file[f"inputs/{whose}"])
  # The flavour alone gives this epsilon, but for those that need norm_epsilon=1e-5.
  own = [bn.create_model(name, flavour=flavour).norm_options()[0] for name in names]
  assert [i for i in range(8) if own[i] != epsilons[i]] == ([5, 6, 7] if whose == "timm" else [])


# --- what does not fit ----------------------------------------------------------------------------------


def test_the_flavour_must_be_the_files(file_of):
  message = error_of(file_of("torchvision_efficientnet"), "efficientnet_b0", **SMALL, flavour="tf")
  assert "the flavour 'torchvision' (torchvision's); efficientnet_b0 has flavour='tf'" in message
  assert message.endswith("Create it with flavour='torchvision'")

  message = error_of(file_of("timm_efficientnet"), "efficientnet_b0", **SMALL)
  assert "'tf' (timm's tf_efficientnet_*) or 'torchvision' (timm's own efficientnet_*)" in message
  assert "do not tell apart" in message and "has flavour='keras'" in message
  assert message.endswith("Create it with flavour='tf' or flavour='torchvision'")


def test_an_efficientnet_is_not_loaded_without_its_module(file_of):
  _, template = network("efficientnet_b0", **SMALL)
  with pytest.raises(ValueError, match=r"Pass the module, created with flavour='torchvision', as .*model="):
    load_pretrained(file_of("torchvision_efficientnet"), template)


def test_the_epsilon_must_be_the_files(file_of):
  message = error_of(
      file_of("timm_efficientnet"), "efficientnet_b0", **SMALL, flavour="torchvision", norm_epsilon=1e-3)
  assert "have epsilon 1e-05; those of efficientnet_b0 have 0.001" in message
  assert message.endswith("Create it with norm_epsilon=1e-05")


def test_stride_and_activation_must_be_the_files(file_of):
  wanted = "stem_stride=2, act='relu6'"
  message = error_of(file_of("timm_mobilenetv1"), "mobilenet", width=8, stem_stride=2)
  assert f"its network has {wanted}; mobilenet has stem_stride=2, act='relu'. Create it with {wanted}" in message
  _, template = network("mobilenet", width=8)
  with pytest.raises(ValueError, match="Pass the module, created with stem_stride=2"):
    load_pretrained(file_of("timm_mobilenetv1"), template)


@pytest.mark.parametrize("change", ({"hidden": ()}, {"hidden": (24,)}, {"hidden": (24, 20, 20)}, {"pool": 14}))
def test_torchvision_has_no_other_vgg(change):
  model, template = network("vgg16", **CASES["torchvision_vgg"][2] | change)
  variables = jax.tree.map(lambda leaf: np.broadcast_to(BLANK, leaf.shape), template)
  with pytest.raises(ValueError, match="torchvision_vgg layout has no place for .*params/head/kernel"):
    to_layout(variables, "torchvision_vgg")


def test_a_vgg_for_small_images_is_told_what_the_file_is(file_of):
  message = error_of(file_of("torchvision_vgg"), "vgg16")
  assert "looks like vgg16 with stage_sizes=(1, 2, 1, 2, 1), width=8, hidden=(24, 20), pool=7" in message


def test_differences_are_named(file_of):
  message = error_of(file_of("timm_seresnext"), "resnet50", **RESNEXT)
  assert "left over in the file (20)" in message and "layer1.0.se.fc1.weight" in message  # 5 blocks of 4
  message = error_of(file_of("timm_efficientnet"), "efficientnet_b0", width=0.25, depth=0.3, flavour="tf")
  assert "left over in the file" in message and "    blocks.3.1.bn1." in message
  message = error_of(file_of("torchvision_resnext"), "resnet50", **RESNEXT | {"groups": 4, "base_width": 8})
  assert "stage1_block0/conv2/kernel: the model has (3, 3, 8, 32), the file (3, 3, 4, 32)" in message


REASONS = {
    "torchvision/vgg11": "VGG without batch norm", "torchvision/mobilenet_v2": "MobileNetV2. Ours is version 1",
    "torchvision/mobilenet_v3_small": "MobileNetV3", "torchvision/efficientnet_v2_s": "EfficientNetV2",
    "timm/vgg11_bn": "timm's VGG", "timm/legacy_seresnet18": "legacy SE-ResNet",
    "timm/resnet18d": "stem is three 3x3", "timm/resnest14d": "stem is three 3x3",
    "timm/ecaresnetlight": "an ECA-ResNet", "timm/res2net50_14w_8s": "a Res2Net", "timm/resnet50_gn": "group norm",
    "timm/mobilenetv1_100h": "mobilenetv1_100h", "timm/mobilenetv2_050": "MobileNetV2",
    "timm/mobilenetv3_small_050": "MobileNetV3", "timm/efficientnet_lite0": "EfficientNet-Lite",
    "timm/efficientnet_es": "EfficientNet-EdgeTPU", "timm/efficientnet_b0_gn": "with group norm"}  # fmt: skip


@pytest.mark.parametrize("network", REASONS)
def test_networks_that_are_not_ours_are_refused_with_the_reason(network, tmp_path):
  keys = str(golden()[f"refused/{network}"]).split("\n")
  save_file(dict.fromkeys(keys, np.zeros(3, np.float32)), tmp_path / "file.safetensors")
  assert REASONS[network] in error_of(tmp_path / "file.safetensors", "resnet18")
  assert guess_network(dict.fromkeys(keys, np.zeros((64, 64, 7, 7), np.int8))) is None


def test_every_refused_network_of_the_libraries_is_tried():
  assert {key.removeprefix("refused/") for key in golden() if key.startswith("refused/")} == REASONS.keys()


# --- as a teacher, and evaluated ------------------------------------------------------------------------


def teacher_for(path, student, **options):
  return load_teacher(
      str(path), student=student, student_options=options, model_name="", num_classes=7,
      image_shape=(64, 64, 3), dtype=jnp.float32)


def test_a_teacher_has_the_students_options(file_of):
  grown = dict(alpha="learned", ic_placement="pair")
  for case in ("torchvision_efficientnet", "timm_efficientnet_tf"):
    options = CASES[case][2]
    teacher = teacher_for(file_of(case), "ic_efficientnet_b0", **grown, **options)
    assert (teacher.name, teacher.model.flavour) == ("efficientnet_b0", options["flavour"])
    _, student = network("ic_efficientnet_b0", **grown, **options)
    new = check_inheritance(teacher.variables, student, ("efficientnet_b0", "ic_efficientnet_b0"))
    assert new and all("pair" in path for path in new)
  teacher = teacher_for(file_of("torchvision_resnext"), "ic_resnet50_b", alpha="learned", **RESNEXT)
  assert (teacher.model.groups, teacher.model.base_width) == (8, 4)
  for case, student in (("torchvision_vgg", "ic_vgg16"), ("timm_mobilenetv1", "ic_mobilenet")):
    _, name, options = CASES[case]
    teacher = teacher_for(file_of(case), student, alpha="learned", **options)
    grown = abstract_variables(bn.create_model(student, 7, alpha="learned", **options), (64, 64, 3))
    assert teacher.name == name and check_inheritance(teacher.variables, grown, (name, student))


def test_a_teacher_of_another_flavour_says_which_option_to_give(file_of):
  with pytest.raises(ValueError) as error:
    teacher_for(file_of("torchvision_efficientnet"), "ic_efficientnet_b0", **SMALL, flavour="tf")
  message = str(error.value)
  assert message.startswith("config.teacher.weights: ")
  assert "Create it with flavour='torchvision'" in message
  assert "the student's options here (width=0.25, depth=0.5, flavour='tf')" in message
  assert "--config.model.options.NAME=VALUE" in message


def test_options_of_an_evaluated_network(file_of, capsys):
  path = str(file_of("timm_efficientnet_tf"))
  options = command_line.parse([
      path, "--model=efficientnet_b0", "--model-option=flavour=tf", "--model-option=width=0.25"])
  assert options.model_options == {"flavour": "tf", "width": 0.25}
  for wrong, message in ((["--model=resnet50", "--model-option=groups"], "give NAME=VALUE"),
                         (["--model=resnet50", "--model-option=dtype=float16"], "or --dtype")):
    with pytest.raises(SystemExit):
      command_line.parse([path, *wrong])
    assert message in capsys.readouterr().err
