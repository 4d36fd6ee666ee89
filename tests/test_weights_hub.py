"""The Hugging Face hub: huggingface_hub itself, in processes of its own, against a hub in this one."""

import json
import os
import pathlib
import subprocess
import sys

import fake_hub
import numpy as np
import pytest
from safetensors.numpy import save

from bionets_jax.weights import hub as push_to
from bionets_jax.weights.native import load_native, save_native

ROOT = pathlib.Path(__file__).parent.parent
# huggingface_hub reads its environment once, when it is imported.
CLIENT = """
import json, sys
from bionets_jax.weights.hub import push
from bionets_jax.weights.locate import locate
results = []
for what, *arguments in json.loads(sys.argv[1]):
  said = []
  try:
    if what == "push":
      result = push(*arguments[:2], say=said.append, **arguments[2])
    else:
      found = locate(what, said.append)
      result = {"path": found.path, "name": found.name,
                "image_size": found.preprocessing and found.preprocessing.image_size}
  except Exception as error:
    result = f"{type(error).__name__}: {error}"
  results.append([result, said])
print(json.dumps(results))
"""
CONFIG = json.dumps({"architecture": "resnet50", "pretrained_cfg": {
    "input_size": [3, 224, 224], "test_input_size": [3, 288, 288], "test_crop_pct": 1.0}}).encode()
WEIGHTS = save({"x": np.arange(100, dtype=np.float32)})
LOGIN = "log in (`hf auth login`, or HF_TOKEN in the environment)"


def client(asked, home, url, **environment):
  """What the process answers to each of `asked`: [result, what it said]."""
  variables = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
  variables |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
                # Whatever does not go to this machine goes nowhere.
                "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"} | environment
  command = [sys.executable, "-c", CLIENT, json.dumps(asked)]
  done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.fixture(scope="module")
def hub():
  with fake_hub.serve() as found:
    found.add("timm/resnet50.tv_in1k", {"model.safetensors": WEIGHTS, "pytorch_model.bin": b"x",
                                        "config.json": CONFIG}, branches=("main", "v1"))
    found.add("timm/resnet50d.a1_in1k", {
        "model.safetensors": WEIGHTS, "config.json": CONFIG.replace(b"resnet50", b"resnet50d")})
    found.add("me/old", {"pytorch_model.bin": WEIGHTS, "sub/other.pth": WEIGHTS, "sub/config.json": CONFIG})
    found.add("me/strange", {"README.md": b"", "sub/a.pth": b""})
    found.add("me/none", {"README.md": b""})
    found.add("me/private", {"model.safetensors": WEIGHTS}, private=True)
    found.add("me/gated", {"model.safetensors": WEIGHTS}, gated=True)
    yield found


def found_in(result):
  return pathlib.Path(result["path"]).parts[-1], result["name"], result["image_size"]


def test_downloads(hub, tmp_path):
  asked = ["hf://timm/resnet50.tv_in1k"] * 2 + [
      "hf://timm/resnet50.tv_in1k@v1/pytorch_model.bin", "hf://me/old", "hf://me/old/sub/other.pth"]
  (first, said), (second, silent), *others = client([[source] for source in asked], tmp_path, hub.url)
  assert found_in(first) == ("model.safetensors", "resnet50", 288)
  commit = hub.commit("timm/resnet50.tv_in1k")[:12]
  assert said == [f"fetching model.safetensors (0.0 MB) of timm/resnet50.tv_in1k, commit {commit}, from the "
                  "Hugging Face hub"]
  assert pathlib.Path(first["path"]).read_bytes() == WEIGHTS and (second, silent) == (first, [])
  assert [found_in(result) for result, _ in others] == [
      ("pytorch_model.bin", "resnet50", 288), ("pytorch_model.bin", "", None), ("other.pth", "resnet50", 288)]
  # Later, without a network: what the cache has.
  for variables in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
    (again, said), (missing, _) = client(
        [["hf://timm/resnet50.tv_in1k"], ["hf://me/none@v2"]], tmp_path, hub.url, **variables)
    assert again == first and "the hub cannot be reached; using" in said[0]
    url = f"{variables.get('HF_ENDPOINT', hub.url)}/me/none/resolve/v2"
    assert missing.startswith("FileNotFoundError: hf://me/none@v2: the hub cannot be reached (")
    assert f"Fetch {url}/model.safetensors elsewhere, {url}/config.json too" in missing
    assert "/path/model.safetensors, in place of the address" in missing


