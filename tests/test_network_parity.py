"""Networks and units against a second implementation of them in PyTorch, with the same weights.

The references are float64 answers (fixtures/make_network_fixtures.py): of torchvision's and timm's
networks, and of all others as written in torch from the papers. Weights go in as a flat list in the
order in which the layers run, so that nothing depends on what either side calls its layers.

BIONETS_TEST_SLOW=1 takes the gradients of all networks, not only of one with each kind of block, and in
float64: minutes, most of them XLA's grouped convolutions.
"""

import functools
import os
import pathlib
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bionets_jax as bn
from bionets_jax.models.efficientnet import Stage
from bionets_jax.weights import call_order, load_in_call_order

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from golden_weights import (  # noqa: E402
    golden_images,
    golden_labels,
    golden_layer,
    golden_tensor,
)

TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3

SHORT = tuple(
    Stage(kernel, repeats, inputs, features, expand, stride)
    for kernel, repeats, inputs, features, expand, stride in (
        (3, 1, 32, 16, 1, 1), (5, 2, 16, 48, 6, 2), (3, 1, 48, 112, 6, 1))
)  # fmt: skip
# fixture: name and options of create_model
NETWORKS = {
    "efficientnet_b0_torchvision": ("efficientnet_b0", {"flavour": "torchvision"}),
    "keffnet_b0": ("keffnet_b0", {}),
    "keffnet_short": ("keffnet_b0", {"stages": SHORT}),
    "vgg16": ("vgg16", {}),
    "mobilenet": ("mobilenet", {}),
    "senet18": ("se_resnet18", {"block": "preact"}),
    "resnext29_2x64d": ("resnext29_2x64d", {}),
    "se_resnet18": ("se_resnet18", {}),
    "se_resnet50": ("se_resnet50", {}),
    "se_resnet50_timm": ("resnet50", {"se_reduction": 16}),
    "resnext50_32x4d": ("resnet50", {"groups": 32, "base_width": 4}),
    "fp_resnet20_cifar": ("fp_resnet20_cifar", {}),
    "fp_resnet32_cifar": ("fp_resnet32_cifar", {"fp_layers": "011"}),
    "fp_resnet50": ("fp_resnet50", {}),
}
# Every kind of block, in networks whose gradients take seconds.
TRAINED = ("keffnet_short", "vgg16", "mobilenet", "senet18", "se_resnet18", "fp_resnet20_cifar",
           "fp_resnet32_cifar")  # fmt: skip
# Batch statistics over a few small images are ill-conditioned: in float32 our gradient norms of these are up
# to 6e-3 off, in float64 6e-8.
WIDE = ("mobilenet", "fp_resnet32_cifar")
if os.environ.get("BIONETS_TEST_SLOW"):
  NETWORKS["efficientnet_b0_spec"] = ("efficientnet_b0", {})
  TRAINED = WIDE = tuple(NETWORKS)
