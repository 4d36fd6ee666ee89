"""VGG and MobileNet: counts, endpoints, sizes, and what their sockets take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from bionets_jax.counting import abstract_variables, count_layers, count_parameters
from bionets_jax.layers import GroupedPointwise, ICBranch, ICConv
from bionets_jax.models.mobilenet import MobileNet
from bionets_jax.models.vgg import VGG

SIZES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
no_biases = dict(use_bias=False, use_inner_bias=False)
tiny_vgg = functools.partial(VGG, (2, 1, 1), 5, width=8)
tiny_mobilenet = functools.partial(MobileNet, (1, 2), 5, width=8)


@pytest.mark.parametrize("depth,plain,adjust", [(16, 14_728_266, 1_634_304), (19, 20_040_522, 2_224_128)])
def test_counts_of_vgg(depth, plain, adjust):
  assert count_parameters(VGG(SIZES[depth]), 32) == plain
  # The convolutions' own biases are b2, so of the IC biases only b1 is new.
  twin = VGG(SIZES[depth], conv=functools.partial(ICConv, use_inner_bias=False))
  assert count_parameters(twin, 32) == plain + adjust
  layers = [layer for layer in count_layers(VGG(SIZES[depth], conv=ICConv), 32) if layer.kind == "ICConv"]
  assert len(layers) == depth - 4  # all 3x3 but the first; VGG's three dense layers are one here
  biases = sum(layer.output_shape[-1] for layer in layers)
  assert count_parameters(VGG(SIZES[depth], conv=ICConv), 32) == plain + adjust + biases
  # What a unit is told by its own partial holds.
  bare = VGG(SIZES[depth], conv=functools.partial(ICConv, **no_biases))
  assert count_parameters(bare, 32) == plain + adjust - biases


@pytest.mark.parametrize("model,parameters", [
    # As torchvision gives them for vgg11_bn and vgg16_bn, timm for mobilenetv1_100 and _125.
    (VGG((1, 1, 2, 2, 2), 1000, hidden=(4096, 4096), pool=7), 132_868_840),
    (VGG(SIZES[16], 1000, hidden=(4096, 4096), pool=7), 138_365_992),
    (MobileNet(num_classes=1000, stem_stride=2, act="relu6"), 4_231_976),
    (MobileNet(num_classes=1000, stem_stride=2, act="relu6", width=40), 6_270_840)])
def test_counts_of_the_networks_for_imagenet(model, parameters):
  assert count_parameters(model, 64) == parameters


@pytest.mark.parametrize("model", [
    VGG(hidden=(0,)), VGG(pool=0), VGG(dropout=1.0), MobileNet(act="swish"), MobileNet(stem_stride=0)])
def test_options_that_are_none_are_errors(model):
  with pytest.raises(ValueError, match="give"):
    abstract_variables(model, (64, 64, 3))


def test_dropout_of_hidden_layers_is_of_training_alone():
  model, x = VGG((1,), 5, width=8, hidden=(64, 32), pool=2), jnp.ones((2, 5, 6, 3))
  variables = jax.jit(model.init)(jax.random.key(0), x)
  apply = jax.jit(functools.partial(model.apply, mutable=["batch_stats"]), static_argnames="train")
  first, other = (apply(variables, x, train=True, rngs={"dropout": jax.random.key(i)})[0] for i in (1, 2))
  assert np.abs(first - other).max() > 1e-3
  np.testing.assert_array_equal(apply(variables, x)[0], apply(variables, x)[0])


@pytest.mark.parametrize("sockets,parameters", [
    ({}, 3_217_226),
    (dict(pair=functools.partial(ICBranch, **no_biases)), 6_356_810),
    (dict(pair=ICBranch), 6_368_714),
    (dict(conv=functools.partial(ICConv, **no_biases)), 3_222_186)])
def test_counts_of_mobilenet(sockets, parameters):
  assert count_parameters(MobileNet(**sockets), 32) == parameters


def test_a_mobilenet_pair_sums_the_input_of_the_depthwise_convolution():
  layers = {layer.path: layer for layer in count_layers(MobileNet(pair=ICBranch), 32)}
  pair, pointwise = layers["stage2_block0/pair"], layers["stage2_block0/pointwise_conv"]
  assert pair.kind == "ICBranch" and pair.macs == pointwise.macs == 16 * 16 * 64 * 128
  assert pair.box_adds == layers["stage2_block0/depthwise_conv"].macs == 16 * 16 * 64 * 9
  block = abstract_variables(MobileNet(pair=ICBranch), (32, 32, 3))["params"]["stage2_block0"]
  assert block["pair"]["adjust"].shape == (64, 128)


@pytest.mark.parametrize("model,size,sides", [
    (VGG(), (32, 32), (32, 16, 8, 4, 2, 1)), (VGG(), (47, 33), (47, 23, 11, 5, 2, 1)),
    (VGG(dtype=jnp.bfloat16), (70, 64), (70, 35, 17, 8, 4, 2)),
    (MobileNet(), (32, 32), (32, 32, 16, 8, 4, 2)), (MobileNet(), (27, 33), (27, 27, 14, 7, 4, 2)),
    (MobileNet(pair=ICBranch, dtype=jnp.bfloat16), (5, 1), (5, 5, 3, 2, 1, 1))])
def test_endpoints_at_even_odd_and_oblong_sizes(model, size, sides):
  images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
  logits, found = jax.eval_shape(lambda v, x: model.apply(v, x, endpoints=True), variables, images)
  assert logits.shape == (2, 10) and logits.dtype == jnp.float32
  names = ["stem", *(f"stage{i}" for i in range(1, 6))]
  assert set(found) == {*names, "pre_logits"}
  assert tuple(found[name].shape[1] for name in names) == sides
  assert found["pre_logits"].dtype == jnp.float32 and found["stage5"].dtype == (model.dtype or jnp.float32)
  headless = model.clone(num_classes=None)
  assert jax.eval_shape(headless.apply, variables, images).shape == found["pre_logits"].shape
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("size", [(31, 32), (64, 20)])
def test_vgg_refuses_images_that_its_pools_would_use_up(size):
  with pytest.raises(ValueError, match=f"images of {size[0]} x {size[1]} pixels vanish .* needs 32"):
    abstract_variables(VGG(), (*size, 3))
  abstract_variables(VGG((2, 2, 3)), (*size, 3))


@pytest.mark.parametrize("tiny,socket,unit", [
    (tiny_vgg, "conv", ICConv), (tiny_mobilenet, "conv", ICConv), (tiny_mobilenet, "pointwise", ICConv),
    (tiny_mobilenet, "pair", ICBranch)])
def test_at_alpha_zero_the_twin_is_its_base_bit_for_bit(tiny, socket, unit):
  x = jax.random.normal(jax.random.key(3), (2, 17, 16, 3))
  plain = tiny()
  base = jax.jit(plain.init)(jax.random.key(1), x)
  options = {} if tiny is tiny_vgg else dict(use_bias=False)  # VGG's convolutions have biases
  twin = tiny(**{socket: functools.partial(unit, alpha="learned", **options)})
  fresh = jax.jit(twin.init)(jax.random.key(2), x)
  new = {k[-1] for k in flatten_dict(fresh) if k not in flatten_dict(base)}
  assert new == {"adjust", "inner_bias", "alpha"} and not set(flatten_dict(base)) - set(flatten_dict(fresh))
  grown = unflatten_dict(flatten_dict(fresh) | flatten_dict(base))
  same = jax.jit(plain.apply)(base, x)
  np.testing.assert_array_equal(jax.jit(twin.apply)(grown, x), same)
  awake = jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf + 0.5 if path[-1].key == "alpha" else leaf, grown)
  assert np.abs(jax.jit(twin.apply)(awake, x) - same).max() > 1e-3


def test_kconv_takes_the_pointwise_layers_of_mobilenet():
  model = MobileNet(pointwise=GroupedPointwise)
  block = abstract_variables(model, (32, 32, 3))["params"]["stage5_block1"]
  assert block["pointwise_conv"]["conv1"]["kernel"].shape == (1, 1, 16, 1024)  # 64 groups of 16
  assert "pointwise_bn" not in block and set(block["pointwise_conv"]) == {"conv1", "bn1", "conv2", "bn2"}
  assert count_parameters(model, 32) < 400_000  # of 3,217,226


def test_units_that_do_not_fit():
  with pytest.raises(ValueError, match="GroupedPointwise has that norm inside; .* ic_placement='depthwise'"):
    abstract_variables(MobileNet(pointwise=GroupedPointwise, pair=ICBranch), (32, 32, 3))
  with pytest.raises(ValueError, match="conv: GroupedPointwise replaces a 1x1 convolution, but"):
    abstract_variables(VGG(conv=GroupedPointwise), (32, 32, 3))
  with pytest.raises(ValueError, match="pair: ICConv replaces a convolution of any size, but"):
    abstract_variables(MobileNet(pair=ICConv), (32, 32, 3))
  with pytest.raises(ValueError, match="no endpoint 'stage6'; this network has stem, stage1"):
    jax.eval_shape(lambda: VGG().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), endpoints="stage6"))


def test_parameters_start_as_pytorch_starts_them():
  """Uniform in +-1/sqrt(fan_in), kernels, biases of VGG's convolutions and the head."""
  for model, fans in ((tiny_vgg(), {"stage2_block0/conv": 9 * 8, "head": 32}),
                      (tiny_mobilenet(), {"stage2_block0/depthwise_conv": 9, "head": 32,
                                          "stage2_block1/pointwise_conv": 32})):
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    leaves = flatten_dict(params, sep="/")
    for path, fan_in in fans.items():
      for name in ("kernel", "bias"):
        if (leaf := leaves.get(f"{path}/{name}")) is not None:
          assert 0.5 * fan_in**-0.5 < np.abs(leaf).max() <= fan_in**-0.5, (path, name)
    assert ("stage2_block0/conv/bias" in leaves) == isinstance(model, VGG)


def test_training_moves_the_statistics_only_in_training():
  model = tiny_vgg(batch_norm_groups=2)
  x = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
  variables = jax.jit(model.init)(jax.random.key(1), x)
  _, still = model.apply(variables, x, mutable=["batch_stats"])
  _, moved = model.apply(variables, x, train=True, mutable=["batch_stats"])
  assert all(map(np.array_equal, jax.tree.leaves(still["batch_stats"]),
                 jax.tree.leaves(variables["batch_stats"])))
  assert all(not np.array_equal(a, b) for a, b in zip(
      jax.tree.leaves(moved["batch_stats"]), jax.tree.leaves(variables["batch_stats"]), strict=True))
  with pytest.raises(ValueError, match="a batch of 3 does not divide into 2 groups"):
    model.apply(variables, x[:3], train=True, mutable=["batch_stats"])
