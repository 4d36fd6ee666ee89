"""RetinaNet against torchvision's, with the same weights: predictions, detections and losses."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.golden_weights import golden_images, golden_tensor
from flax.traverse_util import flatten_dict, unflatten_dict

import bionets_jax as bn
from bionets_jax.detection import retinanet
from bionets_jax.detection.anchors import Anchors, octaves
from bionets_jax.detection.pyramid import FeaturePyramid, nearest
from bionets_jax.detection.retinanet import Predictions, RetinaNet
from bionets_jax.detection.types import Objects

GOLDEN = np.load(pathlib.Path(__file__).parent / "fixtures" / "detection.npz")
SIZE = (128, 192)
SIZES = tuple(tuple(float(int(s)) for s in octaves(32.0 * 2**i, 3)) for i in range(5))
BACKBONE = functools.partial(bn.create_model, "resnet18", stage_sizes=(1, 1, 1, 1))
OBJECTS = Objects(
    jnp.array([[[5.0, 5, 60, 70], [40, 20, 100, 90], [0, 0, 0, 0]], [[30, 30, 50, 55], [0, 0, 0, 0], [0, 0, 0, 0]]]),
    jnp.array([[1, 3, 0], [4, 0, 0]]), jnp.array([[1, 1, 0], [1, 0, 0]], bool))


@pytest.fixture(scope="module")
def model():
  # The strides of the two coarsest levels are those that torchvision takes from the features' sizes.
  anchors = Anchors((8, 16, 32, 64, 96), SIZES, rounded=True)
  return RetinaNet(BACKBONE().clone(num_classes=None), 5, anchors, extra="convs_on_output")


@pytest.fixture(scope="module")
def variables(model):
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *SIZE, 3))))
  return unflatten_dict({path: golden(path, leaf.shape) for path, leaf in flatten_dict(shapes).items()})


def golden(path, shape):
  """What torchvision's leaf of that meaning has in the fixture."""
  key = torch_key(path)
  if path[-1] != "kernel":
    return golden_tensor(key, shape)
  value = golden_tensor(key, (shape[3], shape[2], shape[0], shape[1])).transpose(2, 3, 1, 0)
  return 0.25 * value if path[-2] == "out" else value


def torch_key(path):
  leaf = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}[path[-1]]
  part, *names = path[1:-1]
  if part == "backbone":
    block = names[0]
    if block.startswith("stem"):
      return f"backbone.body.{ {'stem_conv': 'conv1', 'stem_bn': 'bn1'}[block]}.{leaf}"
    stage, at = block.removeprefix("stage").split("_block")
    layer = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}.get(names[1], names[1])
    return f"backbone.body.layer{stage}.{at}.{layer}.{leaf}"
  if part == "pyramid":
    kind, at = names[0][:5], int(names[0][5:])
    return f"backbone.fpn.extra_blocks.p{6 + at}.{leaf}" if kind == "extra" else f"backbone.fpn.{kind}_blocks.{at}.0.{leaf}"
  head, out = {"classes": ("classification_head", "cls_logits"), "boxes": ("regression_head", "bbox_reg")}[part]
  layer = out if names[0] == "out" else f"conv.{names[0].removeprefix('conv')}.0"
  return f"head.{head}.{layer}.{leaf}"


@pytest.fixture(scope="module")
def predicted(model, variables):
  return jax.jit(model.apply)(variables, golden_images("retinanet", (2, *SIZE, 3)))


def test_predictions(predicted):
  for have, key in zip(predicted, ("logits", "deltas"), strict=True):
    want = GOLDEN[f"retinanet/{key}"]
    assert have.shape == want.shape and have.dtype == jnp.float32
    assert np.linalg.norm(have - want) <= 1e-5 * np.linalg.norm(want)


