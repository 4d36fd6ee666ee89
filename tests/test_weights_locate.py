"""Where weights come from: torchvision's files, from a server in this process, and timm's config.json.

`tests/test_weights_hub.py` has the Hugging Face hub.
"""

import contextlib
import functools
import hashlib
import http.server
import json
import os
import pathlib
import re
import socket
import threading
import zlib

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import bionets_jax as bn
from bionets_jax.counting import abstract_variables
from bionets_jax.weights import download, from_torchvision, timm_config, to_layout
from bionets_jax.weights.locate import Located, check_source, is_remote, locate
from bionets_jax.weights.native import save_native

TIMM = json.loads((pathlib.Path(__file__).parent / "fixtures" / "timm_configs.json").read_text())
TABLE = json.loads((pathlib.Path(bn.__file__).parent / "weights" / "published.json").read_text())
SOURCE = "torchvision://ResNet18_Weights.IMAGENET1K_V1"
BODY = np.random.default_rng(0).bytes(3 * 2**20)
slow = pytest.mark.skipif(not os.environ.get("BIONETS_TEST_SLOW"), reason="BIONETS_TEST_SLOW=1 runs it")


# --- a server ---------------------------------------------------------------------------------------


class Server:
  """Files by name, and what goes wrong with each of its answers, first to last; then nothing does.

  'cut' sends half of what was asked for; an int is a status; 'silent' says nothing for a second; 'whole'
  ignores from where the file was asked for; 'endless' sends four times as much.
  """

  def __init__(self):
    self.files, self.faults, self.asked, self.url = {}, [], [], ""


@pytest.fixture
def server():
  """A Server at its `url`."""
  state = Server()

  class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
      pass

    def do_GET(self):
      asked = self.headers.get("Range", "")
      state.asked.append((self.path, asked))
      fault = state.faults.pop(0) if state.faults else ""
      body = state.files.get(self.path.removeprefix("/"))
      if body is None or isinstance(fault, int):
        return self.send_error(fault or 404)
      if fault == "silent":
        threading.Event().wait(1)
        return None
      start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and fault != "whole" else 0
      if start and start >= len(body):
        return self.send_error(416)
      body = body[start:] * (4 if fault == "endless" else 1)
      self.send_response(206 if start else 200)
      if fault != "endless":
        self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      with contextlib.suppress(ConnectionError):
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

  running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  running.daemon_threads = True
  state.url = f"http://127.0.0.1:{running.server_port}"
  thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
  thread.start()
  yield state
  running.shutdown()
  running.server_close()
  thread.join()


