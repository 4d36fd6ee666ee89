"""Checkpoints: what is damaged and how a run goes on behind it, and saves that are cut short."""

import gc
import glob
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from saved_states import assert_step, clock_of, fill, make_state, quiet
from test_training import weight_bytes
from tiny import tiny_config

from bionets_jax.training.checkpoint_record import Damaged
from bionets_jax.training.checkpoints import Checkpoints, abstract_like
from bionets_jax.training.evaluation import evaluate_workdir
from bionets_jax.training.keeping import Keep
from bionets_jax.training.loop import train
from bionets_jax.training.orbax_files import write_items
from bionets_jax.training.restoring import restore_newest
from bionets_jax.training.writer import read_metrics

# Damage --------------------------------------------------------------------------------------


def biggest(folder):
  """The file of the arrays."""
  return max((f for f in glob.glob(f"{folder}/state/**", recursive=True) if os.path.isfile(f)), key=os.path.getsize)


def change_byte(path, at=-1):
  with open(path, "r+b") as file:
    file.seek(at if at >= 0 else os.path.getsize(path) // 2)
    byte = file.read(1)
    file.seek(-1, 1)
    file.write(bytes([byte[0] ^ 16]))


def cut(path):
  os.truncate(path, os.path.getsize(path) // 2)


def empty(path):
  os.truncate(path, 0)


def rewrite(path, content):
  with open(path, "w", encoding="utf-8") as file:
    file.write(content if isinstance(content, str) else json.dumps(content))


def an_error_more(folder):
  """JSON as good as before, with another number in it."""
  path = f"{folder}/clock/metadata"
  with open(path, encoding="utf-8") as file:
    record = json.load(file)
  record["clock"]["train"] += 1
  rewrite(path, record)


DAMAGES = {
    "a bit of the arrays": lambda d: change_byte(biggest(d)),
    "the arrays are cut off": lambda d: cut(biggest(d)),
    "the arrays are empty": lambda d: empty(biggest(d)),
    "the arrays are gone": lambda d: os.remove(biggest(d)),
    "no state": lambda d: shutil.rmtree(f"{d}/state"),
    "no clock": lambda d: shutil.rmtree(f"{d}/clock"),
    "no files": lambda d: (shutil.rmtree(d), os.mkdir(d)),
    "a file for a folder": lambda d: (shutil.rmtree(d), rewrite(d, "x")),
    "a link to nothing": lambda d: (shutil.rmtree(d), os.symlink("/no/such/folder", d)),
    "a pipe": lambda d: (os.remove(biggest(d)), os.mkfifo(f"{d}/state/pipe")),
    "half a clock": lambda d: cut(f"{d}/clock/metadata"),
    "a clock that is a list": lambda d: rewrite(f"{d}/clock/metadata", [1, 2]),
    "a clock that is too deep": lambda d: rewrite(f"{d}/clock/metadata", "[" * 100_000),
    "a clock that lacks most": lambda d: rewrite(f"{d}/clock/metadata", {"train": 1.0, "inputs": 5}),
    "another number in the clock": an_error_more,
    "no digests": lambda d: os.remove(f"{d}/files.json"),
    "digests that are none": lambda d: rewrite(f"{d}/files.json", [1]),
    "no description of the arrays": lambda d: os.remove(f"{d}/state/_METADATA"),
    "a description of other types": lambda d: rewrite(f"{d}/state/_METADATA", {"tree_metadata": [5]}),
    "a manifest of zeros": lambda d: rewrite(f"{d}/state/manifest.ocdbt", "\0" * 100),
    "another step": lambda d: (shutil.rmtree(d), shutil.copytree(f"{os.path.dirname(d)}/5", d)),
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
  """A workdir with checkpoints of steps 5 and 10."""
  folder = tmp_path_factory.mktemp("sound")
  fill(folder, (5, 10))
  return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_set_aside(sound, tmp_path, damage):
  workdir = tmp_path / "w"
  shutil.copytree(sound, workdir)
  DAMAGES[damage](str(workdir / "checkpoints" / "10"))
  abstract, said = abstract_like(make_state(0)), []
  reading = Checkpoints(str(workdir), Keep(), say=said.append, read_only=True)
  step, _, found = restore_newest([reading], abstract, said.append)
  assert step == 5 and reading.steps() == [5, 10]  # who only reads moves nothing
  assert "checkpoints/10 is damaged: " in said[0] and len(said) == 1
  said.clear()
  checkpoints = Checkpoints(str(workdir), Keep(), say=said.append)
  step, furthest, [(state, clock)] = restore_newest([checkpoints], abstract, said.append)
  assert (step, furthest, clock["train"]) == (5, 5, 5.1)
  assert_step(state, 5)
  assert len(said) == 1 and "checkpoints/10 is damaged: " in said[0] and "moved to " in said[0]
  aside = os.listdir(workdir / "checkpoints-damaged")
  assert len(aside) == 1 and aside[0].startswith("10-") and said[0].endswith(aside[0])
  # The step can be saved again, and then be damaged again.
  checkpoints.save(10, make_state(10), clock_of(10))
  checkpoints.wait()
  assert_step(restore_newest([checkpoints], abstract, quiet).found[0][0], 10)


def test_without_a_sound_checkpoint_the_run_begins_again_and_says_so(sound, tmp_path):
  shutil.copytree(sound, tmp_path / "w")
  for step in (5, 10):
    cut(biggest(tmp_path / "w" / "checkpoints" / str(step)))
  said = []
  newest = restore_newest([Checkpoints(str(tmp_path / "w"), Keep())], abstract_like(make_state(0)), said.append)
  assert newest == (0, 0, ()) and len(said) == 3 and "back to step 0" in said[-1]
  assert len(os.listdir(tmp_path / "w" / "checkpoints-damaged")) == 2


def test_runs_side_by_side_fall_back_together(sound, tmp_path):
  for name in "ab":
    shutil.copytree(sound, tmp_path / name)
  change_byte(biggest(tmp_path / "b" / "checkpoints" / "10"))
  runs = [Checkpoints(str(tmp_path / name), Keep()) for name in "ab"]
  newest = restore_newest(runs, abstract_like(make_state(0)), quiet)
  assert (newest.step, newest.furthest, len(newest.found)) == (5, 10, 2)
  assert runs[0].steps() == [5, 10] and runs[1].steps() == [5]


@pytest.mark.parametrize("there,wanted", [(1, 4), (4, 1), (4, 2)])
def test_a_checkpoint_is_restored_onto_any_number_of_devices(tmp_path, there, wanted):
  checkpoints = Checkpoints(str(tmp_path), Keep())
  state = make_state(3, devices=there)
  checkpoints.save(3, state, clock_of(3))
  # A donation while the save is under way takes nothing from it.
  jax.block_until_ready(jax.jit(lambda t: jax.tree.map(jnp.zeros_like, t), donate_argnums=0)(state))
  checkpoints.wait()
  abstract = abstract_like(make_state(0, devices=wanted))
  restored, clock = checkpoints.restore(3, abstract)
  assert clock == clock_of(3)
  for leaf, like in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True):
    assert (leaf.dtype, leaf.sharding) == (like.dtype, like.sharding) and len(leaf.addressable_shards) == wanted
  assert_step(restored, 3)
  again, _ = checkpoints.restore(3, abstract)
  jax.block_until_ready(jax.jit(lambda t: jax.tree.map(lambda x: x * 0, t), donate_argnums=0)(again))
  assert_step(restored, 3)


def test_a_checkpoint_of_another_model_is_an_error_and_stays(sound):
  checkpoints = Checkpoints(str(sound), Keep())
  other = abstract_like(make_state(0, size=6000))
  other["params"]["new"] = other["step"]
  with pytest.raises(ValueError, match=r"(?s)2 leaves differ.*params/a/kernel: float32\(100, 50\) in the checkpoint, "
                                       r"float32\(120, 50\) in the run.*params/new: absent in"):
    restore_newest([checkpoints], other, quiet)
  assert checkpoints.steps() == [5, 10]


def test_files_that_may_not_be_read_are_an_error_and_stay(sound, monkeypatch):
  real = open
  def refuse(file, *arguments, **options):
    if str(file).endswith("manifest.ocdbt"):
      raise PermissionError(13, "Permission denied", file)
    return real(file, *arguments, **options)
  monkeypatch.setattr("builtins.open", refuse)
  checkpoints = Checkpoints(str(sound), Keep())
  with pytest.raises(PermissionError, match="manifest.ocdbt"):
    restore_newest([checkpoints], abstract_like(make_state(0)), quiet)
  assert checkpoints.steps() == [5, 10]


def test_a_checkpoint_from_before_the_digests_is_still_read(tmp_path):
  import orbax.checkpoint as ocp
  with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
    manager.save(7, args=ocp.args.Composite(
        state=ocp.args.StandardSave(make_state(7, devices=2)), clock=ocp.args.JsonSave(clock_of(7))))
  checkpoints = Checkpoints(str(tmp_path), Keep())
  state, clock = checkpoints.restore(7, abstract_like(make_state(0)))
  assert clock == clock_of(7)
  assert_step(state, 7)
  for other in (make_state(0)["params"], make_state(0, size=6000)):
    with pytest.raises(ValueError, match="of another model"):
      checkpoints.restore(7, abstract_like(other))


def test_names_that_are_no_steps_are_left_alone(sound, tmp_path):
  shutil.copytree(sound, tmp_path / "w")
  for name in ("007", "-5", "1e3", "9" * 200, "0", "notes"):
    (tmp_path / "w" / "checkpoints" / name).mkdir()
  assert fill(tmp_path / "w", (20,), Keep(last=1)).steps() == [20]
  assert len(os.listdir(tmp_path / "w" / "checkpoints")) == 7


def test_a_link_is_removed_and_not_what_it_leads_to(sound, tmp_path):
  shutil.copytree(sound, tmp_path / "elsewhere")
  (tmp_path / "w" / "checkpoints").mkdir(parents=True)
  (tmp_path / "w" / "checkpoints" / "5").symlink_to(tmp_path / "elsewhere" / "checkpoints" / "5")
  assert fill(tmp_path / "w", (6,), Keep(last=1)).steps() == [6]
  assert_step(Checkpoints(str(tmp_path / "elsewhere"), Keep()).restore(5, abstract_like(make_state(0)))[0], 5)


# kill -9 -------------------------------------------------------------------------------------

# Forks before JAX starts its threads: the imports, which take longest, are made once.
_SAVING = """
import os, sys
sys.path[:0] = [{tests!r}, {root!r}]
import test_checkpoints as t
for line in sys.stdin:
  child = os.fork()
  if not child:
    checkpoints = t.Checkpoints(line.strip(), t.Keep(last=2), say=t.quiet)
    step = checkpoints.latest_step() or 0
    print("begun", flush=True)
    while True:
      step += 1
      checkpoints.save(step, t.make_state(step), t.clock_of(step))
  print(child, flush=True)
  os.waitpid(child, 0)
"""


def test_kill_9_within_a_save_leaves_the_one_before(tmp_path):
  here = os.path.dirname(__file__)
  code = _SAVING.format(tests=here, root=os.path.dirname(here))
  clean = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
  dice = random.Random(7)
  with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                        env=clean) as parent:
    last, cuts = 0, 0
    for _ in range(6):
      print(tmp_path, file=parent.stdin, flush=True)
      lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
      [child] = lines - {"begun"}
      while (Checkpoints(str(tmp_path), Keep(), read_only=True).latest_step() or 0) <= last:
        time.sleep(0.01)
      time.sleep(dice.uniform(0, 0.1))
      os.kill(int(child), signal.SIGKILL)
      cuts += any(not name.isdigit() for name in os.listdir(tmp_path / "checkpoints"))
      reading = Checkpoints(str(tmp_path), Keep(), read_only=True)
      said = []
      newest = restore_newest([reading], abstract_like(make_state(0)), said.append)
      assert newest.step > last and not said
      assert_step(newest.found[0][0], newest.step)
      last = newest.step
    parent.stdin.close()
  assert cuts, "no save was cut short"
  said = []
  Checkpoints(str(tmp_path), Keep(), say=said.append)
  assert all(name.isdigit() for name in os.listdir(tmp_path / "checkpoints"))


def test_a_checkpoint_that_lacks_only_its_name_gets_it(sound, tmp_path):
  for name, whole in (("whole", True), ("cut", False)):
    shutil.copytree(sound, tmp_path / name)
    os.rename(tmp_path / name / "checkpoints" / "10", tmp_path / name / "checkpoints" / "10.saving")
    if not whole:
      change_byte(biggest(tmp_path / name / "checkpoints" / "10.saving"))
    said = []
    assert Checkpoints(str(tmp_path / name), Keep(), say=said.append).steps() == [5, 10][: 1 + whole]
    assert len(said) == 1 - whole and len(os.listdir(tmp_path / name / "checkpoints")) == 1 + whole


def test_a_step_that_is_saved_again_is_replaced(tmp_path):
  checkpoints = fill(tmp_path, (4, 5))
  checkpoints.save(5, make_state(6), clock_of(9))
  checkpoints.wait()
  state, clock = checkpoints.restore(5, abstract_like(make_state(0)))
  assert_step(state, 6)
  assert clock == clock_of(9) and sorted(os.listdir(tmp_path / "checkpoints")) == ["4", "5"]


# In a run ------------------------------------------------------------------------------------


def test_a_run_falls_back_and_ends_as_it_would_have(tmp_path):
  config = tiny_config(duration="12 steps", checkpoint_every="4 steps", eval_every="6 steps", keep_best=1,
                       keep_every="8 steps", keep_checkpoints=2)
  one = jax.devices()[:1]
  whole, workdir = str(tmp_path / "whole"), str(tmp_path / "cut")
  train(config, whole, say=quiet, devices=one)
  assert Checkpoints(whole, Keep()).steps() == [8, 12]
  shutil.copytree(whole, workdir)
  for name in ("weights.safetensors", "summary.json"):
    os.remove(f"{workdir}/{name}")
  change_byte(biggest(f"{workdir}/checkpoints/12"))
  said = []
  found = evaluate_workdir(config, workdir, say=said.append)
  assert found["step"] == 8 and any("checkpoints/12 is damaged" in text for text in said)
  said.clear()
  train(config, workdir, say=said.append, devices=one)
  assert "resuming from step 8 of 12" in said and sum("is damaged" in text for text in said) == 1
  assert weight_bytes(workdir) == weight_bytes(whole)
  assert read_metrics(f"{workdir}/metrics.jsonl")[-1]["step"] == 12
  for step in (8, 12):
    shutil.rmtree(f"{workdir}/checkpoints/{step}/state")
  with pytest.raises(FileNotFoundError, match="none that can be read"):
    evaluate_workdir(config, workdir, say=quiet)
  with pytest.raises(Damaged, match="state"):
    Checkpoints(workdir, Keep()).restore(8, abstract_like(make_state(0)))


def test_a_save_leaves_nothing_in_memory(tmp_path):
  """Of Python's: tensorstore never frees what it tells Orbax of the place of each array, some 300 blocks a save of 64."""
  state = {f"w{i}": np.zeros((4, 4), np.float32) for i in range(64)}

  def blocks_after(saves):
    for i in saves:
      write_items(str(tmp_path / str(i)), state, {"step": i})
    gc.collect()
    return sys.getallocatedblocks()

  start = blocks_after(range(15))  # caches fill
  assert blocks_after(range(15, 30)) - start < 15 * 100


def test_a_save_takes_no_more_threads_than_tensorstore_would(tmp_path, monkeypatch):
  """Orbax asks for up to 128, which a busy machine starts one by one and frequent saves keep alive."""
  state, limits = {"w": np.zeros((4, 4), np.float32)}, []
  own_open, own_context = tensorstore.open, tensorstore.Context

  def limit_of(context):
    return context.spec.to_json()["file_io_concurrency"]

  def open_seen(*args, context=None, **options):
    limits.append(limit_of(context))
    # What another thread makes meanwhile stays as it wants it.
    assert limit_of(tensorstore.Context({"file_io_concurrency": {"limit": 7}})) == {"limit": 7}
    tensorstore.Context()
    return own_open(*args, context=context, **options)

  monkeypatch.setattr(tensorstore, "open", open_seen)
  write_items(str(tmp_path / "ours"), state, {"step": 0})
  assert limits and all(limit == {} for limit in limits)  # as tensorstore writes what is shared by the whole process
  assert tensorstore.Context is own_context
  limits.clear()
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(str(tmp_path / "orbax"), state)
  assert {"limit": 128} in limits  # or there is nothing left to change