# The code runs once: what LLVM's optimiser would save is less than it takes.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def relative_error(ours, theirs):
  """Largest difference over the largest reference value; shapes must agree."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.shape == theirs.shape
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def read_cases(name):
  """{case: {key: array}} of a fixture of many small cases."""
  cases = {}
  with np.load(FIXTURES / f"{name}.npz") as file:
    for key, value in file.items():
      case, key = key.split("/", 1)
      cases.setdefault(case, {})[key] = value
  return cases


def to_jax(tensor):
  """OIHW to HWIO, (out, in) to (in, out)."""
  return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def trim(shape):
  return tuple(int(n) for n in shape if n)


# --- networks ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(request):
  """The network, its golden variables, their paths in order of execution, the reference."""
  name = request.param
  with np.load(FIXTURES / f"{name}.npz") as file:
    golden = dict(file)
  ours, options = NETWORKS[name]
  if "efficientnet" in name or "keffnet" in name:
    options = options | {"dropout": 0.0, "drop_connect": 0.0}
  model = bn.create_model(ours, num_classes=int(golden["num_classes"]), **options)
  shape = tuple(golden["image_shape"])
  inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
  template = jax.eval_shape(model.init, jax.random.key(0), inputs)
  tensors = [
      golden_layer(key, trim(shape), gain)
      for key, shape, gain in zip(golden["keys"], golden["shapes"], golden["gains"], strict=True)
  ]
  arrays = [to_jax(tensor) for tensor in tensors]
  return types.SimpleNamespace(
      name=name,
      golden=golden,
      model=model,
      images=golden_images(name, shape),
      order=call_order(model, template, inputs),
      variables=load_in_call_order(model, template, arrays, inputs=inputs),
  )


@pytest.mark.parametrize("network", NETWORKS, indirect=True)
def test_eval_logits_and_stages_equal_torch(network):
  @functools.partial(jax.jit, compiler_options=FAST)
  def forward(variables, images):
    logits, found = network.model.apply(variables, images, train=False, endpoints=True)
    return logits, {k: (v.mean((0, 1, 2)), v.std((0, 1, 2))) for k, v in found.items() if v.ndim == 4}

  inputs = {"eval": network.images}
  if "odd/image_shape" in network.golden:
    # Odd sizes tell symmetric from asymmetric padding, and pooling that rounds up from one that does not.
    shape = tuple(network.golden["odd/image_shape"])
    inputs["odd"] = golden_images(network.name + "/odd", shape)
  for case, images in inputs.items():
    logits, stages = forward(network.variables, images)
    keys = [k.split("/")[1] for k in network.golden if k.startswith(case) and k.endswith("/mean")]
    assert len(keys) >= 3
    for stage in keys:  # in order: the first to differ is named
      for ours, what in zip(stages[stage], ("mean", "std"), strict=True):
        theirs = network.golden[f"{case}/{stage}/{what}"]
        assert relative_error(ours, theirs) < TOLERANCE, (case, stage, what)
    assert relative_error(logits, network.golden[f"{case}/logits"]) < TOLERANCE, case


@pytest.mark.parametrize("network", TRAINED, indirect=True)
def test_train_step_equals_torch(network):
  golden = network.golden

  @functools.partial(jax.jit, compiler_options=FAST)
  def step(variables, images, labels):
    def loss_fn(params):
      logits, changed = network.model.apply(
          variables | {"params": params}, images, train=True, mutable=["batch_stats"]
      )
      loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
      return loss, (logits, changed["batch_stats"])

    found, grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
    return found, jax.tree.map(jnp.linalg.norm, grads)

  wide = network.name in WIDE
  dtype = np.float64 if wide else np.float32
  with jax.enable_x64(wide):
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), network.variables)
    labels = golden_labels(len(network.images), int(golden["num_classes"]))
    (loss, (logits, stats)), norms = step(variables, network.images.astype(dtype), labels)
    norms, stats = jax.tree.map(np.asarray, (norms, stats))
  assert relative_error(logits, golden["train/logits"]) < TOLERANCE
  assert relative_error(loss, golden["train/loss"]) < TOLERANCE

  paths = dict(zip(golden["keys"], network.order, strict=True))
  watched = [key for key in golden if key.startswith("train/stats/")]
  assert len(watched) == 6
  for key in watched:
    theirs = golden[key]
    key = key.removeprefix("train/stats/")
    if key.endswith("running_var"):
      # torch puts the unbiased variance into its running variance, Flax the biased one.
      count = golden["train/count/" + key.removesuffix(".running_var")]
      old = (1 - golden["train/momentum"]) * golden_tensor(key, theirs.shape)
      theirs = old + (theirs - old) * (count - 1) / count
    assert relative_error(leaf_at(stats, paths[key][1:]), theirs) < TOLERANCE, key

  ours = [leaf_at(norms, path[1:]) for path in network.order if path[0] == "params"]
  keys = [key for key in golden["keys"] if "running" not in key]
  assert_norms_close(keys, ours, golden["train/grad_norms"])


def leaf_at(tree, path):
  for name in path:
    tree = tree[name]
  return tree


def assert_norms_close(keys, ours, theirs):
  """Each norm against its own size; what a following BatchNorm takes out again is 0, or nearly so."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  errors = np.abs(ours - theirs) / np.maximum(theirs, 1e-4 * theirs.max())
  worst = np.argmax(errors)
  assert errors[worst] < GRADIENT_TOLERANCE, (keys[worst], errors[worst], theirs[worst])


# --- single units -----------------------------------------------------------------------------------


def run_block(name, case, golden, make):
  """(outputs in eval mode, outputs in train mode or None, gradient of x, gradients of parameters).

  make: train -> module; the gradients of the parameters are in order of `keys`.
  """
  x = golden_images(f"{name}/{case}", tuple(golden["image_shape"]))
  template = jax.eval_shape(make(False).init, jax.random.key(0), x)
  tensors = [
      golden_tensor(key, trim(shape))
      for key, shape in zip(golden["keys"], golden["shapes"], strict=True)
  ]
  arrays = [to_jax(tensor) for tensor in tensors]
  inputs = jax.ShapeDtypeStruct(x.shape, x.dtype)
  variables = load_in_call_order(make(False), template, arrays, inputs=inputs)
  train = "y_train" in golden
  g = golden_images(f"{name}/{case}/g", golden["y_eval"].shape)

  @functools.partial(jax.jit, compiler_options=FAST)
  def both(variables, x):
    def weighted(params, x):
      y, _ = make(train).apply(variables | {"params": params}, x, mutable=["batch_stats"])
      return (y * g).sum(), y

    (_, y), grads = jax.value_and_grad(weighted, (0, 1), has_aux=True)(variables["params"], x)
    return make(False).apply(variables, x), y, grads

  y_eval, y, (grads, grad_x) = both(variables, x)
  order = [path for path in call_order(make(False), template, inputs) if path[0] == "params"]
  return y_eval, y if train else None, grad_x, [leaf_at(grads, path[1:]) for path in order]