@pytest.fixture
def published(monkeypatch, tmp_path, server):
  """torchvision's ResNet-18 as a small file of the server's, and nothing in any cache."""
  file = f"resnet18-{hashlib.sha256(BODY).hexdigest()[:8]}.pth"
  row = TABLE["weights"]["ResNet18_Weights.IMAGENET1K_V1"] | {"file": file, "mebibytes": len(BODY) / 2**20}
  table = TABLE | {"weights": TABLE["weights"] | {"ResNet18_Weights.IMAGENET1K_V1": row}}
  monkeypatch.setattr(from_torchvision, "_table", lambda: table)
  server.files[file] = BODY
  monkeypatch.setenv("BIONETS_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
  monkeypatch.setenv("BIONETS_TORCHVISION_URL", server.url)
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
  return tmp_path / "cache" / "weights" / file


def test_a_download_is_kept_with_what_belongs_to_it(published, server):
  said = []
  found = locate(SOURCE, said.append)
  assert found == Located(str(published), SOURCE, "resnet18", {}, found.preprocessing)
  assert published.read_bytes() == BODY
  assert (found.preprocessing.resize, found.preprocessing.interpolation) == (256, "bilinear")
  assert said[0] == f"fetching {server.url}/{published.name} (3.1 MB) to {published}"
  assert "checksum is right" in said[-1]
  assert sorted(os.listdir(published.parent)) == [published.name, f"{published.name}.lock"]
  assert locate(SOURCE, said.append).path == str(published) and len(server.asked) == 1
  # The short form is the default, and says which that is.
  assert locate("torchvision://resnet18", said.append).path == str(published)
  assert said[-1] == "torchvision://resnet18 is ResNet18_Weights.IMAGENET1K_V1"


def test_progress_has_share_rate_and_time_left(published, monkeypatch):
  monkeypatch.setattr(download, "REPORT_EVERY", 0.0)
  said = []
  locate(SOURCE, said.append)
  assert re.fullmatch(r" 33% of 3.1 MB, [\d.]+ MB/s, \d+:\d\d left", said[1])
  assert said[3].startswith("100% of 3.1 MB")


@pytest.mark.parametrize("faults, ranges", (
    (["cut"], ["", "bytes=1572864-"]),
    (["cut", "cut", 503], ["", "bytes=1572864-", "bytes=2359296-", "bytes=2359296-"]),
    (["cut", "whole"], ["", "bytes=1572864-"]),
    ([500], ["", ""]),
))
def test_a_broken_download_goes_on(published, server, faults, ranges):
  server.faults = faults
  assert locate(SOURCE, lambda text: None).path == str(published)
  assert published.read_bytes() == BODY and [asked for _, asked in server.asked] == ranges


def test_what_was_fetched_is_not_fetched_again_by_the_next_process(published, server):
  server.faults = ["cut"] * 4
  with pytest.raises(FileNotFoundError, match=r"2\.9 MB of it are kept, and the same command goes on from"):
    locate(SOURCE, lambda text: None)
  assert os.path.getsize(f"{published}.part") == len(BODY) * 15 // 16 and not published.exists()
  assert locate(SOURCE, lambda text: None).path == str(published)
  assert server.asked[-1][1] == f"bytes={len(BODY) * 15 // 16}-" and published.read_bytes() == BODY
  # Killed between the last byte and the renaming.
  published.rename(f"{published}.part")
  asked = len(server.asked)
  assert locate(SOURCE, lambda text: None).path == str(published) and len(server.asked) == asked


@pytest.mark.parametrize("left", (b"another file", BODY + b"x"))
def test_a_wrong_beginning_is_dropped(published, server, left):
  published.parent.mkdir(parents=True)
  pathlib.Path(f"{published}.part").write_bytes(left)
  locate(SOURCE, lambda text: None)
  assert published.read_bytes() == BODY and server.asked[-1][1] == ""


@pytest.mark.parametrize("body, fault, message", (
    (BODY[:-1] + b"\0", "", "the published one begins with"),
    (b"<html>please log in</html>", "", "the published one begins with"),
    (BODY, "endless", "sends more than the 3.1 MB that were published"),
))
def test_another_file_is_refused_by_name_and_removed(published, server, body, fault, message):
  server.files[published.name], server.faults = body, [fault]
  with pytest.raises(ValueError, match=message) as error:
    locate(SOURCE, lambda text: None)
  assert f"{server.url}/{published.name}" in str(error.value)
  assert os.listdir(published.parent) == [f"{published.name}.lock"]


def check_offline(error, published, url):
  text = str(error.value)
  assert f"Fetch {url}/{published.name} elsewhere" in text and f"put it at {published}" in text
  assert f"SHA-256 begins with {published.stem.rpartition('-')[2]}" in text
  assert f"/path/{published.name}, in place of the address" in text


def test_without_a_network_the_message_says_what_to_do(published, server, monkeypatch):
  with socket.socket() as taken:  # bound, but nobody listens
    taken.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("BIONETS_TORCHVISION_URL", f"{url}/")
    with pytest.raises(FileNotFoundError, match="cannot be reached .*refused") as error:
      locate(SOURCE, lambda text: None)
  check_offline(error, published, url)
  monkeypatch.setenv("BIONETS_TORCHVISION_URL", server.url)
  server.faults = [404]
  with pytest.raises(FileNotFoundError, match="the server says 404") as error:
    locate(SOURCE, lambda text: None)
  check_offline(error, published, server.url)
  monkeypatch.setattr(download, "TIMEOUT", 0.1)
  server.faults = ["silent"]
  with pytest.raises(FileNotFoundError, match="cannot be reached .*timed out"):
    locate(SOURCE, lambda text: None)
  assert len(server.asked) == 2  # without an answer there is no second attempt
  monkeypatch.setenv("BIONETS_TORCHVISION_URL", "file:///mirror")
  with pytest.raises(ValueError, match="BIONETS_TORCHVISION_URL"):
    locate(SOURCE)


def test_files_placed_by_hand_are_found_and_checked(published, server, tmp_path):
  theirs = tmp_path / "torch" / "hub" / "checkpoints" / published.name
  theirs.parent.mkdir(parents=True)
  theirs.write_bytes(BODY)
  assert locate(SOURCE).path == str(theirs)
  published.parent.mkdir(parents=True)
  published.write_bytes(BODY)
  assert locate(SOURCE).path == str(published) and not server.asked
  published.write_bytes(BODY[:-1])
  with pytest.raises(ValueError, match=f"{published} is not ResNet18_Weights.IMAGENET1K_V1: .*Remove it"):
    locate(SOURCE)
  assert published.exists()  # it is theirs to remove
  published.unlink()
  theirs.write_bytes(BODY[:-1])
  said = []
  assert locate(SOURCE, said.append).path == str(published)
  assert said[0].startswith(str(theirs)) and len(server.asked) == 1


def test_two_at_once_fetch_it_once(published, server):
  """Threads here; the lock is the same between processes, since each has a file of its own open."""
  found = []
  threads = [threading.Thread(target=lambda: found.append(locate(SOURCE, lambda text: None).path))
             for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == [str(published)] * 4 and len(server.asked) == 1
  assert published.read_bytes() == BODY


def test_a_mirror_is_asked_at_its_own_path(published, server, monkeypatch):
  server.files[f"a/b/{published.name}"] = BODY
  monkeypatch.setenv("BIONETS_TORCHVISION_URL", f"{server.url}/a/b/")
  locate(SOURCE, lambda text: None)
  assert server.asked == [(f"/a/b/{published.name}", "")]


def test_where_downloads_are_kept(monkeypatch):
  monkeypatch.delenv("BIONETS_CACHE", raising=False)
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.setenv("HOME", "/home/someone")
  assert from_torchvision.cache_folder() == "/home/someone/.cache/bionets_jax/weights"
  monkeypatch.setenv("XDG_CACHE_HOME", "/x")
  assert from_torchvision.cache_folder() == "/x/bionets_jax/weights"
  monkeypatch.setenv("BIONETS_CACHE", "~/mine")
  assert from_torchvision.cache_folder() == "/home/someone/mine/weights"


# --- torchvision's table ----------------------------------------------------------------------------


@pytest.mark.parametrize("source, message", (
    ("torchvision://ResNet50_Weights.IMAGENET1K_V3", "did you mean torchvision://ResNet50_Weights.IMAGENET"),
    ("torchvision://ResNet50_Weights", r"did you mean torchvision://ResNet50_Weights\.DEFAULT"),
    ("torchvision://resnet5", "did you mean torchvision://resnet50"),
    ("torchvision://MobileNet_V2_Weights.IMAGENET1K_V1", "there is no mobilenet_v2 here"),
    ("torchvision://mobilenet_v3_large", "there is no mobilenet_v3_large here"),
    ("torchvision://VGG16_Weights.IMAGENET1K_FEATURES", "there is no vgg16 here; .*vgg16_bn"),
    ("torchvision://", "has no such weights"),
    ("https://download.pytorch.org/models/resnet50-11ad3fa6.pth", "addresses of weights are hf://"),
    ("s3://bucket/file", "addresses of weights are hf://"),
    ("hf://resnet50", "expected hf://OWNER/REPO"),
    ("hf://timm/resnet50/../../x.pth", "expected hf://OWNER/REPO"),
    ("hf://timm/resnet50@a@b", "expected hf://OWNER/REPO"),
    ("hf://timm/resnet50/README.md", r"cannot read 'README.md'; .*\.safetensors"),
))
def test_what_is_no_address_is_refused_without_a_network(source, message, monkeypatch):
  monkeypatch.setattr(socket, "socket", None)
  for call in (check_source, locate):
    with pytest.raises(ValueError, match=message) as error:
      call(source)
    assert str(error.value).startswith(source)


def test_addresses_and_paths_are_told_apart(tmp_path):
  for source in (SOURCE, "hf://a/b", "hf://timm/resnet50.tv_in1k@main", "hf://a/b@refs/pr/3/c/d.safetensors"):
    assert is_remote(source)
    check_source(source)
  assert not is_remote(tmp_path)
  check_source(tmp_path)
  with pytest.raises(FileNotFoundError, match="nothing.pth: no such file"):
    locate(tmp_path / "nothing.pth")


def test_every_published_file_carries_its_checksum():
  assert len(TABLE["weights"]) == 30 and TABLE["base_url"] == "https://download.pytorch.org/models/"
  for name, row in TABLE["weights"].items():
    assert re.fullmatch(r"\w+-[0-9a-f]{8}\.pth", row["file"]), name
    found = from_torchvision.find(f"torchvision://{name}")
    assert found.sha256 == row["file"][-12:-4] and found.name == name
    network = TABLE["networks"][row["network"]]
    # Four or two bytes a parameter, and a few hundred for each tensor.
    assert found.size / network["parameters"] == pytest.approx(4, rel=0.05) or "Wide" in name
  for name, row in TABLE["networks"].items():
    default = from_torchvision.find(f"torchvision://{row['weights']}.DEFAULT")
    assert default == from_torchvision.find(f"torchvision://{name}")
    assert default.name.endswith(row["default"])
    bn.create_model(row["model"], **row["options"])


@functools.cache
def shapes(name, options):
  """The variables of a network as shapes. 75 pixels, and 224 where dense layers stand on the last maps."""
  model = bn.create_model(name, 1000, **json.loads(options))
  return abstract_variables(model, (224, 224, 3) if name.startswith("vgg") else (75, 75, 3))


FEW = ("resnet18", "vgg11_bn", "wide_resnet50_2")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FEW else slow) for name in TABLE["networks"]])
def test_published_networks_have_torchvisions_parameters(name):
  row = TABLE["networks"][name]
  tree = shapes(row["model"], json.dumps(row["options"]))
  assert bn.count_parameters(tree) == row["parameters"]


