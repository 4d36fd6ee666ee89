"""Our networks and losses against PyTorch's, with the same weights.

The fixtures are float64 answers of PyTorch (fixtures/make_torch_fixtures.py). The weights follow
from their torch names by a formula; here they take the way of any published checkpoint: they are
written to a file in the foreign layout and read with `load_pretrained`.
"""

import functools
import os
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

import bionets_jax as bn
from bionets_jax.weights import layouts, load_pretrained, to_layout

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from golden_weights import golden_images, golden_labels, golden_tensor  # noqa: E402

TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3

LAYOUT = {"resnet20_cifar": "pytorch_resnet_cifar10"}  # torchvision for all others
ALL = ("resnet20_cifar", "resnet18", "resnet34", "resnet50", "resnet101")
TRAINED = ("resnet20_cifar", "resnet18", "resnet50")


def relative_error(ours, theirs):
  """Largest difference over the largest reference value; shapes must agree."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.shape == theirs.shape
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@functools.cache
def fixture(name):
  with np.load(FIXTURES / f"{name}.npz") as file:
    return dict(file)


@functools.cache
def network(name):
  """(model, template of its variables, its golden images)."""
  golden = fixture(name)
  model = bn.create_model(name, num_classes=int(golden["num_classes"]))
  images = golden_images(name, tuple(golden["image_shape"]))
  template = jax.eval_shape(model.init, jax.random.key(0), images)
  return model, template, images


@functools.lru_cache(maxsize=1)
def golden_variables(name):
  """The golden weights, through a checkpoint file in the foreign layout."""
  _, template, _ = network(name)
  layout = LAYOUT.get(name, "torchvision")
  blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
  tensors = {k: golden_tensor(k, v.shape) for k, v in to_layout(blank, layout).items()}
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, name + ".safetensors")
    save_file(tensors, path)
    loaded = load_pretrained(path, template, model_name=name)
  assert loaded.layout == layout
  return loaded.variables


@functools.cache
def train_step(name):
  """(variables, images, labels) -> (loss, (logits, new statistics)), gradients; compiled once."""
  model, _, _ = network(name)

  def loss_fn(params, batch_stats, images, labels):
    logits, changed = model.apply(
        {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, (logits, changed["batch_stats"])

  return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


@pytest.mark.parametrize("name", ALL)
def test_eval_logits_and_stages_equal_torch(name):
  golden, (model, _, images) = fixture(name), network(name)

  @jax.jit
  def forward(variables):
    logits, found = model.apply(variables, images, train=False, endpoints=True)
    stages = {k: (v.mean((0, 1, 2)), v.std((0, 1, 2))) for k, v in found.items() if v.ndim == 4}
    return logits, stages

  logits, stages = forward(golden_variables(name))
  wanted = {key.split("/")[1] for key in golden if key.startswith("eval/") and key.count("/") == 2}
  for stage in sorted(wanted):  # from stem to last stage: the first to differ is named
    mean, std = stages[stage]
    assert relative_error(mean, golden[f"eval/{stage}/mean"]) < TOLERANCE, stage
    assert relative_error(std, golden[f"eval/{stage}/std"]) < TOLERANCE, stage
  assert relative_error(logits, golden["eval/logits"]) < TOLERANCE


@pytest.mark.parametrize("name", TRAINED)
def test_train_step_equals_torch(name):
  # Fifty layers of batch statistics over two images are ill-conditioned: PyTorch's own float32
  # gradient norms differ from its float64 ones by 3e-3 there. In float64 nothing hides behind that.
  wide = name == "resnet50"
  with jax.enable_x64(wide):
    golden, (_, _, images) = fixture(name), network(name)
    dtype = np.float64 if wide else np.float32
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), golden_variables(name))
    labels = golden_labels(images.shape[0], int(golden["num_classes"]))
    (loss, (logits, stats)), grads = train_step(name)(
        variables["params"], variables["batch_stats"], images.astype(dtype), labels
    )
    norms = jax.tree.map(lambda grad: float(jnp.linalg.norm(grad)), grads)
  assert relative_error(logits, golden["train/logits"]) < TOLERANCE
  assert relative_error(loss, golden["train/loss"]) < TOLERANCE

  after = to_layout({"params": {}, "batch_stats": stats}, LAYOUT.get(name, "torchvision"))
  watched = [key for key in golden if key.startswith("train/stats/")]
  assert len(watched) == 6
  for key in watched:
    key = key.removeprefix("train/stats/")
    theirs = golden[f"train/stats/{key}"]
    if key.endswith("running_var"):
      # torch puts the unbiased variance into its running variance, Flax the biased one.
      count = golden["train/count/" + key.removesuffix(".running_var")]
      old = 0.9 * golden_tensor(key, theirs.shape)
      theirs = old + (theirs - old) * (count - 1) / count
    assert relative_error(after[key], theirs) < TOLERANCE, key

  layout = layouts.find_layout(LAYOUT.get(name, "torchvision"))
  ours = {
      layouts.slot(layout, ("params", *path)).key: norm
      for path, norm in layouts.flatten(norms).items()
  }
  theirs = dict(zip(golden["train/grad_keys"], golden["train/grad_norms"], strict=True))
  assert ours.keys() == theirs.keys()
  # Each norm against its own size.
  errors = {key: abs(ours[key] - theirs[key]) / theirs[key] for key in theirs}
  worst = max(errors, key=errors.get)
  assert errors[worst] < GRADIENT_TOLERANCE, (worst, errors[worst])


def test_sgd_steps_equal_torch():
  """Momentum with coupled weight decay on every parameter, as torch.optim.SGD does it."""
  name = "resnet20_cifar"
  golden, (_, _, images) = fixture(name), network(name)
  lr, momentum, weight_decay = (float(value) for value in golden["sgd/options"])
  optimizer = optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(lr, momentum))
  variables = golden_variables(name)
  params, stats = variables["params"], variables["batch_stats"]
  labels = golden_labels(images.shape[0], 10)
  state = optimizer.init(params)

  @jax.jit
  def update(grads, state, params):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  losses = []
  for _ in golden["sgd/losses"]:
    (loss, (_, stats)), grads = train_step(name)(params, stats, images, labels)
    params, state = update(grads, state, params)
    losses.append(float(loss))
  assert relative_error(losses, golden["sgd/losses"]) < TOLERANCE


IC_CASES = sorted({key.split("/")[0] for key in fixture("ic_conv")})


@pytest.mark.parametrize("case", IC_CASES)
def test_ic_conv_equals_torch(case):
  golden = {k.split("/")[1]: v for k, v in fixture("ic_conv").items() if k.startswith(case + "/")}
  stride, pad, dilation, groups = (int(value) for value in golden["options"])
  names = ("x", "kernel", "adjust", "inner_bias", "outer_bias", "alpha")

  @jax.jit
  def both(*inputs):
    def weighted(x, kernel, adjust, inner_bias, outer_bias, alpha):
      y = bn.ops.ic_conv(
          x, kernel, adjust, inner_bias=inner_bias, outer_bias=outer_bias, alpha=alpha,
          strides=stride, padding=((pad, pad),) * 2, kernel_dilation=dilation, groups=groups,
      )  # fmt: skip
      return (y * golden["g"]).sum(), y

    return jax.value_and_grad(weighted, argnums=range(6), has_aux=True)(*inputs)

  (_, y), grads = both(*(golden[name] for name in names))
  assert relative_error(y, golden["y"]) < TOLERANCE
  for name, grad in zip(names, grads, strict=True):
    assert relative_error(grad, golden[f"grad_{name}"]) < TOLERANCE, name


@pytest.mark.parametrize("case", ("far", "near"))
def test_wld_loss_equals_torch(case):
  golden = fixture("wld")
  student, teacher, labels = golden[f"{case}/student"], golden["teacher"], golden["labels"]
  for weight in (0.9, 0.1):
    for tau in (1.0, 4.0):

      def loss(logits, weight=weight, tau=tau):
        return bn.losses.wld_loss(
            logits, teacher, labels, distill_weight=weight, temperature=tau, tolerance=0.005
        ).mean()

      value, grad = jax.value_and_grad(loss)(jnp.asarray(student))
      key = f"{case}/w{weight}_t{tau}"
      assert relative_error(value, golden[key + "/loss"]) < TOLERANCE, key
      assert relative_error(grad, golden[key + "/grad"]) < TOLERANCE, key
