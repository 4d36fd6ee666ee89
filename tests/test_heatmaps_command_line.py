"""The figure of heatmaps and its command line: `python -m bionets_jax.heatmaps`."""

import re

import numpy as np
import pytest
from PIL import Image
from random_networks import random_variables

import bionets_jax as bn
from bionets_jax import heatmaps
from bionets_jax.heatmaps import command_line, display, gallery
from bionets_jax.heatmaps.command_line import main, parse
from bionets_jax.weights.native import save_native

RANDOM = np.random.default_rng(0)


def photo(height, width):
  return RANDOM.integers(0, 256, (height, width, 3), np.uint8)


def test_texts_lie_in_the_figure_and_apart():
  names = ("cat", "a very long name of a class, as ImageNet has them", "$x^2$")
  maps = heatmaps.Maps(RANDOM.random((2, 2, 2), np.float32), np.int32([0, 1]), np.float32([[3, 1, 0], [0, 1, 9]]), "s")
  seen = [photo(8, 8), photo(8, 8)]
  columns = [gallery.Column(["a_very_long_name_of_a_network", "s"], maps, seen)] * 2
  pictures = [gallery.Picture("test 0", 0), gallery.Picture("test 1", 1)]
  figure = gallery.draw(pictures, columns, names, method="cam", of="the true class")
  assert figure.get_size_inches()[0] == pytest.approx(3.4)
  texts = [text.get_text() for text in figure.texts]
  # Of logits (0, 1, 9): exp(1 - 9) / (1 + ...) = 0.03 %.
  for text in ("true: cat", "cat", "84 %, correct", "$x^2$", ">99 %, wrong", "CAM of the true class"):
    assert text in texts, text
  assert sum(text.startswith("map: a very long") and text.endswith("…") for text in texts) == 2
  assert min(text.get_fontsize() for text in figure.texts) >= 6.5
  figure.draw_without_rendering()
  boxes = [text.get_window_extent() for text in figure.texts]
  assert all(figure.bbox.x0 <= b.x0 and b.x1 <= figure.bbox.x1 and figure.bbox.y0 <= b.y0 and b.y1 <= figure.bbox.y1
             for b in boxes)
  inner = [b.shrunk(0.9, 0.7).translated(0, 0.15 * b.height) for b in boxes]
  assert any(text.startswith("a_very_long") and text.endswith("…") for text in texts)
  assert not any(a.overlaps(b) for i, a in enumerate(inner) for b in inner[:i])
  assert not any(b.overlaps(axes.get_window_extent()) for b in inner for axes in figure.axes)


ABOUT = {
    "model": "resnet20_cifar", "options": {"stage_sizes": [1, 1], "width": 4}, "num_classes": 10,
    "class_names": [str(i) for i in range(10)], "image_shape": [8, 8, 1], "eval_transform": "",
    "preprocessing": {"mean": [0.3], "std": [0.4], "image_size": 8, "resize": 8, "interpolation": "bilinear"}}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  model = bn.create_model("resnet20_cifar", 10, **ABOUT["options"])
  save_native(folder / "weights.safetensors", random_variables(model, (8, 8, 1)), ABOUT)
  return folder


def run(capsys, *arguments):
  status = main([str(argument) for argument in arguments])
  out = capsys.readouterr()
  return status, out.out, out.err


def test_examples_of_a_set_by_two_networks(workdir, tmp_path, capsys):
  twice = [f"--weights={workdir}", f"--weights={workdir / 'weights.safetensors'}"]
  status, out, err = run(capsys, *twice, "--data=digits", "--split=test", "--examples=0,3-4", "--of=true",
                         f"--out={tmp_path}/deep/maps.png")
  assert (status, err) == (0, "")
  assert out.splitlines()[-1] == f"3 pictures, 2 networks: {tmp_path}/deep/maps.png"
  assert [line.split(":")[0] for line in out.splitlines()[:-1]] == ["test 0", "test 3", "test 4"] * 2
  assert "resnet20_cifar weights.safetensors: " in out
  with Image.open(tmp_path / "deep" / "maps.png") as png:
    assert png.width == 1020 and np.asarray(png.convert("L")).std() > 20


