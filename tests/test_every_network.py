"""Every name of the list: what any network has to do, on cut-down variants that compile in seconds."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import tiny_model

import bionets_jax as bn

IMAGES = np.random.default_rng(0).standard_normal((2, 37, 51, 3)).astype(np.float32)  # odd, not square
LABELS = np.array([1, 5])


def make_run(model, train):
  """images -> (variables, eval-mode logits and gradients, and those of a bfloat16 training step)."""
  half = model.clone(dtype=jnp.bfloat16)

  def losses(logits):
    return -jax.nn.log_softmax(logits)[jnp.arange(2), LABELS].sum(), logits

  def run(images):
    # Programs of JAX's default generator take five times as long to compile as the networks.
    variables = model.init(jax.random.key(0, impl="rbg"), images)
    stats = variables["batch_stats"]

    def eval_loss(params):
      return losses(model.apply({"params": params, "batch_stats": stats}, images))

    def train_loss(params):
      logits, new = half.apply({"params": params, "batch_stats": stats}, images, train=True,
                               mutable=["batch_stats"], rngs={"dropout": jax.random.key(1, impl="rbg")})
      return losses(logits)[0], (logits, new["batch_stats"])

    (_, logits), grads = jax.value_and_grad(eval_loss, has_aux=True)(variables["params"])
    if not train:
      return variables, logits, grads
    (_, trained), trained_grads = jax.value_and_grad(train_loss, has_aux=True)(variables["params"])
    return variables, logits, grads, trained, trained_grads

  # Programs that run once: half of the time that compiling them takes goes into making them fast.
  return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


_RESULTS = {}


def result(model, train=False):
  """Networks that differ in depth alone are the same once they are cut down."""
  key = repr(model)
  if key not in _RESULTS or (train and len(_RESULTS[key]) == 3):
    _RESULTS[key] = jax.device_get(make_run(model, train)(IMAGES))
  return _RESULTS[key]


# One of each family and with each unit: a step takes as long to compile as all the rest. The others are made of the same blocks.
TRAINED = {"ic_resnet50", "ic_se_resnet18", "ic_resnext29_2x64d", "fp_resnet50", "ic_vgg16", "ic_mobilenet", "ic_efficientnet_b0",
           "keffnet_b0"}


@pytest.mark.parametrize("name", bn.list_models())
def test_outputs_and_gradients(name):
  train = name in TRAINED or bool(os.environ.get("BIONETS_TEST_SLOW"))
  variables, logits, grads, *step = result(tiny_model(name), train)
  assert set(variables) == {"params", "batch_stats"}
  assert {leaf.dtype for leaf in jax.tree.leaves((variables, grads))} == {np.dtype("float32")}
  assert logits.shape == (2, 7) and logits.dtype == np.float32 and np.isfinite(logits).all()
  for path, g in flatten_dict(grads).items():
    assert np.isfinite(g).all() and np.abs(g).max() > 0, path
  if not train:
    return
  # bfloat16 has 8 bits: the same function, roughly. In training mode the statistics differ, so only
  # that they moved is asked of them.
  (half_logits, stats), half_grads = step
  assert {leaf.dtype for leaf in jax.tree.leaves((stats, half_grads))} == {np.dtype("float32")}
  assert half_logits.shape == (2, 7) and half_logits.dtype == np.float32 and np.isfinite(half_logits).all()
  for path, g in flatten_dict(half_grads).items():
    assert np.isfinite(g).all(), path
  for path, s in flatten_dict(stats).items():
    assert np.isfinite(s).all() and np.abs(s - flatten_dict(variables["batch_stats"])[path]).max() > 0, path


@functools.cache
def shapes(name, size=64):
  model = tiny_model(name)
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3))))
  images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  return variables, *jax.eval_shape(lambda v, x: model.apply(v, x, endpoints=True), variables, images)


@pytest.mark.parametrize("name", bn.list_models())
def test_endpoints(name):
  variables, logits, found = shapes(name)
  stages = [k for k in found if k.startswith("stage")]
  assert set(found) - {"top"} == {"stem", *stages, "pre_logits"} and len(stages) >= 2
  heights = [found[k].shape[1] for k in stages]
  assert all(a in (b, 2 * b) for a, b in zip(heights, heights[1:], strict=False)) and heights[-1] < heights[0]
  assert logits.shape == (2, 7) and found["pre_logits"].ndim == 2
  headless = tiny_model(name, 0)
  out = jax.eval_shape(lambda: headless.init_with_output(jax.random.key(0), jnp.zeros((2, 64, 64, 3))))[0]
  assert out.shape == found["pre_logits"].shape


@pytest.mark.parametrize("name", bn.list_models())
def test_what_a_twin_takes_over(name):
  base = bn.models.base_name(name)
  taken = bn.inherit(shapes(base)[0], shapes(name)[0])
  new_leaves = {path.split("/")[-1] for path in taken.new}
  if name == base:
    assert not taken.new and not taken.unused
  elif name.startswith("ic_"):
    # Everything: WLD can start from it. The stem and the shortcuts stay plain convolutions.
    assert not taken.unused and new_leaves <= {"adjust", "inner_bias", "bias"} and "adjust" in new_leaves
    assert not any("stem" in path or "shortcut" in path for path in taken.new)
  else:
    assert taken.new and taken.unused and "params/stem_conv/kernel" in taken.copied
    assert "params/head/kernel" in taken.copied


@pytest.mark.parametrize("name", [
    n for n in bn.list_models() if n.startswith("ic_") and n not in ("ic_resnet34", "ic_resnet101")])
def test_at_alpha_zero_an_ic_twin_is_its_base(name):
  base, twin = tiny_model(bn.models.base_name(name)), tiny_model(name, alpha="learned")
  variables = result(base)[0]
  blank = jax.eval_shape(lambda: twin.init(jax.random.key(0), jnp.asarray(IMAGES)))
  random = np.random.default_rng(1)
  fresh = jax.tree_util.tree_map_with_path(
      lambda path, leaf: np.zeros(leaf.shape, leaf.dtype) if path[-1].key in ("alpha", "bias")
      else random.standard_normal(leaf.shape).astype(leaf.dtype), blank)
  grown = bn.inherit(variables, fresh).variables
  logits = jax.jit(twin.apply)(grown, IMAGES)
  # Not bit for bit: in a program of its own XLA may fuse the same sums in another order.
  np.testing.assert_allclose(logits, result(base)[1], rtol=1e-4, atol=1e-5 * np.abs(result(base)[1]).max())


COMBINATIONS = [
    ("resnet50", dict(conv=bn.layers.ICConv, pointwise=bn.layers.GroupedPointwise)),
    ("resnet50", dict(pointwise=functools.partial(bn.layers.GroupedPointwise, min_group_channels=8),
                      fp_layers="0100", fp_blocks=1,
                      fp_block=functools.partial(bn.layers.FPBlock, expansion=1,
                                                 pointwise=bn.layers.GroupedPointwise))),
    ("se_resnet18", dict(fp_layers="0101", fp_blocks=1)),
    ("ic_se_resnet18", dict(block="preact", fp_layers="0001", fp_blocks=1)),
    ("efficientnet_b0", dict(pointwise=bn.layers.GroupedPointwise, conv=bn.layers.ICConv)),
    ("efficientnet_b0", dict(pointwise=bn.layers.ICConv, flavour="torchvision")),
    ("ic_efficientnet_b0", dict(ic_placement="depthwise", alpha="learned_per_channel", flavour="tf")),
    ("keffnet_b0", dict(k_type=1)), ("keffnet_b0", dict(k_type=0)),
    ("mobilenet", dict(pointwise=bn.layers.GroupedPointwise, conv=bn.layers.ICConv)),
    ("fp_resnet20_cifar", dict(variant="journal", fp_layers="111", fp_placement="first", fp_blocks=None,
                               block="pyramid")),
    ("fp_resnet20_cifar", dict(combine="min", expansion=1.5)),
    ("fp_resnet20_cifar", dict(single_filter=True, conv=bn.layers.ICConv)),
    ("ic_resnext29_2x64d", dict(adjust_groups=1)),
]


@pytest.mark.parametrize("name,options", COMBINATIONS, ids=lambda v: v if isinstance(v, str) else ",".join(v))
def test_combinations_that_no_paper_tried(name, options):
  _, logits, grads = result(tiny_model(name, **options), train=False)
  assert np.isfinite(logits).all()
  for path, g in flatten_dict(grads).items():
    # Where alpha starts at 0 it has to move first.
    assert np.isfinite(g).all() and (np.abs(g).max() > 0 or (path[-1] != "alpha" and "alpha" in options)), path