def parameter_keys(golden):
  return [key for key in golden["keys"] if "running" not in key]


FP_CASES = read_cases("fp_block")


@pytest.mark.parametrize("case", FP_CASES)
def test_fp_block_equals_torch(case):
  golden = FP_CASES[case]
  options = {
      "features": 8 if "same" in case else 12,
      "expansion": 1 if case in ("product_q1", "journal_same") else 2,
      "pool": "pool" in case or "s2" in case,
      "single_filter": "single" in case,
      "combine": "min" if "min" in case else "product",
      "variant": "journal" if "journal" in case else "seed",
  }

  class Block(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
      return bn.layers.FPBlock(**options)(x, train=self.train)

  y_eval, y, grad_x, grads = run_block("fp_block", case, golden, Block)
  assert relative_error(y_eval, golden["y_eval"]) < TOLERANCE
  assert relative_error(y, golden["y_train"]) < TOLERANCE
  assert relative_error(grad_x, golden["grad_x"]) < TOLERANCE
  for key, grad in zip(parameter_keys(golden), grads, strict=True):
    theirs = golden[f"grad/{key}"]
    assert relative_error(grad.reshape(theirs.shape), theirs) < TOLERANCE, key


KCONV_CASES = read_cases("kconv")


@pytest.mark.parametrize("case", KCONV_CASES)
def test_grouped_pointwise_equals_torch(case):
  golden = KCONV_CASES[case]
  norm, act, bias = golden["options"]
  _, features, k_type = case.split("_")

  def make(train):
    batch_norm = functools.partial(bn.layers.BatchNorm, use_running_average=not train, epsilon=1e-3)
    return bn.layers.GroupedPointwise(
        int(features),
        norm=batch_norm if norm == "True" else None,
        act={"swish": nn.swish, "sigmoid": nn.sigmoid, "None": None}[act],
        use_bias=bias == "True",
        k_type=int(k_type[1:]),
    )

  y_eval, y, grad_x, grads = run_block("kconv", case, golden, make)
  assert relative_error(y_eval, golden["y_eval"]) < TOLERANCE
  if y is not None:
    assert relative_error(y, golden["y_train"]) < TOLERANCE
  assert relative_error(grad_x, golden["grad_x"]) < TOLERANCE
  norms = [jnp.linalg.norm(grad) for grad in grads]
  assert_norms_close(parameter_keys(golden), norms, golden["grad_norms"])


IC_CASES = read_cases("ic_pair")


@pytest.mark.parametrize("case", IC_CASES)
def test_ic_around_a_pair_equals_torch(case):
  golden = IC_CASES[case]
  kernel, stride, low, high = (int(n) for n in golden["options"])
  branch = bn.layers.ICBranch(
      5, (kernel, kernel), strides=stride, padding=((low, high),) * 2, alpha="learned"
  )

  def layer(p, train):
    y = jax.lax.conv_general_dilated(
        p["x"], p["depthwise"], (stride, stride), ((low, high),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=p["x"].shape[-1],
    )  # fmt: skip
    mean, var = golden["bn.running_mean"], golden["bn.running_var"]
    if train:
      mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
    y = (y - mean) * jax.lax.rsqrt(var + 1e-5) * p["bn.weight"] + p["bn.bias"]
    if "mobilenet" in case:
      y = nn.relu(y)
    else:
      y = nn.swish(y)
      gate = nn.swish(y.mean((1, 2), keepdims=True) @ p["squeeze.kernel"] + p["squeeze.bias"])
      y = y * nn.sigmoid(gate @ p["excite.kernel"] + p["excite.bias"])
    own = {
        "adjust": p["adjust"],
        "inner_bias": p["inner_bias"],
        "bias": p["outer_bias"],
        "alpha": p["alpha"],
    }
    return branch.apply({"params": own}, p["x"], y @ p["project"])

  leaves = {k.removeprefix("grad_"): golden[k.removeprefix("grad_")] for k in golden if "grad" in k}

  @functools.partial(jax.jit, compiler_options=FAST)
  def both(p):
    def weighted(p):
      y = layer(p, True)
      return (y * golden["g"]).sum(), y

    return layer(p, False), jax.value_and_grad(weighted, has_aux=True)(p)

  y_eval, ((_, y), grads) = both(leaves)
  assert relative_error(y_eval, golden["y_eval"]) < TOLERANCE
  assert relative_error(y, golden["y_train"]) < TOLERANCE
  assert len(grads) in (9, 13)
  for key, grad in grads.items():
    assert relative_error(grad, golden[f"grad_{key}"]) < TOLERANCE, key
