"""Detectors in the one trainer: what is trained and what stays, devices, shapes, resuming, learning."""

import json
import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import change

import bionets_jax as bn
from bionets_jax.data import make_voc
from bionets_jax.detection import predict
from bionets_jax.detection.average_precision import Picture, average_precision
from bionets_jax.training import config as config_lib
from bionets_jax.training.config import detection_config
from bionets_jax.training.evaluation import evaluate_workdir
from bionets_jax.training.first_fault import find_first_fault
from bionets_jax.training.loop import Interrupted, NotTogether, train, train_together
from bionets_jax.training.program import jit_init, jit_train_step
from bionets_jax.training.setup import check_values, make_setup
from bionets_jax.training.writer import read_metrics
from bionets_jax.weights.native import save_native
from configs.shapes_detection import get_config

BACKBONE = dict(width=8, stage_sizes=(1, 1, 1, 1))
SMALL = {
    "retinanet": dict(anchor_scale=2.0, channels=16, tower_depth=1),
    "faster_rcnn": dict(anchor_scale=4.0, channels=16, width=16, proposals_train=40, proposals_test=20,
                        anchor_samples=16, region_samples=8)}


def quiet(text):
  pass


def small_config(kind="retinanet", **changes):
  """A narrow detector on made-up shapes, which end in two static shapes."""
  config = detection_config()
  config.detector.kind, config.detector.options = kind, ml_collections.ConfigDict(SMALL[kind])
  config.model.name, config.model.options = "resnet18", ml_collections.ConfigDict(BACKBONE)
  config.frozen, config.batch_norm = "", "global"
  config.data.name, config.data.workers = "generated/shapes", 0
  config.data.train_split, config.data.eval_split = "train[:160]", "test[:20]"
  config.data.train_transform, config.data.eval_transform = "flip|letterbox(32, 64)", "letterbox(32, 64)"
  config.data.mean, config.data.std = (0.5,), (0.25,)
  config.batch_size = 8
  config.duration, config.eval_every, config.checkpoint_every = "6 steps", "3 steps", "2 steps"
  config.log_every = "1 steps"
  config.schedule.kind, config.schedule.lr = "constant", 0.01
  return change(config, changes)


def is_evaluation(text):
  return text.startswith("step") and "  eval  " in text


