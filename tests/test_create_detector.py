"""`create_detector`: backbones, fields, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bionets_jax as bn
from bionets_jax.counting import abstract_variables, count_parameters
from bionets_jax.detection.create import DETECTORS, create_detector
from bionets_jax.detection.types import Objects

_NORMS = 53_120  # scales and biases of ResNet-50, constants in torchvision's counts
_BACKGROUND = 4 * 1025  # deltas of the background, which torchvision has
_SIXTH_LEVEL = (2048 - 256) * 256 * 9  # mmdetection's begins at the backbone


@pytest.mark.parametrize("kind,classes,parameters", [
    ("retinanet", 91, 34_014_999 + _NORMS), ("faster_rcnn", 90, 41_755_286 + _NORMS - _BACKGROUND)])
def test_published_sizes(kind, classes, parameters):
  """`num_params` of torchvision's COCO_V1."""
  detector = create_detector(kind, num_classes=classes, layout="torchvision")
  assert count_parameters(detector) == parameters
  if kind == "retinanet":
    assert count_parameters(detector.clone(layout="mmdetection")) == parameters + _SIXTH_LEVEL


@pytest.mark.parametrize("name,options,stages", [
    ("ic_resnet18", {"stage_sizes": (1, 1, 1, 1)}, ("stage1", "stage2", "stage3", "stage4")),
    ("mobilenet", {}, ("stage3", "stage4", "stage5", None)),
    ("efficientnet_b0", {"depth": 0.1}, ("stage2", "stage3", "stage5", "stage7")),
    ("vgg16", {}, ("stage2", "stage3", "stage4", "stage5"))])
def test_the_last_stage_of_each_stride(name, options, stages):
  strides = tuple(s for s, stage in zip((4, 8, 16, 32), stages, strict=True) if stage)
  detector = create_detector("faster_rcnn", name, strides=strides, backbone_options=options)
  assert detector.stages == tuple(s for s in stages if s)


@pytest.mark.parametrize("kind", DETECTORS)
def test_small_networks(kind):
  """Every field that makes a detector small; IC units in the backbone; raw predictions of each anchor."""
  small = {"faster_rcnn": dict(width=32, proposals_test=10), "retinanet": dict(tower_depth=1)}[kind]
  model = create_detector(
      kind, "ic_resnet18", 3, backbone_options=dict(stage_sizes=(1, 1, 1), width=8, stem="3x3"), strides=(2, 4),
      channels=16, anchor_scale=2.0, **small)
  out, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, 30, 48, 3))))
  assert "adjust" in str(jax.tree.structure(variables["params"]["backbone"]))
  assert "head" not in variables["params"]["backbone"]
  cells = {"retinanet": 15 * 24 + 8 * 12 + 4 * 6 + 2 * 3, "faster_rcnn": 15 * 24 + 8 * 12 + 4 * 6}[kind]
  if kind == "retinanet":
    assert (out.logits.shape, out.deltas.shape) == ((2, 9 * cells, 3), (2, 9 * cells, 4))
  else:
    assert sum(x.logits.shape[1] for x in out.first) == 3 * cells
    assert (out.logits.shape, out.deltas.shape) == ((2, 10, 4), (2, 10, 3, 4))
  sizes = [level[:, 2] - level[:, 0] for level in model.anchors((30, 48))]
  np.testing.assert_allclose([x.min() for x in sizes[:2]], [4 * 0.5**0.5, 8 * 0.5**0.5], rtol=1e-6)


@pytest.mark.parametrize("kind", DETECTORS)
def test_computes_in_bfloat16_and_keeps_float32_outside(kind):
  model = create_detector(
      kind, "resnet18", 3, dtype=jnp.bfloat16, channels=16, strides=(4, 8),
      backbone_options=dict(stage_sizes=(1, 1), width=8))
  images, sizes = jnp.zeros((2, 64, 64, 3)), jnp.full((2, 2), 64.0)
  objects = Objects(jnp.zeros((2, 4, 4)), jnp.zeros((2, 4), int), jnp.zeros((2, 4), bool))
  variables = abstract_variables(model, (64, 64, 3))
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}

  def both(variables):
    return (model.apply(variables, images, objects, sizes, True, jax.random.key(0), method="losses",
                        mutable=["batch_stats"]), model.apply(variables, images, sizes, method="detect"))

  (losses, state), found = jax.eval_shape(both, variables)
  assert {(x.shape, x.dtype) for x in losses.values()} == {((2,), jnp.dtype(jnp.float32))}
  assert jax.tree.structure(state["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
  assert [(x.shape, x.dtype.name) for x in found] == [
      ((2, 100, 4), "float32"), ((2, 100), "float32"), ((2, 100), "int32"), ((2, 100), "bool")]
  levels = jax.eval_shape(lambda v: model.apply(v, images, False, method="features"), variables)
  assert {x.dtype for x in levels} == {jnp.dtype(jnp.bfloat16)} and levels[0].shape == (2, 16, 16, 16)


@pytest.mark.parametrize("call,message", [
    (lambda: create_detector("retina_net"), r"unknown detector 'retina_net' \(did you mean 'retinanet'\?\)"),
    (lambda: create_detector("retinanet", "resnet5"), r"unknown model 'resnet5' \(did you mean"),
    (lambda: create_detector("retinanet", layout="detectron"), "layout='detectron': give 'mmdetection' or"),
    (lambda: create_detector("retinanet", chanels=3), r"no option 'chanels' \(did you mean 'channels', "),
    (lambda: create_detector("retinanet", width=3), "'retinanet' has no option 'width'"),
    (lambda: create_detector("retinanet", channels="64"), "channels='64': give a whole number"),
    (lambda: create_detector("retinanet", strides=8), r"strides=8: give a tuple"),
    (lambda: create_detector("retinanet", strides=(16, 8)), r"strides=\(16, 8\): give one or more, rising"),
    (lambda: create_detector("retinanet", strides=()), r"strides=\(\): give one or more, rising"),
    (lambda: create_detector("retinanet", anchor_scale=0.0), "anchor_scale=0.0: give more than 0"),
    (lambda: create_detector("retinanet", least=5.0), "least=5.0: give a number from 0 to 1"),
    (lambda: create_detector("retinanet", num_classes=0), "num_classes=0: give 1 or more"),
    (lambda: create_detector("retinanet", num_classes="20"), "num_classes='20': give a whole number"),
    (lambda: create_detector("retinanet", backbone_options={"num_classes": 3}), "num_classes is the detector's"),
    (lambda: create_detector("faster_rcnn", "mobilenet"), "no stage of stride 32; its strides are stage1 1, stage2 2"),
    (lambda: create_detector("retinanet", "resnet20_cifar"), "no stage of stride 8; its strides are stage1 1"),
])
def test_what_makes_no_sense_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_features_of_another_stride():
  model = create_detector("retinanet", "resnet18", backbone_options=dict(stage_sizes=(1, 1, 1, 1), width=8))
  wrong = model.clone(backbone=bn.create_model("resnet18", 0, stage_sizes=(1, 1, 1, 1), width=8, stem="3x3"))
  with pytest.raises(ValueError, match="stage2 of the backbone has 32 x 48 cells for images of 64 x 96; with a stride"):
    abstract_variables(wrong, (64, 96, 3))
