"""EfficientNet, kEffNet and IC-EfficientNet: counts, what the flavours differ in, and Keras' numbers."""

import functools
import pathlib
import sys

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import bionets_jax as bn
from bionets_jax.layers import BatchNorm, ICBranch, ICConv
from bionets_jax.layers.grouped_pointwise import GroupedPointwise
from bionets_jax.models.efficientnet import (
    STAGES,
    VARIANTS,
    EfficientNet,
    Stage,
    drop_connect_rates,
    keras_dense,
    keras_depthwise,
)
from bionets_jax.weights import call_order, load_in_call_order

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from make_keras_fixtures import ENDPOINTS, golden_array, golden_pictures  # noqa: E402

KEFFNET = dict(pointwise=GroupedPointwise, pointwise_init=nn.initializers.glorot_uniform(), top_act=False)
NO_BIAS = dict(use_bias=False, use_inner_bias=False)

# kEffNet paper, Table 2: trainable parameters for 10 classes.
TABLE_2 = {
    "b0": (4_020_358, 639_702), "b1": (6_525_994, 922_770), "b2": (7_715_084, 1_130_344),
    "b3": (10_711_602, 1_532_902), "b4": (17_566_546, 1_952_306), "b5": (28_361_274, 2_633_470),
    "b6": (40_758_754, 4_714_030), "b7": (63_812_570, 4_669_218)}
TABLE_1 = {29: (4_044_697, 664_041), 37: (4_054_945, 674_289), 10: (4_020_358, 639_702)}

# The second block has a shortcut.
TINY = (Stage(3, 1, 32, 32, 1, 2), Stage(3, 1, 32, 32, 2, 1))


def network(variant, num_classes=10, **fields):
  v = VARIANTS[variant]
  return EfficientNet(num_classes, v.width, v.depth, v.dropout, **fields)


def count(model):
  return bn.count_parameters(model, 32)


def random_variables(model, x, seed=0):
  """Variables at random, without compiling the initialisers."""
  random = np.random.RandomState(seed)

  def draw(path, leaf):
    if len(leaf.shape) > 1:
      return random.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
    return random.uniform(.5, 1.5, leaf.shape) if path[-1] in ("scale", "var") else .1 * random.standard_normal(leaf.shape)

  template = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), x))
  return unflatten_dict({k: jnp.asarray(draw(k, v), v.dtype) for k, v in sorted(template.items())})


# Counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", TABLE_2)
def test_table_2(variant):
  # Flax's convolution for the depthwise ones, because it is traced in half the time.
  base = network(variant, conv=functools.partial(nn.Conv, use_bias=False))
  assert (count(base), count(base.clone(**KEFFNET))) == TABLE_2[variant]


@pytest.mark.parametrize("classes", TABLE_1)
def test_table_1(classes):
  assert (count(network("b0", classes)), count(network("b0", classes, **KEFFNET))) == TABLE_1[classes]


@pytest.mark.parametrize("variant,base,depthwise,pairs", [
    ("b0", 5_288_548, 8_960, 1_483_136), ("b1", 7_794_184, 13_584, 2_445_696),
    ("b2", 9_109_994, 14_784, 2_902_656)])
def test_counts_of_ic_networks(variant, base, depthwise, pairs):
  assert count(network(variant, 1000, flavour="torchvision")) == base
  conv = functools.partial(ICConv, **NO_BIAS)
  pair = functools.partial(ICBranch, **NO_BIAS)
  assert count(network(variant, 1000, conv=conv)) == base + depthwise
  assert count(network(variant, 1000, pair=pair)) == base + pairs


def test_multiply_adds():
  assert bn.count_macs(network("b0", 1000), 224) == 385_814_752


# Keras ---------------------------------------------------------------------------------------


@functools.cache
def keras_case():
  """(the answers of Keras, the network without dropout, its golden variables)."""
  with np.load(FIXTURES / "efficientnet_b0_keras.npz") as file:
    golden = dict(file)
  model = EfficientNet(10, dropout=0.0, drop_connect=0.0)
  template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  flat = flatten_dict(template)
  arrays = [golden_array(i, path[-1], flat[path].shape)
            for i, path in enumerate(call_order(model, template))]
  return golden, model, load_in_call_order(model, template, arrays)


def relative_error(ours, theirs):
  assert ours.shape == theirs.shape
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("case,flavour", [("even", "tf"), ("odd", "keras")])
def test_logits_and_stages_equal_keras(case, flavour):
  # On even sizes 'tf' and 'keras' are the same network.
  golden, model, variables = keras_case()
  images = golden_pictures(case, tuple(golden[f"{case}/image_shape"]))
  logits, found = jax.jit(functools.partial(model.clone(flavour=flavour).apply, endpoints=True))(
      variables, images)
  for name in ENDPOINTS:  # from stem to top: the first to differ is named
    assert relative_error(found[name].mean((0, 1, 2)), golden[f"{case}/{name}"]) < 1e-4, name
  if case == "even":
    assert relative_error(logits, golden["even/logits"]) < 1e-4