# --- timm's config.json -----------------------------------------------------------------------------


def write(tmp_path, config):
  path = tmp_path / "config.json"
  path.write_text(config if isinstance(config, str) else json.dumps(config))
  return path


GOOD = {
    "architecture": "resnet50", "num_classes": 1000, "global_pool": "avg", "pretrained_cfg": {
        "input_size": [3, 224, 224], "test_input_size": [3, 288, 288], "crop_pct": 0.95, "test_crop_pct": 1.0,
        "interpolation": "bicubic", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}


def changed(**changes):
  return GOOD | {"pretrained_cfg": GOOD["pretrained_cfg"] | changes}


def test_images_are_prepared_as_timm_does(tmp_path):
  for one in TIMM["configs"]:
    said = []
    name, _, found = timm_config.read_config(write(tmp_path, one["config"]), said.append)
    side, resize, interpolation, mean, std = one["expected"]
    squashed = one["config"]["pretrained_cfg"]["crop_mode"] == "squash"
    assert (found.image_size, [found.resize] * 2 if squashed else found.resize) == (side, resize)
    assert (found.interpolation, found.mean, found.std) == (interpolation, tuple(mean), tuple(std))
    assert len(said) == squashed and name in bn.list_models()
    # Once more, by our own description of it.
    fields = timm_config.write_fields(*timm_config._network(one["config"]["architecture"], ""), 10, found)
    assert fields["architecture"] == one["config"]["architecture"]
    assert timm_config.read_config(write(tmp_path, fields))[2] == found


def test_networks_of_timm_are_those_that_are_here():
  assert timm_config._NETWORKS.keys() == TIMM["networks"].keys()
  for old, new in TIMM["old_names"].items():
    if old != "ig_resnext101_32x48d":  # whose width no other has
      assert timm_config._network(old, "") == timm_config._network(new, ""), old
  for name in (*TIMM["others"], "ig_resnext101_32x48d", "gluon_resnet50_v1c"):
    with pytest.raises(ValueError, match=f"config.json: .* timm's '{name}', which is none of the networks"):
      timm_config._network(name, "config.json")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("seresnet50", "mobilenetv1_125") else slow)
             for name in TIMM["networks"]])