def test_image_files_and_what_is_none(workdir, tmp_path, capsys):
  for name in ("a.png", "b.jpg"):
    Image.fromarray(photo(40, 30)).save(tmp_path / name)
  (tmp_path / "broken.png").write_bytes(b"no image")
  status, out, err = run(capsys, f"--weights={workdir}", "--method=cam", "--of=7", f"--out={tmp_path}/maps.pdf",
                         *(tmp_path / name for name in ("a.png", "broken.png", "gone.png", "b.jpg")))
  assert (status, err) == (1, "")
  first, second, *_, last = out.splitlines()
  assert "broken.png: left out: not a readable image" in first and second.endswith("gone.png: left out: No such file "
                                                                                   "or directory")
  assert last == f"2 pictures, 1 network: {tmp_path}/maps.pdf; 2 left out"
  assert (tmp_path / "maps.pdf").read_bytes().startswith(b"%PDF")


def test_of_a_folder_full_of_images_the_first_are_drawn(workdir, capsys):
  status, out, err = run(capsys, f"--weights={workdir}", *["gone.png"] * 62)
  assert out.startswith("the first 60 of 62 pictures: ") and out.count("gone.png: left out") == 60
  assert status == 1 and "no picture could be read" in err


def test_list_layers(workdir, capsys):
  status, out, _ = run(capsys, f"--weights={workdir}", "--list-layers")
  lines = out.splitlines()
  assert status == 0 and lines[0] == f"resnet20_cifar, {workdir}/weights.safetensors"
  assert lines[1:4] == ["  stem  8 x 8, 4 channels", "  stage1  8 x 8, 4 channels", "  stage2  4 x 4, 8 channels"]
  assert "  stage2_block0/conv1  4 x 4, 8 channels" in lines


@pytest.mark.parametrize("arguments,match", [
    (["--data=digits", "--split=test", "--examples=355"], "there is no example 355; digits test has 355, from 0 on"),
    (["--data=digits", "--split=test", "--of=10"], "--of=10: give predicted, true, the name of a class or its number"),
    (["--data=digits", "--split=test", "--examples=0-60"], "61 pictures: a figure has room for 60"),
    (["--data=digits", "--split=test", "--layer=stage3"], "weights.safetensors: ResNet has no layer 'stage3'"),
    (["--data=generated/shapes", "--split=test"], "is a set for detection"),
    (["--data=generated/cifar100", "--split=test"], "has 10 classes, --data=.* 100"),
    (["--data=generated/cifar10", "--split=test"], "class 0 is '0' in .*weights.safetensors and 'airplane' in --data"),
    (["a.png", "--model=resnet50"], "--model and --model-option are of another library's file"),
    (["gone.png"], "no picture could be read"), (["a.png", "--weights=ftp://x"], "ftp://x: addresses of weights are")])
def test_errors_are_one_line(workdir, capsys, arguments, match):
  status, _, err = run(capsys, f"--weights={workdir}", *arguments)
  assert status == 1 and err.startswith("error: ") and err.count("\n") == 1
  assert re.search(match, err), err


def test_a_detector_is_refused_with_the_reason(tmp_path, capsys):
  about = ABOUT | {"task": "detection", "model": "retinanet"}
  save_native(tmp_path / "weights.safetensors", {"params": {"a": np.zeros(1, np.float32)}}, about)
  status, _, err = run(capsys, f"--weights={tmp_path}", "a.png")
  assert status == 1 and "holds a detector (retinanet)" in err and "many boxes" in err


@pytest.mark.parametrize("arguments,match", [
    (["a.png"], "--weights"), (["--weights=/no/such", "a.png"], "/no/such: no such file"),
    (["--weights=.", "a.png", "--out=a.gif"], "ends in .png or .pdf"), (["--weights=."], "one of the three"),
    (["--weights=.", "a.png", "--data=digits", "--split=test"], "one of the three"),
    (["--weights=.", "--data=digits"], "--split too"), (["--weights=.", "a.png", "--split=test"], "--split is of a data"),
    (["--weights=.", "a.png", "--of=true"], "nothing says which class"),
    (["--weights=.", "a.png", "--method=cam", "--layer=x"], "CAM is of the last maps"),
    (["--weights=.", "--data=x", "--split=y", "--examples=3-1"], "numbers and ranges"),
    (["--weights=.", "--data=x", "--split=y", "--examples=0-99999"], "at most 1000")])
def test_wrong_usage(arguments, match, capsys):
  with pytest.raises(SystemExit) as left:
    parse(arguments)
  assert left.value.code == 2 and match in capsys.readouterr().err


def test_the_words_of_the_command_line_are_those_behind_it():
  assert command_line._METHODS == display.METHODS == tuple(gallery._NAMES)
