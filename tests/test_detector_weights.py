"""Reading torchvision's detectors from their `state_dict`, and writing them."""

import hashlib

import jax
import numpy as np
import pytest
from golden_detectors import golden_file, golden_state
from safetensors.numpy import save_file

from bionets_jax.detection import from_torchvision
from bionets_jax.detection.create import DETECTORS
from bionets_jax.detection.faster_rcnn import FasterRCNN
from bionets_jax.detection.from_torchvision import load, to_torchvision
from bionets_jax.detection.retinanet import RetinaNet

# What torchvision's files had before its convolutions came with their norms: new key -> old.
OLD = {
    "retinanet": {f"head.{head}.conv.{i}.0.": f"head.{head}.conv.{2 * i}." for i in range(4)
                  for head in ("classification_head", "regression_head")},
    "faster_rcnn": {"rpn.head.conv.0.0.": "rpn.head.conv."}}
for names in OLD.values():
  names |= {f"{kind}_blocks.{i}.0.": f"{kind}_blocks.{i}." for i in range(4) for kind in ("inner", "layer")}
ONE = np.zeros(1, np.float32)
KEYS = {"retinanet": "head.regression_head.bbox_reg.bias", "faster_rcnn": "roi_heads.box_head.fc7.bias"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("weights")
  return {kind: golden_file(kind, folder) for kind in DETECTORS}


@pytest.fixture(scope="module")
def loaded(files):
  return {kind: load(path, num_classes=5) for kind, path in files.items()}


@pytest.fixture(scope="module")
def states():
  return {kind: golden_state(kind) for kind in DETECTORS}


@pytest.mark.parametrize("kind", DETECTORS)
def test_there_and_back(kind, loaded, states):
  detector, variables = loaded[kind]
  assert type(detector) is {"retinanet": RetinaNet, "faster_rcnn": FasterRCNN}[kind]
  assert (detector.num_classes, detector.layout) == (5, "torchvision")
  assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
  written = to_torchvision(detector, variables)
  assert written.keys() == states[kind].keys()
  for key, value in states[kind].items():
    if "box_predictor.bbox_pred" in key:  # of the background, which nobody reads
      value = np.concatenate([np.zeros_like(value[:4]), value[4:]])
    assert written[key].dtype == value.dtype and written[key].tobytes() == value.tobytes(), key


@pytest.mark.parametrize("kind", DETECTORS)
def test_files_of_old_versions(kind, states, loaded, tmp_path):
  old = {}
  for key, value in states[kind].items():
    for new, before in OLD[kind].items():
      if new in key:
        key = key.replace(new, before)
        break
    old[key] = value
  assert old.keys() != states[kind].keys()
  save_file(old, tmp_path / "old.safetensors")
  detector, variables = load(tmp_path / "old.safetensors", norm_epsilon=1e-5)
  assert detector == loaded[kind][0]
  jax.tree.map(np.testing.assert_array_equal, variables, loaded[kind][1])


def test_epsilon_of_the_published_files(files, loaded, monkeypatch):
  """They have none: scales are such that ours makes no difference. Known by their hash."""
  path, usual = files["retinanet"], loaded["retinanet"][1]
  monkeypatch.setattr(from_torchvision, "_WITHOUT_EPSILON", (hashlib.sha256(path.read_bytes()).hexdigest()[:8],))
  _, without = load(path)
  jax.tree.map(np.testing.assert_array_equal, load(path, norm_epsilon=0.0)[1], without)
  norms = [{"var": tree["batch_stats"]["backbone"]["stem_bn"]["var"], **tree["params"]["backbone"]["stem_bn"]}
           for tree in (without, usual)]
  np.testing.assert_array_equal(norms[0]["var"], norms[1]["var"])
  np.testing.assert_allclose(
      norms[0]["scale"] / np.sqrt(norms[0]["var"] + 1e-5), norms[1]["scale"] / np.sqrt(norms[1]["var"]), rtol=1e-6)


@pytest.mark.parametrize("kind,change,message", [
    ("retinanet", lambda s: s.pop(KEYS["retinanet"]), r"missing in the file \(1\):\s+params/boxes/out/bias"),
    ("faster_rcnn", lambda s: s.update({KEYS["faster_rcnn"]: np.zeros(7, np.float32)}),
     r"misshapen \(1\):\s+params/head/hidden1/bias"),
    ("faster_rcnn", lambda s: s.update({"roi_heads.box_predictor.cls_score.weight": np.zeros((), "f4")}), "num_classes=0: give 1"),
    ("faster_rcnn", lambda s: s.update({"rpn.more": ONE}), r"left over in the file \(1\):\s+rpn.more"),
    ("faster_rcnn", lambda s: s.update({"roi_heads.mask_head.0.0.weight": ONE}), "a Mask R-CNN"),
    ("faster_rcnn", lambda s: s.update({"roi_heads.box_head.0.0.weight": ONE}), "fpn_v2"),
    ("retinanet", lambda s: s.update({"head.classification_head.conv.0.1.weight": ONE}), "group norms"),
    ("retinanet", lambda s: s.update({"head.classification_head.cls_logits.weight": np.zeros((7, 256, 3, 3), "f4")}),
     "has 7 outputs, which 9 anchors"),
    ("retinanet", lambda s: [s.pop(key) for key in list(s) if key.startswith("backbone.body.")],
     "its backbone is none of"),
    ("retinanet", lambda s: [s.pop(key) for key in list(s) if key.startswith("head")],
     "neither of torchvision's detectors that are here; its .* tensors begin with"),
    ("retinanet", lambda s: [s.update({key.removeprefix("backbone.body."): s.pop(key)}) for key in list(s)],
     "a network for classification, no detector; weights.load reads it"),
])
def test_other_files_are_refused(kind, change, message, states, tmp_path):
  state = dict(states[kind])
  change(state)
  if "classification, no" in message:
    state = {key: value for key, value in state.items() if not key.startswith(("head", "backbone"))}
  save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, tmp_path / "state.safetensors")
  with pytest.raises(ValueError, match=message):
    load(tmp_path / "state.safetensors")


def test_what_does_not_fit_is_refused(files, loaded, tmp_path):
  with pytest.raises(ValueError, match="has 5 classes, not 20"):
    load(files["retinanet"], num_classes=20)
  with pytest.raises(FileNotFoundError, match="no such file"):
    load(tmp_path / "absent.pth")
  detector, variables = loaded["retinanet"]
  with pytest.raises(ValueError, match="layout='mmdetection': with these weights torchvision's"):
    to_torchvision(detector.clone(layout="mmdetection"), variables)
