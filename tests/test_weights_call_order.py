"""Weights as a flat list in the order in which the layers run."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import tiny_model

import bionets_jax as bn
from bionets_jax.weights import call_order, list_in_call_order, load_in_call_order


def shapes(model, *image):
  return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image)), train=False))


@pytest.mark.parametrize("name", bn.list_models())
def test_every_network_has_an_order(name):
  model = tiny_model(name)
  variables = shapes(model, 64, 64, 3)
  order = call_order(model, variables)
  assert len(order) == len(set(order)) == len(flatten_dict(variables))
  assert order[0] == ("params", "stem_conv", "kernel") and order[-1] == ("params", "head", "bias")


def test_the_order_is_that_of_execution():
  model = bn.create_model("ic_efficientnet_b0")
  names = ["/".join(path[1:]) for path in call_order(model, shapes(model, 64, 64, 3))]
  block = [n.removeprefix("stage2_block0/") for n in names if n.startswith("stage2_block0/")]
  norm = ("scale", "bias", "mean", "var")
  assert block == [
      "expand_conv/kernel", *(f"expand_bn/{k}" for k in norm), "depthwise_conv/kernel",
      *(f"depthwise_bn/{k}" for k in norm), "se/reduce_conv/kernel", "se/reduce_conv/bias",
      "se/expand_conv/kernel", "se/expand_conv/bias", "project_conv/kernel", "pair/adjust",
      "pair/inner_bias", "pair/bias", *(f"project_bn/{k}" for k in norm)]


def test_round_trip_and_axes_of_length_one():
  model = tiny_model("mobilenet")
  blank = shapes(model, 32, 32, 3)
  random = np.random.default_rng(0)
  arrays = []
  for path in call_order(model, blank):
    leaf = flatten_dict(blank)[path]
    shape = leaf.shape
    if path[-2] == "depthwise_conv":
      shape = (*shape[:2], shape[3], 1)  # as Keras has it
    arrays.append(random.standard_normal(shape))
  variables = load_in_call_order(model, blank, arrays)
  assert jax.tree.map(lambda v: (v.shape, v.dtype), variables) == jax.tree.map(lambda v: (v.shape, v.dtype), blank)
  for mine, given in zip(list_in_call_order(model, variables), arrays, strict=True):
    np.testing.assert_array_equal(mine.ravel(), given.astype(np.float32).ravel())


@pytest.mark.parametrize("layer,image", [
    (bn.layers.GroupedPointwise(48), (8, 8, 96)), (bn.layers.GroupedPointwise(96, use_bias=True), (8, 8, 48)),
    (bn.layers.ICConv(8, (3, 3), feature_group_count=4), (8, 8, 12)), (bn.layers.FPBlock(8), (8, 8, 5))])
def test_single_layers_need_no_example(layer, image):
  blank = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros((1, *image)), **(
      {"train": False} if hasattr(layer, "expansion") else {})))
  assert len(call_order(layer, blank)) == len(flatten_dict(blank))


@pytest.mark.parametrize("norm", [
    functools.partial(nn.BatchNorm, use_running_average=False), functools.partial(nn.BatchNorm, use_running_average=True),
    nn.LayerNorm])
def test_any_norm_in_any_mode(norm):
  layer = bn.layers.GroupedPointwise(24, norm=norm, act=nn.swish)
  blank = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 96))))
  names = ["/".join(path[1:]) for path in call_order(layer, blank)]
  statistics = ["mean", "var"] if "batch_stats" in blank else []
  assert names == [n for i in (1, 2) for n in (
      f"conv{i}/kernel", *(f"bn{i}/{k}" for k in ("scale", "bias", *statistics)))]


def test_what_does_not_fit_is_named():
  model = tiny_model("vgg16")
  blank = shapes(model, 32, 32, 3)
  arrays = [np.zeros(flatten_dict(blank)[path].shape) for path in call_order(model, blank)]
  with pytest.raises(ValueError, match=r"array 0 has shape \(5,\), params/stem_conv/kernel has \(3, 3, 3, 8\)"):
    load_in_call_order(model, blank, [np.zeros(5), *arrays[1:]])
  with pytest.raises(ValueError, match=f"{len(arrays) - 1} arrays for {len(arrays)} variables"):
    load_in_call_order(model, blank, arrays[:-1])
  extra = {"params": {**blank["params"], "unused": {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)}},
           "batch_stats": blank["batch_stats"]}
  with pytest.raises(ValueError, match="does not call the layers of 1 variables: params/unused/kernel"):
    call_order(model, extra)