def test_train_mode_equals_keras():
  golden, model, variables = keras_case()
  images = golden_pictures("even", tuple(golden["even/image_shape"]))
  logits, changed = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))(
      variables, images)
  assert relative_error(logits, golden["even/train/logits"]) < 1e-4
  last = changed["batch_stats"]["top_bn"]
  assert relative_error(last["mean"], golden["even/train/mean"]) < 1e-4
  assert relative_error(last["var"], golden["even/train/var"]) < 1e-4


# Flavours ------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour,size,pads", [
    ("keras", 8, (0, 1)), ("keras", 9, (0, 1)), ("tf", 8, (0, 1)), ("tf", 9, (1, 1)),
    ("torchvision", 8, (1, 1)), ("torchvision", 9, (1, 1))])
def test_padding_of_the_stem(flavour, size, pads):
  model = EfficientNet(10, stages=TINY, flavour=flavour)
  x = jax.random.normal(jax.random.key(0), (2, size, size + 2, 3))
  variables = random_variables(model, x)
  stem = jax.jit(lambda v, x: model.apply(v, x, endpoints="stem")[1]["stem"])(variables, x)
  padded = jnp.pad(x, ((0, 0), pads, pads, (0, 0)))
  y = jax.lax.conv_general_dilated(
      padded, variables["params"]["stem_conv"]["kernel"], (2, 2), "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"))
  p, stats = variables["params"]["stem_bn"], variables["batch_stats"]["stem_bn"]
  epsilon = 1e-5 if flavour == "torchvision" else 1e-3
  y = (y - stats["mean"]) / np.sqrt(stats["var"] + epsilon) * p["scale"] + p["bias"]
  np.testing.assert_allclose(stem, nn.swish(y), rtol=2e-5, atol=2e-6)


def layer_calls(model, kind, size=32, **options):
  """{path: module} of the layers of one kind that a forward pass calls."""
  calls = {}

  def note(call, args, kwargs, context):
    if isinstance(context.module, kind) and context.method_name == "__call__":
      calls["/".join(context.module.path)] = context.module.clone(parent=None)
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    jax.eval_shape(lambda: model.init(
        {"params": jax.random.key(0), "dropout": jax.random.key(1)}, jnp.zeros((1, size, size, 3)), **options))
  return calls


def test_padding_of_the_depthwise_convolutions():
  expected = {"keras": {(3, 2): (0, 1), (5, 2): (1, 2)}, "torchvision": {(3, 2): (1, 1), (5, 2): (2, 2)}}
  for flavour, strided in expected.items():
    expect = {(3, 1): (1, 1), (5, 1): (2, 2)} | strided
    seen = set()
    for path, layer in layer_calls(network("b0", flavour=flavour), bn.layers.Conv).items():
      if path.endswith("depthwise_conv"):
        key = layer.kernel_size[0], layer.strides
        assert layer.padding == (expect[key],) * 2, (flavour, path)
        seen.add(key)
    assert seen == set(expect)


@pytest.mark.parametrize("flavour,variant,expected", [
    ("keras", "b0", (1e-3, .99)), ("tf", "b7", (1e-3, .99)), ("torchvision", "b0", (1e-5, .9)),
    ("torchvision", "b4", (1e-5, .9)), ("torchvision", "b5", (1e-3, .99)),
    ("torchvision", "b7", (1e-3, .99))])
def test_batch_norm_of_the_flavours(flavour, variant, expected):
  v = VARIANTS[variant]
  norms = layer_calls(EfficientNet(10, v.width, flavour=flavour, stages=TINY), BatchNorm).values()
  assert {(n.epsilon, n.momentum) for n in norms} == {expected}
  own = EfficientNet(10, stages=TINY, flavour=flavour, norm_epsilon=.5, norm_momentum=.25)
  assert {(n.epsilon, n.momentum) for n in layer_calls(own, BatchNorm).values()} == {(.5, .25)}


# Dropout and drop-connect ----------------------------------------------------------------------


def test_drop_connect_rates():
  highest = {"b0": .175, "b1": .275, "b2": .275, "b3": .3125, "b4": .3875, "b5": .475, "b6": .55, "b7": .675}
  for variant, rate in highest.items():
    rates = drop_connect_rates(STAGES, VARIANTS[variant].depth, .2, "keras")
    assert max(r for stage in rates for r in stage[1:]) == pytest.approx(rate), variant
    for flavour in ("tf", "torchvision"):
      flat = sum(drop_connect_rates(STAGES, VARIANTS[variant].depth, .2, flavour), [])
      np.testing.assert_allclose(flat, .2 * np.arange(len(flat)) / len(flat))
  dropouts = layer_calls(network("b0"), nn.Dropout)
  assert dropouts.pop("head_dropout").rate == .2
  # Blocks 2, 4, 6, 7, 9, 10, 12, 13, 14 have a way around them.
  assert [d.rate for d in dropouts.values()] == pytest.approx(
      [.2 * b / 16 for b in (2, 4, 6, 7, 9, 10, 12, 13, 14)])


