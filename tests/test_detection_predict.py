"""Detectors of finished runs: loaded, asked about images of any size, and what they find drawn and written."""

import json
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image, ImageOps

from bionets_jax import detection, weights
from bionets_jax.data.letterbox import Letterbox
from bionets_jax.detection import loading, predict
from bionets_jax.detection.drawing import COLOURS, draw
from bionets_jax.detection.finding import Finder, read_upright
from bionets_jax.detection.images import normalized
from bionets_jax.detection.loading import LoadedDetector
from bionets_jax.detection.types import Detections
from bionets_jax.weights.native import save_native

COMPILED = "/jax/core/compile/backend_compile_duration"
PREPROCESSING = weights.Preprocessing((0.5,) * 3, (0.25,) * 3, image_size=64, resize=64)
OPTIONS = {"backbone": "resnet18", "backbone_options": {"stage_sizes": [1, 1, 1, 1], "width": 8}, "channels": 8}
ABOUT = {
    "task": "detection", "model": "retinanet", "options": OPTIONS, "num_classes": 2, "class_names": ["cat", "dog"],
    "image_shape": [64, 96, 3], "eval_transform": "letterbox(64, 96)",
    "preprocessing": {"mean": [0.5], "std": [0.25], "image_size": 64, "resize": 64, "interpolation": "bilinear"}}


class Brightest(nn.Module):
  """Finds the box around the pixels brighter than half, as class 1, and nothing else."""

  least: float = 0.05

  def detect(self, images, sizes):
    bright = images[0, ..., 0] > 0
    ends = [(jnp.argmax(line), len(line) - jnp.argmax(line[::-1])) for line in (bright.any(0), bright.any(1))]
    box = jnp.stack([ends[0][0], ends[1][0], ends[0][1], ends[1][1]]).astype(jnp.float32)
    scores = jnp.array([[0.9, 0.2]])
    return Detections(jnp.stack([box, box])[None], scores, jnp.array([[1, 0]]), scores >= self.least)


@pytest.fixture
def brightest():
  return LoadedDetector(
      Brightest(), "brightest", {}, 2, {}, ("cat", "dog"), PREPROCESSING, Letterbox(64, 96), "a file")


@pytest.fixture
def image():
  """Of 300 x 200 pixels, black but for a box from (60, 30) to (120, 150)."""
  array = np.zeros((200, 300, 3), np.uint8)
  array[30:150, 60:120] = 255
  return array


def test_boxes_are_in_pixels_of_the_image(brightest, image):
  for one, want in ((image, [60, 30, 120, 150]), (image.swapaxes(0, 1), [30, 60, 150, 120])):
    found = Finder(brightest)(one)
    assert found.labels.tolist() == [1, 0]
    np.testing.assert_allclose(found.boxes, [want, want], atol=200 / 64)  # to a pixel of the smaller image
  assert Finder(brightest, least=0.3)(image).scores.tolist() == pytest.approx([0.9])


def test_boxes_stay_in_images_whose_sides_are_not_scaled_alike(brightest):
  find = Finder(brightest)
  thin = np.zeros((10, 400, 3), np.uint8)
  thin[:, 100:300] = 255  # of 2 x 96 pixels in the letterbox
  np.testing.assert_allclose(find(thin).boxes[0], [100, 0, 300, 10], atol=1e-3)
  for height, width in np.random.default_rng(0).integers(70, 900, (40, 2)):
    box = find(np.full((height, width, 3), 255, np.uint8)).boxes[0]
    np.testing.assert_allclose(box, [0, 0, width, height], rtol=1e-6)
    assert (box <= [width, height, width, height]).all()


def test_nothing_is_compiled_for_a_further_image_of_a_shape(brightest, image):
  find, events = Finder(brightest), []
  for one in (image, image.swapaxes(0, 1)):
    find(one)

  def hear(event, seconds, **kwargs):
    events.append(event)

  jax.monitoring.register_event_duration_secs_listener(hear)
  for height, width in ((210, 300), (333, 250), (97, 41), (64, 70)):
    find(np.zeros((height, width, 3), np.uint8))
  jax.monitoring.unregister_event_duration_listener(hear)
  assert COMPILED not in events


