"""Units in networks that were not written for them, twins that inherit, and the way into NNX."""

import functools
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bionets_jax as bn
from bionets_jax.layers import FPBlock, GroupedPointwise, ICConv, ICDense

EXAMPLES = pathlib.Path(bn.__file__).parent.parent / "examples"
X = np.random.default_rng(0).standard_normal((8, 9, 8, 3)).astype(np.float32)


class Block(nn.Module):
  """In the `setup` style, with a checkpointed convolution, as third parties write them."""

  features: int
  train: bool

  def setup(self):
    self.first = nn.Conv(self.features, (3, 3), use_bias=False)
    self.norm = nn.BatchNorm(use_running_average=not self.train)
    self.mix = nn.Conv(self.features, (1, 1))

  def __call__(self, x):
    return self.mix(nn.relu(self.norm(self.first(x))))


class Standardised(nn.Conv):
  @nn.compact
  def __call__(self, x):
    return super().__call__(x - x.mean())


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.Conv(16, (3, 3), name="stem")(x))
    x = Block(32, train, name="block0")(x)
    x = nn.remat(Block, static_argnums=())(32, train, name="block1")(x)
    return nn.Dense(4, name="head")(x.mean((1, 2)))


@pytest.fixture(scope="module")
def base():
  return Net().init(jax.random.key(0), X)


def learned(path, conv):
  return conv.kernel_size == (3, 3)


def test_an_ic_transplant_starts_as_its_network(base):
  unit = functools.partial(ICConv, alpha="learned")
  twin = bn.transplant(Net(), unit, where=learned)
  grown = bn.inherit(base, twin.init(jax.random.key(1), X))
  assert not grown.unused and {p.split("/")[-1] for p in grown.new} == {"adjust", "inner_bias", "alpha"}
  # Where theirs has no bias the unit's b2 stays out, as its `use_bias` is theirs.
  assert "params/block0/first/bias" not in grown.new
  np.testing.assert_array_equal(twin.apply(grown.variables, X), Net().apply(base, X))
  text = str(grown).splitlines()
  assert text[0].split() == ["part", "copied", "new", "not", "used", "new", "leaves"]
  assert text[-1].split()[:2] == ["total", f"{sum(v.size for v in jax.tree.leaves(base)):,}"]


def test_transplants_nest_and_train(base):
  twin = bn.transplant(bn.transplant(Net(), ICConv, where=r"block\d/first"), GroupedPointwise)
  twin = bn.transplant(twin, ICDense, of=nn.Dense)
  variables = twin.init(jax.random.key(1), X)
  params = variables["params"]
  assert set(params["block1"]["first"]) == {"kernel", "adjust", "inner_bias"}
  assert set(params["block0"]["mix"]) == {"conv1", "conv2"} and "adjust" in params["head"]
  assert "adjust" not in params["stem"]
  optimizer = optax.adam(3e-3)
  labels = np.arange(8) % 4

  def loss_fn(params, stats):
    logits, new = twin.apply({"params": params, "batch_stats": stats}, X, train=True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new["batch_stats"]

  @jax.jit
  def step(params, stats, state):
    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, stats)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), stats, state, loss

  stats, state, losses = variables["batch_stats"], optimizer.init(params), []
  for _ in range(40):
    params, stats, state, loss = step(params, stats, state)
    losses.append(float(loss))
  assert losses[-1] < 0.3 * losses[0]
  assert np.abs(stats["block1"]["norm"]["mean"]).max() > 0
  assert bn.count_macs(twin, (9, 8, 3)) > 0


def test_a_block_of_theirs_becomes_an_fp_block(base):
  make = lambda b: FPBlock(b.features, norm=functools.partial(nn.BatchNorm, use_running_average=not b.train))  # noqa: E731
  twin = bn.transplant(Net(), make, of=Block, where="block0")
  variables = twin.init(jax.random.key(1), X)
  assert "filters" in variables["params"]["block0"] and "first" in variables["params"]["block1"]
  taken = bn.inherit(base, variables)
  assert {p.split("/")[1] for p in taken.unused} == {p.split("/")[1] for p in taken.new} == {"block0"}


def test_paths_are_those_of_the_variables(base):
  """Also for modules that are fields, for a layer called 'model', and inside another module."""
  fields = nn.Sequential([nn.Conv(8, (3, 3)), nn.relu, nn.Conv(8, (3, 3))])
  params = bn.transplant(fields, ICConv, where="layers_2").init(jax.random.key(0), X)["params"]
  assert {k: "adjust" in v for k, v in params.items()} == {"layers_0": False, "layers_2": True}

  class Odd(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Conv(4, (3, 3), name="model")(x)

  assert "adjust" in bn.transplant(Odd(), ICConv).init(jax.random.key(0), X)["params"]["model"]

  class Around(nn.Module):
    @nn.compact
    def __call__(self, x):
      return bn.transplant(Net(), ICConv, where="block1/first")(x)

  params = Around().init(jax.random.key(0), X)["params"]
  assert "adjust" in params["Net_0"]["block1"]["first"] and "adjust" not in params["Net_0"]["block0"]["first"]


def test_an_inheritance_is_a_copy_in_its_own_dtype(base):
  half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), base)
  grown = bn.inherit(half, base).variables
  assert {v.dtype for v in jax.tree.leaves(grown)} == {jnp.dtype("float32")}
  taken = jax.tree.leaves(bn.inherit(base, base).variables)
  assert all(a is not b for a, b in zip(taken, jax.tree.leaves(base), strict=True))
  boxed = nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.ones_init(), (None, "model")))
  variables = boxed.init(jax.random.key(0), X)
  assert not bn.inherit(variables, variables).new