def leaves(tree):
  return {"/".join(path): np.asarray(x) for path, x in flatten_dict(tree).items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """A file of a backbone that was trained for ten classes, with running statistics of its own."""
  model = bn.create_model("resnet18", 10, **BACKBONE)
  variables = model.init(jax.random.key(3), np.zeros((1, 32, 32, 3), np.float32), train=False)
  variables = jax.tree.map(lambda x: np.asarray(x) + 0.01, dict(variables))
  path = f"{tmp_path_factory.mktemp('weights')}/backbone.safetensors"
  save_native(path, variables, {
      "model": "resnet18", "options": BACKBONE, "num_classes": 10, "class_names": list("abcdefghij"),
      "image_shape": [32, 32, 3], "preprocessing": {"mean": [0.4], "std": [0.3], "image_size": 32, "resize": 32}})
  return path, variables


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """(config, workdir, what it said and each program that was compiled, in order, the keys it read) of a whole run."""
  folder = tmp_path_factory.mktemp("detection")
  config = small_config(compile_cache=f"{folder}/cache", schedule__kind="step", optimizer__kind="rmsprop", schedule__lr=1e-4)
  said, owners, read = [], {}, set()

  def compiled(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      said.append("compiled")

  def note(node, prefix):
    owners[id(node)] = prefix
    for key, value in node.items():
      if isinstance(value, ml_collections.ConfigDict):
        note(value, f"{prefix}{key}.")

  def recording(self, name):
    if id(self) in owners:
      read.add(owners[id(self)] + name)
    return real(self, name)

  note(config, "")
  real = ml_collections.ConfigDict.__getattr__
  jax.monitoring.register_event_duration_secs_listener(compiled)
  try:
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(ml_collections.ConfigDict, "__getattr__", recording)
      train(config, f"{folder}/whole", say=said.append, devices=jax.devices()[:1])
  finally:
    jax.monitoring.unregister_event_duration_listener(compiled)
  return config, f"{folder}/whole", said, read


def test_nothing_is_compiled_once_each_shape_was_seen(whole):
  config, workdir, said, _ = whole
  setup = make_setup(config, jax.devices()[:1])
  shapes = {batch["image"][0] for batch in setup.pipeline.abstract_batches()}
  assert shapes == {(8, 32, 64, 3), (8, 64, 32, 3)}
  first = next(i for i, text in enumerate(said) if is_evaluation(text))
  assert "compiled" in said[:first]
  steps = [i for i, text in enumerate(said) if text.startswith("step") and " train " in text]
  assert len(steps) == 6 and "compiled" not in said[steps[0]:steps[2]]
  assert "compiled" not in said[first:steps[-1]]
  # The second evaluation: both of its shapes are known since the first.
  second = next(i for i, text in enumerate(said) if is_evaluation(text) and i > first)
  assert "compiled" not in said[steps[-1]:second]


def stop_after_three(text):
  """What a run says; SIGTERM once it has made three steps."""
  if text.startswith("step      3 ") and " train " in text:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_was_stopped_ends_with_the_same_bytes(whole):
  config, workdir, _, _ = whole
  cut = f"{workdir}_cut"

  with pytest.raises(Interrupted):
    train(config, cut, say=stop_after_three, devices=jax.devices()[:1])
  summary = train(config, cut, say=quiet, devices=jax.devices()[:1]).summary
  for name in ("weights.safetensors",):
    with open(f"{workdir}/{name}", "rb") as one, open(f"{cut}/{name}", "rb") as other:
      assert one.read() == other.read()
  known = {"loss", "loss_classes", "loss_boxes", "ap50_voc07"}
  of = [[{k: v for k, v in line.items() if k.partition("/")[2] in known} for line in read_metrics(f"{w}/metrics.jsonl")]
        for w in (workdir, cut)]
  assert of[0] == of[1] and summary["last"]["step"] == 6
  again = evaluate_workdir(config, cut, say=quiet)
  assert again["ap50_voc07"] == summary["last"]["ap50_voc07"]


def test_what_is_frozen_stays_and_the_rest_learns(weights):
  """The stem, stage 1 and all running statistics stay; scales and biases of the other norms learn, and so do the units
  that the file lacks."""
  path, variables = weights
  config = small_config(
      model__name="ic_resnet18", model__weights=path, frozen="^backbone/(stem|stage1)", batch_norm="frozen",
      data__mean=(), data__std=(), optimizer__weight_decay=0.1, data__train_transform="letterbox(64, 64)")
  config.model.options.alpha = "learned"
  setup = make_setup(config, jax.devices()[:1])
  state, step = jit_init(setup)(jax.random.key(0), setup.inherited), jit_train_step(config, setup)
  batches = setup.pipeline.train_batches()
  for _ in range(2):  # alpha begins at 0, and what it multiplies moves from the second step on
    state, metrics = step(state, {}, [next(batches)], [np.uint32(0)])
  batches.close()
  assert setup.task.mean == (0.4,) and "alpha" in metrics
  before, after = leaves(variables["params"]), leaves(state.params["backbone"])
  assert {"head/kernel", "head/bias"} == before.keys() - after.keys() and after.keys() - before.keys()
  stays = {name for name in after if name.startswith(("stem", "stage1"))}
  assert {name.rpartition("/")[2] for name in stays} >= {"kernel", "scale", "alpha"}
  started = leaves(jit_init(setup)(jax.random.key(0), setup.inherited).params["backbone"])
  for name in after:
    assert (started[name] == before.get(name, started[name])).all(), name
    assert (started[name] == after[name]).all() == (name in stays), name
  stats, kept = leaves(variables["batch_stats"]), leaves(state.model_state["batch_stats"]["backbone"])
  assert kept.keys() == stats.keys() and all((stats[name] == kept[name]).all() for name in kept)


def test_four_devices_compute_what_one_does():
  """Losses, and the whole split's average precision, of the same weights."""
  config = small_config("faster_rcnn", data__eval_split="test[:12]", eval_batch_size=8, model__options__stage_sizes=(1, 1),
                        data__train_transform="letterbox(64, 64)", data__eval_transform="letterbox(64, 64)")
  config.detector.options.strides = (4, 8)
  found = []
  for devices in (1, 4):
    setup = make_setup(config, jax.devices()[:devices])
    task = setup.task
    state = jit_init(setup)(jax.random.key(0), {})

    @jax.jit
    def both(params, model_state, train, test, task=task):
      values, _, metrics = task.train_losses(params, model_state, {}, train, 0, jax.random.key(1))
      return values, metrics, task.examples(params, model_state, test)

    batches, kept = setup.pipeline.train_batches(), []
    batch = next(batches)
    batches.close()
    for test in setup.pipeline.eval_batches():
      values, metrics, examples = jax.device_get(both(state.params, state.model_state, batch, test))
      kept.append(examples)
    nothing = jax.tree.map(lambda x: x * np.nan, state.params)
    lost = jax.device_get(both(nothing, state.model_state, batch, test))[2]
    assert not lost["found"].any() and np.isnan(task.measure(lost)["ap50_voc07"])  # no precision of 0
    kept = {name: np.concatenate([one[name] for one in kept]) for name in kept[0]}
    assert kept["mask"].sum() == 12 and sorted(kept["index"][kept["mask"] > 0]) == list(range(12))
    found.append((values, metrics, task.measure(kept)))
  (one, one_parts, one_ap), (four, four_parts, four_ap) = found
  np.testing.assert_allclose(one, four, rtol=2e-4)
  for name in one_parts:
    np.testing.assert_allclose(one_parts[name], four_parts[name], rtol=1e-3, atol=1e-6)
  np.testing.assert_allclose(sum(v for k, v in one_parts.items() if k.startswith("loss_")), one, rtol=1e-5)
  assert one_ap.keys() == four_ap.keys() and one_ap["ap50_voc07"] == pytest.approx(four_ap["ap50_voc07"], abs=0.5)


def test_a_detector_learns(tmp_path):
  """The short form of benchmarks/detection_learning.py: 60 steps of the shipped config in small, from nothing."""
  config = get_config("retinanet,ic_resnet18")
  config.detector.options.update(channels=32, tower_depth=1)
  config.data.eval_split, config.data.workers, config.batch_size = "test[:20]", 0, 8
  config.data.train_transform, config.data.eval_transform = "flip|letterbox(96, 96)", "letterbox(96, 96)"
  config.duration, config.log_every, config.eval_every = "60 steps", "10 steps", "1000 steps"
  config.schedule.lr, config.schedule.warmup = 4e-4, "10 steps"
  result = train(config, str(tmp_path / "run"), say=quiet, devices=jax.devices()[:1])
  losses = [line["train/loss"] for line in read_metrics(f"{tmp_path}/run/metrics.jsonl") if "train/loss" in line]
  assert losses[-1] < 0.85 * losses[0] and 0 <= result.summary["last"]["ap50"] <= 100


@pytest.mark.skipif(not os.environ.get("BIONETS_TEST_SLOW"), reason="BIONETS_TEST_SLOW is not set; 1 minute")
def test_voc_from_its_files_to_predictions(tmp_path):
  """Made-up pictures in VOC's folders, prepared as TFDS has them; trained on, stopped, gone on with, evaluated, used."""
  assert make_voc.main([str(tmp_path)]) == 0
  config = small_config(
      data__name="voc", data__dir=str(tmp_path), data__train_split="2007/train+2012/train[:50%]",
      data__eval_split="2007/test", batch_size=4, compile_cache=f"{tmp_path}/cache")
  workdir = f"{tmp_path}/run"

  with pytest.raises(Interrupted):
    train(config, workdir, say=stop_after_three, devices=jax.devices()[:1])
  last = train(config, workdir, say=quiet, devices=jax.devices()[:1]).summary["last"]
  assert last["step"] == 6 and {"class/person", "class/sofa"} <= last.keys()
  assert evaluate_workdir(config, workdir, say=quiet)["ap50"] == last["ap50"]
  images = sorted(map(str, (tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages").glob("*.jpg")))[:2]
  assert predict.main([*images, f"--workdir={workdir}", "--least=0"]) == 0
  written = json.loads((tmp_path / "run" / "detections" / "detections.json").read_text())
  assert len(written["images"]) == 2 and len(os.listdir(tmp_path / "run" / "detections")) == 3


def test_what_the_long_form_reached_is_what_the_page_says():
  root = pathlib.Path(__file__).parent.parent
  runs = json.loads((root / "benchmarks/results/detection_learning.json").read_text())["runs"]
  assert {one["run"] for one in runs} == {"retinanet,resnet18", "retinanet,ic_resnet18", "faster_rcnn,resnet18", "faster_rcnn,ic_resnet18"}
  page = (root / "docs/detection.md").read_text()
  for one in runs:
    assert one["ap50"] >= 80
    assert f"| `{one['run']}` | {one['ap50']:.1f} | {one['ap']:.1f} | {one['minutes']:.0f} |" in page


def test_boxes_are_measured_in_pixels_of_the_picture_itself():
  """Detections that are the objects themselves, in the padded image: all of them are found, wherever they were."""
  setup = make_setup(small_config(data__eval_split="test"), jax.devices()[:1])
  source, pictures = setup.pipeline._parts["eval"].source, []
  for batch in setup.pipeline.eval_batches():
    found = {**{k: np.asarray(batch[k]) for k in ("label", "present", "difficult", "index", "mask")},
             "boxes": np.asarray(batch["boxes"]) / np.tile(np.asarray(batch["scale"])[:, None, ::-1], 2)}
    found |= dict(found_boxes=found["boxes"], found_labels=found["label"], found=found["present"] & ~found["difficult"],
                  found_scores=np.ones(found["label"].shape, np.float32), finite=found["mask"] > 0)
    pictures.append(found)
  whole = {name: np.concatenate([one[name] for one in pictures]) for name in pictures[0]}
  values = setup.task.measure(whole)
  assert values["ap50_voc07"] == pytest.approx(100) and values["ap"] == pytest.approx(100)
  read = [source.read(i)[1] for i in range(len(source))]  # the same from what the source says
  direct = average_precision(
      [Picture(i, a.boxes[~a.difficult], np.ones((~a.difficult).sum()), a.labels[~a.difficult], *a)
       for i, a in enumerate(read)], source.class_names)
  assert direct.means["ap75"] == pytest.approx(values["ap75"])


def test_runs_that_meet_shapes_in_another_order_are_not_made_side_by_side(tmp_path):
  runs = [(small_config(seed=seed), str(tmp_path / f"seed_{seed}")) for seed in (0, 1)]
  with pytest.raises(NotTogether, match="several shapes"):
    train_together(runs, say=quiet, devices=jax.devices()[:1])


def test_the_layer_at_fault_is_found_in_a_detector():
  """Also where blocks are computed again in the backward pass."""
  config = small_config(remat="blocks", data__train_transform="letterbox(64, 64)")
  setup = make_setup(config, jax.devices()[:1])
  state = jax.jit(setup.init)(jax.random.key(0), {})
  batches = setup.pipeline.train_batches()
  batch = next(batches)
  batches.close()
  broken = batch["image"].astype(jnp.float32).at[5, 0, 0].set(jnp.inf)
  found = find_first_fault(setup.task, state, {}, batch | {"image": broken}, step=0, seed=0, accumulate=1,
                           mesh=setup.mesh)
  assert found.layer.startswith("backbone/stem") and found.rows == (5,)


def test_every_key_of_a_detection_config_is_read(whole):
  config, _, _, read = whole
  known = {k for k in config_lib.flatten(config) if not k.startswith(("model.options", "detector.options", "paper"))}
  assert known - read == set()


@pytest.mark.parametrize("changes,message", [
    (dict(detector__kind="retina_net"), "config.detector: unknown detector 'retina_net'.*did you mean 'retinanet'"),
    (dict(detector__kind=""), "faster_rcnn, retinanet"),
    (dict(detector__options=ml_collections.ConfigDict(dict(num_classes=3))), "options.num_classes: .*the data decides"),
    (dict(model__name="resnet20_cifar"), "no stage of stride"),
    (dict(frozen="^backbone/stem"), "config.model.weights is empty"),
    (dict(batch_norm="frozen"), "config.model.weights is empty"),
    (dict(frozen="(", model__weights="x"), "no regular expression"),
    (dict(batch_norm="group(2)"), "groups\\(n\\)"),
    (dict(mixup=0.2), "config.mixup: nothing reads this key.*'classification'"),
    (dict(detector__kin="retinanet"), "config.detector.kin: nothing reads this key.*detector.kind"),
])
def test_slips_in_a_config_are_named(changes, message):
  config = small_config()
  with config.unlocked(), config.detector.unlocked():
    change(config, changes)
  with pytest.raises(ValueError, match=message):
    check_values(config)


@pytest.mark.parametrize("changes,message", [
    (dict(frozen="^backbone/stage9", data__train_transform="letterbox(64, 64)"),
     "config.frozen='\\^backbone/stage9' is found in no parameter's path"),
    (dict(frozen="/", data__train_transform="letterbox(64, 64)"), "every parameter's path, and nothing would be"),
    (dict(data__drop_remainder=False), "drop_remainder"),
    (dict(data__train_transform="flip"), "letterbox"),
    (dict(data__name="digits", data__train_split="train", data__eval_split="test", data__train_transform="",
          data__eval_transform=""), "'digits' has labels"),
])
def test_data_that_do_not_fit_are_named(changes, message, weights):
  with pytest.raises(ValueError, match=message):
    make_setup(small_config(model__weights=weights[0], **changes), jax.devices()[:1])


def test_objects_are_no_labels():
  config = config_lib.classification_config()
  config.model.name, config.data.name = "resnet18", "generated/shapes"
  config.data.train_transform = config.data.eval_transform = "letterbox(32, 64)"
  with pytest.raises(ValueError, match="'generated/shapes' has boxes"):
    make_setup(config, jax.devices()[:1])