def test_padding_is_zero_behind_normalisation():
  images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
  have = np.asarray(normalized(images, jnp.array([[4.0, 3], [2, 5]]), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)))
  want = (images / 255 - (0.5, 0.4, 0.3)) / (0.1, 0.2, 0.3)
  want[0, :, 3:], want[1, 2:] = 0, 0
  np.testing.assert_allclose(have, want, atol=1e-5)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_viewers_show_them(tmp_path, orientation, suffix):
  path = tmp_path / f"photo.{suffix}"
  exif = Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(np.arange(36, dtype=np.uint8).reshape(3, 4, 3)).save(path, exif=exif)
  with Image.open(path) as opened:
    np.testing.assert_array_equal(read_upright(str(path)), ImageOps.exif_transpose(opened))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """(workdir, the model, its variables)."""
  workdir = tmp_path_factory.mktemp("run")
  model = detection.create_detector("retinanet", num_classes=2, **OPTIONS)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 96, 3))))
  random = np.random.default_rng(0)
  variables = jax.tree.map(lambda x: random.uniform(0.05, 0.15, x.shape).astype(x.dtype), shapes)
  save_native(workdir / "weights.safetensors", variables, ABOUT)
  return workdir, model, variables


def test_a_run_s_detector_is_loaded_and_finds_something(saved, image):
  workdir, model, variables = saved
  for source in (workdir, workdir / "weights.safetensors"):
    loaded = detection.load(source)
  assert loaded.model == model and loaded.class_names == ("cat", "dog")
  assert loaded.letterbox == Letterbox(64, 96) and loaded.preprocessing.mean == (0.5,)
  have, want = flatten_dict(loaded.variables), flatten_dict(variables)
  assert have.keys() == want.keys() and all(np.array_equal(have[key], want[key]) for key in want)

  found = detection.Finder(loaded, least=0.0)(image)
  assert len(found.scores) == model.limit and (np.diff(found.scores) <= 0).all()
  assert (found.boxes >= 0).all() and (found.boxes <= [300, 200, 300, 200]).all()


def test_networks_and_detectors_are_told_apart(saved, tmp_path):
  with pytest.raises(ValueError, match="holds a detector .retinanet.; bionets_jax.detection.load loads it"):
    weights.load(saved[0])
  path = tmp_path / "weights.safetensors"
  save_native(path, saved[2], ABOUT | {"task": "classification", "model": "resnet18"})
  with pytest.raises(ValueError, match="for classification .resnet18.; bionets_jax.weights.load loads it"):
    detection.load(path)
  (tmp_path / "empty").mkdir()
  with pytest.raises(FileNotFoundError, match="not the workdir of a run"):
    detection.load(tmp_path / "empty")


@pytest.mark.parametrize("change, message", [
    ({"model": "retinanett"}, "unknown detector 'retinanett'.*did you mean 'retinanet'"),
    ({"num_classes": 3, "class_names": []}, "does not fit retinanet, 2 of"),
    ({"eval_transform": "resize(64)"}, "damaged weight file .its eval_transform 'resize.64.' is no letterbox"),
    ({"eval_transform": None}, "damaged weight file .its eval_transform None is no letterbox"),
    ({"options": OPTIONS | {"backbone_options": {"stage_sizes": [1000]}}}, "1000 blocks, and the file has")])
def test_refuses_damaged_files(saved, tmp_path, change, message):
  path = tmp_path / "weights.safetensors"
  save_native(path, saved[2], ABOUT | change)
  with pytest.raises(ValueError, match=message):
    detection.load(path)


def test_command_line(brightest, image, tmp_path, monkeypatch, capsys):
  """Files of several kinds and shapes; one name twice, one that is no image, one that is not there."""
  monkeypatch.setattr(loading, "load", lambda path: brightest)
  (tmp_path / "more").mkdir()
  upright = Image.fromarray(image).transpose(Image.Transpose.ROTATE_90)
  exif = Image.Exif()
  exif[0x0112] = 6  # seen upright after a quarter turn to the right: `image` again
  names = ["a.png", "more/a.jpg", "b.jpg", "bad.png", "absent.png"]
  Image.fromarray(image).save(tmp_path / names[0])
  Image.fromarray(image.swapaxes(0, 1)).save(tmp_path / names[1])
  upright.save(tmp_path / names[2], exif=exif)
  (tmp_path / names[3]).write_bytes(b"no image")
  files = [str(tmp_path / name) for name in names]

  out = tmp_path / "out"
  assert predict.main([*files, f"--workdir={tmp_path}", f"--out={out}"]) == 1
  assert sorted(os.listdir(out)) == [
      "a_detections.png", "a_detections_2.png", "b_detections.png", "detections.json"]
  content = json.loads((out / "detections.json").read_text())
  assert content["model"] == "brightest" and content["least"] == 0.3 and content["class_names"] == ["cat", "dog"]
  assert [one["file"] for one in content["failed"]] == files[3:]
  assert [one["picture"] for one in content["images"]] == [
      "a_detections.png", "a_detections_2.png", "b_detections.png"]
  wanted = [(300, 200, [60, 30, 120, 150]), (200, 300, [30, 60, 150, 120]), (300, 200, [60, 30, 120, 150])]
  for one, (width, height, box) in zip(content["images"], wanted, strict=True):
    assert (one["width"], one["height"]) == (width, height)
    (found,) = one["detections"]
    assert (found["class"], found["label"]) == ("dog", 1) and found["score"] == pytest.approx(0.9)
    np.testing.assert_allclose(found["box"], box, atol=200 / 64)
  said = capsys.readouterr().out
  assert f"4/5 {files[3]}: left out: not a readable image" in said and "2 of 5 files left out" in said
  assert f"5/5 {files[4]}: left out: No such file or directory" in said

  assert predict.main([files[0], f"--workdir={tmp_path}", f"--json={tmp_path / 'new' / 'found.json'}"]) == 0
  assert (tmp_path / "detections" / "a_detections.png").exists()
  assert len(json.loads((tmp_path / "new" / "found.json").read_text())["images"]) == 1