def test_what_the_hub_refuses(hub, tmp_path):
  asked = ["hf://me/old@v2", "hf://me/old/b.safetensors", "hf://me/strange", "hf://me/none",
           "hf://me/private", "hf://me/gated", "hf://me/nothing", "hf://timm/resnet50d.a1_in1k"]
  before = len(hub.requests)
  results = [result for result, _ in client([[source] for source in asked], tmp_path, hub.url)]
  for result, source, message in zip(results, asked, (
      "me/old has no branch, tag or commit 'v2'",
      "me/old has no 'b.safetensors'; give one of its files: hf://me/old/pytorch_model.bin, hf://me/old/sub/",
      "me/strange has none of weights.safetensors, model.safetensors, pytorch_model.bin; give one of its "
      "files: hf://me/strange/sub/a.pth",
      "me/none has none of weights.safetensors, model.safetensors, pytorch_model.bin, nor any other file",
      "the hub has no such repository, or it is private",
      "its authors ask for consent to their terms; give it on https://huggingface.co/me/gated, and " + LOGIN,
      "the hub has no such repository", "timm's 'resnet50d', which is none of the networks"), strict=True):
    assert f"{source}: " in result and message in result
    assert result.startswith("ValueError" if "resnet50d" in source else "FileNotFoundError")
  assert LOGIN in results[4]
  # Of a network that is none of ours the weights are not fetched.
  assert not any("GET /timm/resnet50d.a1_in1k/resolve/main/model" in line for line in hub.requests[before:])
  tokened = client([["hf://me/private"], ["hf://me/gated"]], tmp_path, hub.url, HF_TOKEN=hub.token)
  assert [pathlib.Path(result["path"]).read_bytes() for result, _ in tokened] == [WEIGHTS] * 2


def test_a_hub_that_is_down_is_not_waited_for(hub, tmp_path):
  hub.down = 500
  try:
    ((result, _),) = client([["hf://timm/resnet50.tv_in1k"]], tmp_path, hub.url)
  finally:
    hub.down = 0
  assert "the hub cannot be reached (" in result and "500" in result


# --- uploads ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
  """As `weights card` writes it."""
  path = tmp_path / "shared"
  path.mkdir()
  about = {"model": "resnet20_cifar", "options": {"stage_sizes": [1, 1, 1]}, "num_classes": 3,
           "class_names": ["a", "b", "c"], "image_shape": [32, 32, 3],
           "preprocessing": {"mean": [0.5], "std": [0.5], "image_size": 32, "resize": 32}}
  save_native(path / "weights.safetensors", {"params": {"x": np.arange(5, dtype=np.float32)}}, about)
  (path / "config.json").write_text(json.dumps({"library_name": "bionets_jax"} | about))
  (path / "README.md").write_text("---\nlibrary_name: bionets_jax\n---\n\n# resnet20_cifar\n")
  (path / "model.py").write_text("model = 1\n")
  return path


