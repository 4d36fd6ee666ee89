"""python -m bionets_jax.evaluate: trained networks on other data, other labels and disturbed images."""

import io
import json
import os
import pathlib
import subprocess
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from tiny import tiny_config

from bionets_jax.data.grammar import parse_transforms
from bionets_jax.data.sources import open_source
from bionets_jax.data.transforms import HOST_TRANSFORMS
from bionets_jax.evaluate import command_line, robustness
from bionets_jax.evaluate.corruptions import gaussian_blur, gaussian_noise, jpeg
from bionets_jax.evaluate.examples import check_classes
from bionets_jax.evaluate.network import Weights, read_weights
from bionets_jax.evaluate.real_labels import read_real_labels
from bionets_jax.evaluate.run import default_name, which_data
from bionets_jax.models import create_model
from bionets_jax.training.loop import train
from bionets_jax.training.tasks import Classification
from bionets_jax.weights.native import load_native, save_native
from bionets_jax.weights.preprocessing import BICUBIC

LEVELS = dict(jpeg=(90, 30), blur=(0.7,), noise=(20,), fgsm=(2, 8))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A network trained on the digits for some steps: (workdir, summary)."""
  workdir = str(tmp_path_factory.mktemp("evaluate") / "run")
  result = train(tiny_config(duration="40 steps", eval_every="9 epochs"), workdir, say=lambda text: None)
  return workdir, result.summary


@pytest.fixture(scope="module")
def disturbed(run):
  """What --jpeg, --blur, --noise and --fgsm wrote of the first 60 digits."""
  options = [f"--{kind}={','.join(map(str, levels))}" for kind, levels in LEVELS.items()]
  assert command_line.main([run[0], *options, "--limit=60", "--batch-size=40", "--name=disturbed"]) == 0
  with open(f"{run[0]}/evaluations/disturbed.json", encoding="utf-8") as file:
    return json.load(file)


def network(path):
  """The logits of images of 0..255 as a function."""
  variables, about = load_native(path)
  model = create_model(about["model"], about["num_classes"], **about["options"])
  mean, std = (about["preprocessing"][key] for key in ("mean", "std"))
  return jax.jit(lambda x: model.apply(
      variables, (x.astype(jnp.float32) / 255 - mean[0]) / std[0], train=False))


def digits(count):
  examples = list(open_source("digits", "test").read_many(range(count)))
  return np.stack([image for image, _, _ in examples]), np.array([label for _, label, _ in examples])


def test_without_options_it_is_what_the_run_found(run, capsys):
  workdir, summary = run
  assert command_line.main([workdir]) == 0
  with open(f"{workdir}/evaluations/digits-test.json", encoding="utf-8") as file:
    found = json.load(file)
  last = dict(summary["last"])
  del last["step"]
  assert found["clean"] == last  # the same program on the same batches: to the last bit
  assert found["examples"] == 355 and found["data"]["split"] == "test"
  text = capsys.readouterr().out
  assert f"top-1 error {last['top1_error']:.2f} %" in text and "digits-test.json" in text


def test_disturbed_images_one_by_one(run, disturbed):
  """JPEG by PIL, the filter by SciPy, and FGSM by autodiff of a loss written here."""
  logits = network(f"{run[0]}/weights.safetensors")
  images, labels = digits(60)
  clean = np.asarray(logits(images.astype(np.float32)))
  assert disturbed["clean"]["top1_error"] == pytest.approx(100 * np.mean(clean.argmax(-1) != labels))

  def loss(x):
    scores = jax.nn.log_softmax(logits(x))
    return -jnp.take_along_axis(scores, labels[:, None], -1).sum()
  step = np.sign(jax.jit(jax.grad(loss))(images.astype(np.float32)))

  def by_hand(kind, level):
    if kind == "jpeg":
      out = []
      for image in images:
        file = io.BytesIO()
        Image.fromarray(image[..., 0]).save(file, "JPEG", quality=level)
        out.append(np.asarray(Image.open(file))[..., None])
      return np.stack(out)
    if kind == "blur":
      exact = ndimage.gaussian_filter(images.astype(np.float64), (0, level, level, 0))
      return np.rint(exact)
    if kind == "noise":
      return gaussian_noise(images, level, indices=np.arange(60), seed=0)
    return np.clip(images + level * step, 0, 255)

  for kind, levels in LEVELS.items():
    assert [row["level"] for row in disturbed[kind]] == list(levels)
    for row in disturbed[kind]:
      scores = np.asarray(logits(by_hand(kind, row["level"]).astype(np.float32)))
      assert row["top1_error"] == pytest.approx(100 * np.mean(scores.argmax(-1) != labels)), kind
      assert row["changed"] == pytest.approx(100 * np.mean(scores.argmax(-1) != clean.argmax(-1))), kind
      wide = scores.astype(np.float64)
      want = np.mean(np.log(np.exp(wide).sum(-1)) - wide[np.arange(60), labels])
      assert row["loss"] == pytest.approx(want, rel=1e-4), kind


def test_the_attack_does_harm(disturbed):
  losses = [disturbed["clean"]["loss"], *(row["loss"] for row in disturbed["fgsm"])]
  assert losses[0] < losses[1] < losses[2]


def test_disturbances_leave_a_table_and_a_figure(run, disturbed):
  with Image.open(f"{run[0]}/evaluations/disturbed.png") as figure:
    assert figure.width > figure.height > 300
  lines = robustness.as_text(disturbed).splitlines()
  assert [line.split()[:2] for line in lines[3:]] == [
      [kind, f"{level:g}"] for kind, levels in LEVELS.items() for level in levels]


class Linear(nn.Module):
  """Images to logits by one dense layer."""

  @nn.compact
  def __call__(self, x, train=False):
    return nn.Dense(4, dtype=x.dtype)(x.reshape(len(x), -1))


def test_fgsm_is_the_sign_of_the_gradient_in_closed_form(float64):
  """Of a linear softmax classifier: d loss / d pixel = W (softmax - one hot) / (255 std)."""
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (5, 3, 4, 3)).astype(np.uint8)
  labels = np.array([0, 1, 2, 3, 0])
  mean, std = (0.3, 0.4, 0.5), (0.2, 0.3, 0.4)
  kernel, bias = random.standard_normal((36, 4)) / 6, random.standard_normal(4)
  task = Classification(Linear(), image_shape=(3, 4, 3), mean=mean, std=std)
  params = {"Dense_0": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}}
  direction = robustness.fgsm_direction(
      task, params, {}, {"image": jnp.asarray(images), "label": jnp.asarray(labels)})
  scores = (np.float64(images) / 255 - mean) / std
  scores = scores.reshape(5, -1) @ kernel + bias
  p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  gradient = ((p - np.eye(4)[labels]) @ kernel.T).reshape(images.shape) / (255 * np.array(std))
  np.testing.assert_array_equal(direction, np.sign(gradient))
  for epsilon in (1, 2.5, 300):
    moved = np.asarray(robustness.fgsm(images, direction, epsilon), np.float64)
    np.testing.assert_allclose(moved, np.clip(images + epsilon * np.sign(gradient), 0, 255))
    assert np.abs(moved - images).max() <= epsilon and moved.min() >= 0 and moved.max() <= 255


def test_jpeg_of_colour_images_is_pil_s():
  images = np.random.default_rng(0).integers(0, 256, (3, 20, 18, 3)).astype(np.uint8)
  for quality in (100, 60, 10):
    for ours, image in zip(jpeg(images, quality), images, strict=True):
      file = io.BytesIO()
      Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=2)
      np.testing.assert_array_equal(ours, np.asarray(Image.open(file)))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.6])
def test_blur_is_scipy_s(sigma):
  images = np.random.default_rng(1).integers(0, 256, (2, 9, 14, 3)).astype(np.uint8)
  want = ndimage.gaussian_filter(images.astype(np.float64), (0, sigma, sigma, 0))
  assert np.abs(gaussian_blur(images, sigma) - want).max() <= 0.5 + 1e-4


def test_noise_is_normal_and_an_example_s_own():
  gray = np.full((40, 16, 16, 3), 128, np.uint8)
  noisy = gaussian_noise(gray, 10, indices=np.arange(40), seed=3)
  values = noisy.astype(np.float64) - 128
  n = values.size  # rounding to whole levels adds 1/12 to the variance
  assert abs(values.mean()) < 5 * 10 / np.sqrt(n)
  assert abs(values.var() - 100 - 1 / 12) < 5 * 100 * np.sqrt(2 / n)
  assert abs((values**4).mean() / values.var() ** 2 - 3) < 5 * np.sqrt(24 / n)
  # Another batch, other neighbours: the same noise. Rows without an example are left alone.
  some = gaussian_noise(gray[:3], 10, indices=np.array([7, -1, 2]), seed=3)
  np.testing.assert_array_equal(some, np.stack([noisy[7], gray[0], noisy[2]]))
  assert (gaussian_noise(gray[:1], 10, indices=np.array([0]), seed=4) != noisy[0]).any()
  assert gaussian_noise(gray[:1], 300, indices=np.array([0]), seed=4).min() == 0


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Photographs named as ImageNet's, of 10 classes, and a network with random weights: (folder, file)."""
  folder = tmp_path_factory.mktemp("photos")
  random = np.random.default_rng(2)
  for number in range(1, 31):
    target = folder / "val" / f"class{number % 10}"
    target.mkdir(parents=True, exist_ok=True)
    pixels = random.integers(0, 256, (12, 10, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(target / f"ILSVRC2012_val_{number:08}.JPEG", "PNG")
  options = dict(stage_sizes=[1, 1, 1], width=8)
  variables = jax.jit(create_model("resnet20_cifar", 10, **options).init)(
      jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  # A larger last layer: its predictions differ between images.
  variables["params"]["head"]["kernel"] = 20 * variables["params"]["head"]["kernel"]
  save_native(folder / "net.safetensors", jax.device_get(variables), {
      "model": "resnet20_cifar", "options": options, "num_classes": 10,
      "class_names": [f"class{i}" for i in range(10)], "image_shape": [8, 8, 3],
      "preprocessing": dict(mean=[0.5], std=[0.25], image_size=8, resize=8)})
  return folder, str(folder / "net.safetensors")


def test_real_labels_against_brute_force(photos, capsys):
  folder, weights = photos
  random = np.random.default_rng(3)
  sets = [[] for _ in range(50_000)]
  for number in range(1, 31):  # some are empty
    sets[number - 1] = sorted(random.choice(10, random.integers(0, 5), replace=False).tolist())
  (folder / "real.json").write_text(json.dumps(sets))
  arguments = [weights, "--data=folder", f"--data-dir={folder}", "--split=val", "--workers=0",
               "--transform=center_crop(8)", "--batch-size=8", f"--real-labels={folder}/real.json"]
  assert command_line.main(arguments) == 0
  (path,) = (folder / "evaluations").glob("*real.json")
  found = json.loads(path.read_text())["clean"]

  logits = network(weights)
  right, counted, wrong = 0, 0, 0
  for path in sorted((folder / "val").rglob("*.JPEG")):
    pixels = np.asarray(Image.open(path))[2:10, 1:9]
    prediction = int(np.argmax(logits(pixels[None])))
    wrong += f"class{prediction}" != path.parent.name
    allowed = sets[int(path.stem[-8:]) - 1]
    if allowed:
      counted += 1
      right += prediction in allowed
  assert 0 < right < counted < 30
  assert found["real_error"] == pytest.approx(100 * (1 - right / counted), abs=1e-4)
  assert found["real_examples"] == counted
  assert found["top1_error"] == pytest.approx(100 * wrong / 30, abs=1e-4)
  assert f"of {counted} images that have such labels" in capsys.readouterr().out

  missing = folder / "val" / "class0" / "ILSVRC2012_val_00000000.JPEG"  # the first of all
  missing.symlink_to(folder / "nowhere")
  assert command_line.main([*arguments, "--max-bad-records=1", "--name=one-missing"]) == 0
  missing.unlink()
  again = json.loads((folder / "evaluations" / "one-missing.json").read_text())["clean"]
  assert again.pop("bad_records") == 1 and again == pytest.approx(found)


def test_real_labels_that_are_none(tmp_path, photos):
  for text, message in (
      ("[[1], [2]]", "expected a list of 50,000 lists of classes, got 2 entries"),
      ("{}", "got a dict"), ("[[1]", "not a JSON file"),
      (json.dumps([[1]] * 49_999 + [[10]]), "image 50000 has .10.; expected a list of classes from 0 to 9")):
    (tmp_path / "real.json").write_text(text)
    with pytest.raises(ValueError, match=message):
      read_real_labels(str(tmp_path / "real.json"), 10)


def fails(arguments, capsys):
  assert command_line.main(arguments) == 1
  error = capsys.readouterr().err
  assert error.startswith("error: ") and "Traceback" not in error
  return error


def test_what_cannot_be_evaluated(run, photos, tmp_path, capsys):
  workdir, (folder, weights) = run[0], photos
  on_photos = ["--data=folder", f"--data-dir={folder}", "--split=val", "--transform=center_crop(8)"]
  error = fails([workdir, *on_photos], capsys)
  for part in ("the classes of", "only in the weights: '0'", "only in the data: 'class0'"):
    assert part in error
  assert "--transform='flip': flip is random" in fails([workdir, "--transform=flip"], capsys)
  assert "--jpeg: 101 is no level of it; give whole numbers above 0" in fails([workdir, "--jpeg=101"], capsys)
  assert "--fgsm: a level is given twice" in fails([workdir, "--fgsm=1,1"], capsys)
  assert "--batch-size=6: give a multiple of the 4 devices" in fails([workdir, "--batch-size=6"], capsys)
  assert "does not say which data" in fails([weights], capsys)
  assert "--data=folder: give its --split too" in fails([weights, "--data=folder"], capsys)
  crops = [weights, *on_photos[:3], "--transform=ten_crop(8)", "--jpeg=50"]
  assert "makes 10 crops of an image" in fails(crops, capsys)
  assert "holds 'resnet20_cifar', not 'resnet50'" in fails([workdir, "--model=resnet50"], capsys)
  real = tmp_path / "real.json"
  real.write_text(json.dumps([[1]] * 50_000))
  assert "has no file name such as ILSVRC2012" in fails([workdir, f"--real-labels={real}"], capsys)
  assert "is not the workdir of a run" in fails([str(tmp_path)], capsys)
  (tmp_path / "config.json").write_text("{}")
  assert "a run that is not finished" in fails([str(tmp_path)], capsys)
  (tmp_path / "seed_0").symlink_to(workdir)
  assert "several runs; give one of them: seed_0" in fails([str(tmp_path)], capsys)
  assert not (tmp_path / "evaluations").exists()
  sweep = tmp_path / "study" / "net"
  sweep.mkdir(parents=True)
  (sweep / "seed_0").symlink_to(workdir)
  assert "several runs; give one of them: net/seed_0" in fails([str(tmp_path / "study")], capsys)
  damaged = tmp_path / "damaged"
  damaged.mkdir()
  (damaged / "weights.safetensors").write_bytes(pathlib.Path(weights).read_bytes())
  for text in ("", "[1]"):
    (damaged / "config.json").write_text(text)
    assert f"{damaged}/config.json is damaged" in fails([str(damaged)], capsys)


@pytest.mark.parametrize("arguments, message", [
    (["nowhere"], "nowhere: no such file or directory"),
    ([".", "--jpeg=much"], "'much': give numbers with commas"),
    ([".", "--limit=-1"], "numbers of images"),
    ([".", "--name=a/b"], "a name without folders"),
    ([".", "--real-labels=x", "--robustness"], "leave one of the two out"),
    ([".", "--qualty=5"], "unrecognized arguments: --qualty=5"),
])
def test_wrong_usage(arguments, message, capsys):
  with pytest.raises(SystemExit) as status:
    command_line.main(arguments)
  assert status.value.code == 2 and message in capsys.readouterr().err


def test_help_is_there_at_once():
  code = ("import sys; from bionets_jax.evaluate import command_line\n"
          "try:\n  command_line.main(['--help'])\n"
          "finally:\n  assert 'jax' not in sys.modules, 'imported JAX'")
  root = pathlib.Path(command_line.__file__).parents[2]
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root,
                        env={**os.environ, "PYTHONPATH": str(root)})
  assert done.returncode == 0 and "--robustness" in done.stdout, done.stderr
  assert set(command_line._DISTURBANCES) == set(robustness.KINDS)


def test_which_data_and_under_which_name():
  config = {"data": dict(name="cifar10", dir="D", eval_split="train[90%:]", eval_transform="flip",
                         test_split="test", test_transform="resize_to(224, nearest)")}
  found = Weights(None, config)

  def ask(*arguments):
    options = command_line.parse([".", *arguments])
    data = which_data(options, found)
    return data, default_name(options, data, options.disturbances)
  assert ask() == (
      dict(name="cifar10", dir="D", split="test", transform="resize_to(224, nearest)"), "cifar10-test")
  other, name = ask("--data=imagenet_v2/matched-frequency", "--data-dir=E", "--split=test", "--limit=9")
  assert other == dict(name="imagenet_v2/matched-frequency", dir="E", split="test",
                       transform="resize_to(224, nearest)")
  assert name == "imagenet_v2-matched-frequency-test-first-9"
  assert ask("--transform=resize(256)|ten_crop(224)", "--crop-average=logits")[1] == (
      "cifar10-test-resize-256-ten_crop-224-logits")
  assert ask("--robustness")[1] == "cifar10-test-robustness"
  assert ask("--jpeg=90", "--fgsm=1")[1] == "cifar10-test-jpeg-fgsm"
  with pytest.raises(ValueError, match="--data=cifar100: give its --split too"):
    ask("--data=cifar100")
  # Another library's network gets its images as that publishes it.
  loaded = types.SimpleNamespace(preprocessing=BICUBIC)
  data = which_data(command_line.parse([".", "--data=imagenet2012", "--split=validation"]), Weights(loaded, {}))
  assert data["transform"] == "resize(256, bicubic)|center_crop(224)"
  assert len(parse_transforms(data["transform"], HOST_TRANSFORMS)) == 2
  options = command_line.parse([".", "--robustness", "--jpeg=90", "--blur="])
  assert options.disturbances == {"jpeg": (90,), "blur": (), "noise": None, "fgsm": None}


def test_classes_in_another_order():
  source = open_source("digits", "test")
  check_classes((), source, "w")
  with pytest.raises(ValueError, match=r"another order: class 0 is '9' in the weights and '0' in the data"):
    check_classes(source.class_names[::-1], source, "w")


def test_weights_that_do_not_fit_their_network(photos, tmp_path, capsys):
  variables, about = load_native(photos[1])
  about["options"]["width"] = 4
  save_native(tmp_path / "w.safetensors", variables, about)
  error = fails([str(tmp_path / "w.safetensors"), "--data=folder", f"--data-dir={photos[0]}", "--split=val",
                 "--transform=center_crop(8)"], capsys)
  assert "does not fit resnet20_cifar" in error and "in the file" in error
  assert read_weights(photos[1]).loaded.class_names[3] == "class3"