def test_networks_have_timms_keys_and_shapes(name):
  ours, options = timm_config._network(name, "")
  tree = shapes(ours, json.dumps(options))
  layout = ("timm_efficientnet" if "efficientnet" in name else "timm_mobilenetv1" if "mobilenet" in name
            else "timm_seresnet" if name.startswith("se") else "torchvision")
  tensors = to_layout(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), tree), layout)
  lines = sorted(f"{key} {value.shape}" for key, value in tensors.items() if "num_batches" not in key)
  assert zlib.crc32("\n".join(lines).encode()) == TIMM["networks"][name]


def test_a_config_beside_a_file_comes_along(tmp_path):
  file = tmp_path / "model.safetensors"
  save_file({"x": np.zeros(1, np.float32)}, file)
  assert locate(file) == Located(str(file), str(file))
  write(tmp_path, GOOD)
  found = locate(file)
  assert (found.name, found.options, found.preprocessing.image_size) == ("resnet50", {}, 288)
  assert locate(tmp_path).path == str(file)  # a folder like a repository of the hub
  # timm < 0.9 wrote one level only.
  flat = GOOD["pretrained_cfg"] | {"architecture": "tv_resnet50"}
  write(tmp_path, flat)
  assert locate(file).preprocessing == found.preprocessing