def test_what_was_pushed_loads_again(hub, folder, tmp_path):
  name = str(folder)
  asked = [["push", name, "me/new", {"dry_run": True}], ["push", name, "me/new", {}], ["hf://me/new"],
           ["push", name, "me/new", {"message": "again"}], ["push", name, "me/new", {"private": True}],
           ["push", name, "me/hidden", {"private": True}]]
  before = len(hub.requests)
  tried, pushed, loaded, again, public, hidden = client(asked, tmp_path, hub.url, HF_TOKEN=hub.token)
  files = ["README.md", "config.json", "model.py", "weights.safetensors"]
  assert [line.split()[:3] for line in tried[1]] == [["would", "upload", file] for file in files]
  assert tried[0] == pushed[0] == f"{hub.url}/me/new"
  assert pushed[1][-1] == f"{hub.url}/me/new, to be loaded as hf://me/new"
  assert hub.repos["me/new"]["files"] == {path.name: path.read_bytes() for path in folder.iterdir()}
  made = [line for line in hub.requests[before:] if "/repos/create" in line or "/me/" in line]
  assert made[0] == "POST /api/repos/create" and made.count(made[0]) == 4  # none by the trial
  variables, about = load_native(loaded[0]["path"])
  assert about["model"] == "resnet20_cifar" and variables["params"]["x"].tolist() == [0, 1, 2, 3, 4]
  assert loaded[0]["name"] == ""  # the file says itself what it is
  assert again[0] == pushed[0]
  assert public[0].startswith("ValueError: me/new is there already and is public")
  assert hidden[0] == f"{hub.url}/me/hidden" and hub.repos["me/hidden"]["private"]


def test_without_the_right_token_nothing_is_uploaded(hub, folder, tmp_path):
  asked = [["push", str(folder), "me/other", {}]]
  ((result, _),) = client(asked, tmp_path, hub.url)
  assert result.startswith("ValueError: no token of the Hugging Face hub: log in with `hf auth login`")
  ((result, _),) = client(asked, tmp_path, hub.url, HF_TOKEN="hf_wrong")
  assert result.startswith("OSError: me/other: nothing was uploaded (")
  assert "The token does not allow it: log in" in result
  ((result, _),) = client(asked, tmp_path, "http://127.0.0.1:9", HF_TOKEN=hub.token)
  assert result.startswith("OSError: me/other: nothing was uploaded (")
  assert "me/other" not in hub.repos


@pytest.mark.parametrize("name", (
    "checkpoints/1", "metrics.jsonl", ".env", "optimizer.safetensors", "summary.json", ".git/config",
    "token.txt"))
def test_nothing_unexpected_is_uploaded(folder, name):
  (folder / name).parent.mkdir(exist_ok=True)
  (folder / name).write_text("secret")
  with pytest.raises(ValueError, match=f"holds {name.split('/')[0]}, which is not uploaded"):
    push_to.push(folder, "me/new", dry_run=True)


def test_a_folder_without_a_card_is_refused(folder, tmp_path):
  for name, change, message in (
      ("config.json", '{"task": "classification"}', "is not one of a model card"),
      ("config.json", "[", "is not one of a model card"),
      ("weights.safetensors", WEIGHTS, "was not written by bionets_jax"),
  ):
    kept = (folder / name).read_bytes()
    (folder / name).write_bytes(change if isinstance(change, bytes) else change.encode())
    with pytest.raises(ValueError, match=message):
      push_to.push(folder, "me/new", dry_run=True)
    (folder / name).write_bytes(kept)
  with pytest.raises(ValueError, match="OWNER/NAME"):
    push_to.push(folder, "new", dry_run=True)
  (folder / "model.py").unlink()
  (folder / "model.py").symlink_to("/etc/passwd")
  with pytest.raises(ValueError, match="holds model.py, which is not uploaded"):
    push_to.push(folder, "me/new", dry_run=True)
  (folder / "model.py").unlink()
  (folder / "README.md").unlink()
  with pytest.raises(FileNotFoundError, match="has no README.md; `python -m bionets_jax.weights card`"):
    push_to.push(folder, "me/new", dry_run=True)
  with pytest.raises(FileNotFoundError, match="no such folder"):
    push_to.push(tmp_path / "nothing", "me/new", dry_run=True)