def test_detections(model):
  levels = model.anchors(model.anchors.shapes(SIZE))
  levels[-1] = GOLDEN["anchors"][-len(levels[-1]):]
  want = Predictions(*(jnp.asarray(GOLDEN[f"retinanet/{key}"]) for key in ("logits", "deltas")))
  found = jax.jit(lambda predicted, sizes: retinanet.detect(predicted, levels, sizes, limit=300))(
      want, jnp.array([SIZE, (100, 150)]))
  for i in range(2):
    assert found.present[i].all()
    np.testing.assert_allclose(found.scores[i], GOLDEN[f"retinanet/scores/{i}"], atol=1e-5)
    np.testing.assert_allclose(found.boxes[i], GOLDEN[f"retinanet/boxes/{i}"], atol=2e-3)
    np.testing.assert_array_equal(found.labels[i], GOLDEN[f"retinanet/labels/{i}"])


def test_losses(predicted):
  find = jax.jit(functools.partial(retinanet.losses, anchors=GOLDEN["anchors"], objects=OBJECTS, rescue="nearest", each_image=True))
  found = find(predicted)
  np.testing.assert_allclose([found["classes"].mean(), found["boxes"].mean()], GOLDEN["retinanet/losses"], rtol=1e-5)


def test_images_without_objects(predicted):
  """They have a loss of the background alone, and gradients without NaN, whatever the padding holds."""
  nothing = OBJECTS._replace(present=jnp.zeros((2, 3), bool))

  @jax.jit
  def total(predicted):
    return sum(x.mean() for x in retinanet.losses(predicted, GOLDEN["anchors"], nothing).values())

  value, gradients = jax.value_and_grad(total)(predicted)
  assert np.isfinite(value) and value > 0 and all(np.isfinite(g).all() for g in gradients)
  assert not gradients.deltas.any()


def test_what_is_not_there_is_not_detected():
  nothing = Predictions(jnp.full((1, 27, 2), -9.0), jnp.zeros((1, 27, 4)))
  levels = Anchors((8,), ((8.0, 16.0, 32.0),))([(1, 3)])
  found = retinanet.detect(nothing, levels, jnp.array([[8, 24]]), limit=7)
  assert found.boxes.shape == (1, 7, 4) and not found.present.any() and (found.scores == 0).all()


def test_nearest_is_pytorchs():
  """Where sizes are no multiples PyTorch takes floor(i * in / out)."""
  x = jnp.arange(5.0).reshape(1, 1, 5, 1)
  np.testing.assert_array_equal(nearest(x, (1, 8))[0, 0, :, 0], [0, 0, 1, 1, 2, 3, 3, 4])
  np.testing.assert_array_equal(nearest(x, (2, 10))[0, 1, :, 0], np.repeat(np.arange(5), 2))


def test_pyramids_of_each_kind():
  features = [jnp.zeros((1, 13, 9, 8)), jnp.zeros((1, 7, 5, 16))]
  def shapes(extra):
    return [x.shape for x in jax.eval_shape(FeaturePyramid(extra, 32).init_with_output, jax.random.key(0), features)[0]]
  assert shapes("") == [(1, 13, 9, 32), (1, 7, 5, 32)]
  assert shapes("pool")[2:] == [(1, 4, 3, 32)]
  assert shapes("convs_on_input")[2:] == shapes("convs_on_output")[2:] == [(1, 4, 3, 32), (1, 2, 2, 32)]
  with pytest.raises(ValueError, match="extra='p6': give '' or one of 'pool'"):
    shapes("p6")


def test_any_backbone_with_ic_units():
  backbone = bn.create_model("ic_resnet18", stage_sizes=(1, 1, 1, 1)).clone(num_classes=None)
  net = RetinaNet(backbone, 20)
  out, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros((2, 64, 96, 3)))
  cells = sum(h * w for h, w in net.anchors.shapes((64, 96)))
  assert out.logits.shape == (2, 9 * cells, 20) and net.anchors_of((64, 96)).shape == (9 * cells, 4)
  assert "adjust" in str(jax.tree.structure(variables["params"]["backbone"]))