def test_a_run_is_not_taken_for_timms(tmp_path):
  file = tmp_path / "weights.safetensors"
  about = {"model": "resnet20_cifar", "options": {}, "num_classes": 10, "class_names": [],
           "image_shape": [32, 32, 3], "preprocessing": {}}
  save_native(file, {"params": {"x": np.zeros(1, np.float32)}}, about)
  write(tmp_path, {"task": "classification", "model": {"name": "resnet20_cifar"}, "data": {}})
  assert locate(tmp_path) == Located(str(tmp_path), str(tmp_path))
  assert locate(file) == Located(str(file), str(file))
  write(tmp_path, "not even JSON")
  assert locate(file).name == ""  # the file says itself what it is


HOSTILE = (
    ("{", "damaged"), ("\xff", "damaged"), ("[" * 100_000, "nested too deeply"),
    ('{"a": NaN}', "NaN is no JSON"),
    (changed(mean=[0.5, 1e999, 0.5]), "damaged"),
    ({"architecture": 3}, "architecture is 3"), ({"architecture": ["resnet50"]}, "architecture is"),
    (GOOD | {"architecture": "resnet50d"}, "none of the networks here; the nearest that are: resnet50"),
    (GOOD | {"architecture": "resnetaa50"}, "timm's 'resnetaa50', which is none"),
    (GOOD | {"pretrained_cfg": []}, "pretrained_cfg is a list"),
    (GOOD | {"global_pool": "catavgmax"}, "global_pool is 'catavgmax'"),
    (GOOD | {"model_args": {"global_pool": "max"}}, "global_pool is 'max'"),
    (GOOD | {"model_args": {"output_stride": 8}}, "model_args has output_stride"),
    (GOOD | {"model_args": [1]}, "model_args is a list"),
    (changed(mean=[128, 128, 128]), "0..1"), (changed(mean=[0.5, 0.5, True]), "mean is"),
    (changed(mean=[0.5]), "expected 3 numbers"), (changed(mean="0.5"), "mean is '0.5'"),
    (changed(std=[0.0, 0.2, 0.2]), "positive"), (changed(std={"r": 1}), "std is"),
    (changed(test_input_size=[3, 224, 192]), "test_input_size is .*expected a square"),
    (changed(test_input_size=[3, 10**9, 10**9]), "expected a square of 1 to 4096"),
    (changed(test_input_size=[3, 0, 0]), "expected a square"),
    (changed(test_input_size="3x224x224"), "expected three whole numbers"),
    (changed(test_input_size=[3, 224.0, 224.0]), "expected three whole numbers"),
    (changed(test_crop_pct=0.01), "test_crop_pct is 0.01"),
    (changed(test_crop_pct=None, crop_pct=0), "crop_pct is 0"),
    (changed(test_crop_pct="0.9"), "test_crop_pct is '0.9'"),
    (changed(crop_mode="border"), "crop_mode is 'border'"),
    (changed(interpolation="lanczos"), "interpolation 'lanczos'"),
    (changed(interpolation=[1]), r"interpolation \[1\]"),
    (" " * (8 * 2**20 + 1), "more than any description"),
)


@pytest.mark.parametrize("config, message", HOSTILE, ids=[message for _, message in HOSTILE])
def test_a_hostile_config_is_refused_before_the_weights_are_read(tmp_path, config, message):
  path = tmp_path / "config.json"
  if config == "\xff":
    path.write_bytes(b"\xff")
  else:
    write(tmp_path, config)
  file = tmp_path / "model.safetensors"
  file.write_bytes(b"not weights at all")
  with pytest.raises(ValueError, match=message) as error:
    locate(file)
  assert str(path) in str(error.value) and "move it away" in str(error.value)