@pytest.mark.parametrize("arguments", [
    ["a.png"], ["--workdir=."], ["b.png", "--workdir=.", "--json", "a.png"], ["a.png", "--workdir=./absent"], ["a.png", "--workdir=.", "--least=1.5"]])
def test_wrong_usage(arguments):
  with pytest.raises(SystemExit) as left:
    predict.main(arguments)
  assert left.value.code == 2


def test_what_need_not_end_is_no_image(tmp_path):
  os.mkfifo(tmp_path / "a.jpg")
  for path in (tmp_path / "a.jpg", "/dev/zero"):
    with pytest.raises(ValueError, match="a device or a pipe, no file"):
      read_upright(str(path))


def test_many_images_of_one_name():
  paths = ["a_2.png", *(f"{i}/a.png" for i in range(20_000))]
  names = predict._picture_names(paths)
  assert len(set(names)) == len(paths) and names[1:3] == ["a_detections.png", "a_detections_2.png"]


def test_results_that_could_not_be_written_are_known_before(brightest, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(loading, "load", lambda path: brightest)
  monkeypatch.setattr(Finder, "__call__", None)
  (tmp_path / "found.json").mkdir()
  assert predict.main(["a.png", f"--workdir={tmp_path}", f"--json={tmp_path / 'found.json'}"]) == 1
  assert "there is a folder of this name" in capsys.readouterr().err


def test_an_error_is_a_line(tmp_path, capsys):
  assert predict.main(["a.png", f"--workdir={tmp_path}"]) == 1
  assert "is not the workdir of a run" in capsys.readouterr().err


def test_a_box_is_drawn_on_its_outermost_pixels():
  blank = np.full((400, 500, 3), 90, np.uint8)
  picture = draw(blank, np.array([[100.0, 150, 300, 350]]), np.array([0.5]), np.array([2]), "abc")
  colour = tuple(int(COLOURS[2][i:i + 2], 16) for i in (1, 3, 5))
  assert picture.size == (500, 400)
  for x, y in ((100, 250), (299, 250), (200, 349), (290, 150)):
    assert picture.getpixel((x, y)) == colour
  for x, y in ((99, 250), (300, 250), (200, 350)):
    assert picture.getpixel((x, y)) == (0, 0, 0)
  for x, y in ((98, 250), (301, 250), (200, 351), (200, 250), (110, 340)):
    assert picture.getpixel((x, y)) == (90, 90, 90)


def test_a_name_stays_in_the_picture_and_leaves_others_readable():
  blank, names = np.zeros((400, 500, 3), np.uint8), ["first", "second", "third"]
  boxes = np.array([[0.0, 0, 500, 400], [0, 0, 500, 400], [490, 390, 500, 400]])
  together = draw(blank, boxes, np.array([0.9, 0.8, 0.7]), np.arange(3), names)
  for i in range(3):
    alone = draw(blank, boxes[[i]], np.array([0.5]), np.array([i]), names)
    assert pixels_of(together, i) > 0.7 * pixels_of(alone, i) > 100


def pixels_of(picture, label):
  """How many are of the label's colour, but for those at the border, where the boxes' edges are."""
  colour = [int(COLOURS[label][k:k + 2], 16) for k in (1, 3, 5)]
  return (np.asarray(picture)[4:-4, 4:-4] == colour).all(-1).sum()


def test_the_picture_of_a_line_stays_small():
  nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), "a"
  assert draw(np.zeros((1, 60_000, 3), np.uint8), *nothing).size == (60_000, 1)
  assert draw(np.zeros((300, 10, 3), np.uint8), *nothing).size == (60, 1800)


def test_small_images_are_enlarged_and_nothing_found_is_nothing_drawn():
  image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
  picture = np.asarray(draw(image, np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), "a"))
  assert picture.shape == (384, 512, 3)
  np.testing.assert_array_equal(picture[::4, ::4], image)