def test_dropout_needs_an_rng_and_follows_it():
  model = EfficientNet(5, stages=TINY, drop_connect=1.0, dropout=.5)  # block 1 of 2: rate 0.5
  x = jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
  variables = random_variables(model, x)
  step = functools.partial(model.apply, variables, x, train=True, capture_intermediates=True,
                           mutable=["batch_stats", "intermediates"])
  with pytest.raises(flax.errors.InvalidRngError):
    jax.eval_shape(step)
  run = jax.jit(lambda seed: step(rngs={"dropout": jax.random.key(seed)}))
  logits, state = run(0)
  np.testing.assert_array_equal(logits, run(0)[0])
  assert np.abs(logits - run(1)[0]).max() > 1e-3
  block = state["intermediates"]["stage2_block0"]
  before, after = block["project_bn"]["__call__"][0], block["drop_connect"]["__call__"][0]
  kept = np.asarray(after != 0).any((1, 2, 3))
  assert 2 < kept.sum() < 14  # whole samples, about half of them
  np.testing.assert_allclose(after, 2 * before * kept[:, None, None, None], rtol=1e-6)


# Units in the sockets --------------------------------------------------------------------------

UNITS = {
    "pair": dict(pair=functools.partial(ICBranch, use_bias=False)),
    "IC and kConv": dict(KEFFNET, conv=functools.partial(ICConv, use_bias=False))}


@pytest.mark.parametrize("unit", UNITS)
def test_gradients_reach_every_parameter(unit):
  model = EfficientNet(5, stages=TINY, dropout=0, drop_connect=0, **UNITS[unit])
  x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
  variables = random_variables(model, x)

  def loss(params):
    logits, _ = model.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
    return (logits ** 2).sum() + logits[:, 0].sum()

  for path, g in flatten_dict(jax.jit(jax.grad(loss))(variables["params"])).items():
    assert np.isfinite(g).all() and np.abs(g).max() > 0, path


def test_a_pair_at_alpha_zero_is_its_base():
  x = jax.random.normal(jax.random.key(0), (2, 15, 12, 3))
  model = EfficientNet(5, stages=TINY, pair=functools.partial(ICBranch, alpha="learned", use_bias=False))
  flat = flatten_dict(random_variables(model, x))
  assert {p[-2] for p in flat if p[-1] in ("adjust", "alpha", "inner_bias")} == {"pair"}
  assert flat["params", "stage2_block0", "pair", "adjust"].shape == (64, 32)
  plain = EfficientNet(5, stages=TINY)
  base = random_variables(plain, x, seed=1)
  grown = {k: 0 * v if k[-1] == "alpha" else v for k, v in flat.items()}
  grown = unflatten_dict(grown | flatten_dict(base))
  # To round-off: XLA may fuse the same sums differently in the two programs.
  np.testing.assert_allclose(jax.jit(model.apply)(grown, x), jax.jit(plain.apply)(base, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fields,match", [
    (dict(KEFFNET, pair=ICBranch), "GroupedPointwise has that norm inside"),
    (dict(pair=ICConv), "pair: ICConv replaces a convolution of any size"),
    (dict(conv=GroupedPointwise), "conv: GroupedPointwise replaces a 1x1 convolution"),
    (dict(pointwise=ICBranch), "ICBranch replaces the second branch"),
    (dict(flavour="timm"), "flavour='timm': give one of keras, torchvision, tf")])
def test_what_does_not_fit_is_refused(fields, match):
  with pytest.raises(ValueError, match=match):
    count(EfficientNet(5, stages=TINY, **fields))


def test_endpoints_head_and_dtypes():
  x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
  model = network("b0", dtype=jnp.bfloat16, **KEFFNET)
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  logits, found = jax.eval_shape(lambda v, x: model.apply(v, x, endpoints=True), variables, x)
  assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
  assert set(found) == {"stem", *(f"stage{i}" for i in range(1, 8)), "top", "pre_logits"}
  assert found["top"].shape == (2, 2, 2, 1280) and found["top"].dtype == jnp.bfloat16
  assert found["pre_logits"].shape == (2, 1280) and found["pre_logits"].dtype == jnp.float32
  params = dict(variables["params"])
  del params["head"]
  headless = jax.eval_shape(network("b0", None, **KEFFNET).init, jax.random.key(0), x)["params"]
  assert jax.tree.structure(headless) == jax.tree.structure(params)
  assert set(params["stage2_block1"]["project_conv"]) == {"conv1", "bn1", "conv2", "bn2"}
  assert params["top_conv"]["conv1"]["kernel"].shape == (1, 1, 16, 1280)


def test_scale_of_the_initial_weights():
  shape = (5, 5, 1, 4096)
  assert np.std(keras_depthwise(jax.random.key(0), shape)) == pytest.approx(np.sqrt(2 / 25), rel=.02)
  assert np.abs(keras_dense(jax.random.key(0), (4096, 10))).max() == pytest.approx(.1 ** .5, rel=.01)