def test_this_librarys_own_networks_can_be_transplanted_into():
  model = bn.transplant(bn.create_model("resnet20_cifar", stage_sizes=(1, 1, 1), width=8), ICConv, where=r".*/conv\d")
  by_hand = bn.create_model("ic_resnet20_cifar", stage_sizes=(1, 1, 1), width=8, use_bias=False)
  assert bn.count_parameters(model, 32) == bn.count_parameters(by_hand, 32)
  assert bn.count_macs(model, 32) == bn.count_macs(by_hand, 32)


@pytest.mark.parametrize("make,match", [
    (lambda: bn.transplant(Net(), ICConv, where="stem/.*"), "ICConv replaced nothing in Net; its Conv layers are stem, block0/first"),
    (lambda: bn.transplant(Net(), lambda layer: layer, of=nn.ConvTranspose), "it calls no ConvTranspose layer"),
    (lambda: bn.transplant(Net(), ICConv, of=nn.ConvTranspose),
     "ICConv replaces a convolution of any size, not ConvTranspose"),
    (lambda: bn.transplant(Net(), ICConv(8, (3, 3))), "got an instance of ICConv"),
    (lambda: bn.transplant(Net, ICConv), "the model has to be a module"),
    (lambda: bn.transplant(Net(), lambda layer: None), "made None for 'stem'"),
    (lambda: bn.transplant(nn.Sequential([Standardised(4, (3, 3))]), ICConv),
     "Standardised 'layers_0' is a Conv with a __call__ of its own"),
    (lambda: bn.transplant(Net(), GroupedPointwise, where="stem"), "kConv replaces 1x1 convolutions only"),
    (lambda: bn.transplant(nn.Sequential([nn.Conv(4, (1, 1), kernel_dilation=2)]), GroupedPointwise),
     "kernel_dilation=2, which GroupedPointwise does not know")])
def test_mistakes_are_named(make, match):
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(lambda: make().init(jax.random.key(0), X))


def test_nothing_in_common():
  with pytest.raises(ValueError, match="none of the 1 variables has a namesake of its shape in the base, which has params/a/kernel$"):
    bn.inherit({"params": {"a": {"kernel": X}}}, {"params": {"b": {"kernel": X}}})


def test_a_kconv_of_one_group_takes_over_convolution_and_norm():
  """Of kEffNet-B0's 1x1 convolutions those that stay dense, and in a bottleneck likewise."""
  def shapes(name, **options):
    model = bn.create_model(name, **options)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))

  taken = bn.inherit(shapes("efficientnet_b0"), shapes("keffnet_b0"))
  assert "params/stage2_block0/expand_conv/conv1/kernel" in taken.copied  # 16 -> 96
  assert "batch_stats/stage2_block0/expand_conv/bn1/var" in taken.copied
  assert "params/stage7_block0/project_conv/conv1/kernel" in taken.new
  assert "params/stage7_block0/project_conv/bn1/scale" in taken.new
  dense = bn.inherit(shapes("resnet50"), shapes("resnet50", reduce=functools.partial(GroupedPointwise, k_type=0)))
  assert not dense.unused and not dense.new


# NNX -------------------------------------------------------------------------------------------


def test_a_network_trains_inside_an_nnx_model():
  sys.path.insert(0, str(EXAMPLES))
  try:
    import nnx_model
  finally:
    sys.path.pop(0)
  model, losses = nnx_model.main(steps=25)
  assert losses[-1] < 0.2 * losses[0]
  moved = nnx.bridge.variables.nnx_attrs_to_linen_vars(
      {k: a for k, a in vars(model.backbone).items() if k in ("stem_bn",)})
  assert np.abs(moved["batch_stats"]["stem_bn"]["mean"]).max() > 0


def test_linen_weights_into_nnx_and_back():
  net = bn.create_model("ic_resnet20_cifar", 3, stage_sizes=(1, 1, 1), width=8)
  x = jnp.asarray(X)
  variables = net.init(jax.random.key(5, impl="rbg"), x)
  model = nnx.bridge.ToNNX(net, rngs=nnx.Rngs(0)).lazy_init(x)
  nnx.update(model, nnx.state(nnx.bridge.variables.linen_vars_to_nnx_attrs(variables)))
  np.testing.assert_allclose(model(x, train=False), net.apply(variables, x), atol=1e-5)
  out = nnx.bridge.variables.nnx_attrs_to_linen_vars(
      {k: a for k, a in vars(model).items() if k[0] != "_" and not k.startswith("to_nnx__")})
  jax.tree.map(np.testing.assert_array_equal, {k: out[k] for k in variables}, dict(variables))


@pytest.mark.parametrize("script,says", [
    ("own_training_loop.py", "loss 0."), ("someone_elses_network.py", "the network it grew from: True")])
def test_examples_run(script, says):
  """As in an outside project: from another folder, with the package on the path."""
  out = subprocess.run([sys.executable, str(EXAMPLES / script)], capture_output=True, text=True, check=True,
                       cwd="/", env={"PYTHONPATH": str(EXAMPLES.parent), "JAX_PLATFORMS": "cpu", "HOME": "/tmp"})
  assert says in out.stdout
