"""What surrounds a step: no wait, no compilation, no copy of the state; memory, rates, traces, the start."""

import functools
import math
import os
import re
import shutil
import subprocess
import threading
import time
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import tiny_config, tiny_model

import bionets_jax as bn
from bionets_jax import experiments
from bionets_jax.counting import abstract_variables
from bionets_jax.training import largest_batch, loop, profiling, stalls, start_up, utilization
from bionets_jax.training.clock import readable_rate
from bionets_jax.training.compile_cache import cache_counts, use_compile_cache
from bionets_jax.training.device_memory import memory_need
from bionets_jax.training.loop import train
from bionets_jax.training.program import abstract_batch, abstract_state, compile_ahead
from bionets_jax.training.setup import check_values, make_setup
from bionets_jax.training.writer import read_metrics

PEAK = 1e12
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of 12 steps, evaluated at 8 and 12: (workdir, what it said, summary, events in their order).

  Those are 'dispatched', 'fetched', 'compiled', and the first two words of what was said.
  """
  workdir = str(tmp_path_factory.mktemp("run"))
  events, said = [], []

  def say(text):
    said.append(text)
    events.append(" ".join(text.split()[:2]))

  def hear(name, seconds, **_):
    if name == COMPILED:
      events.append("compiled")

  def noted(event, function):
    def call(*arguments):
      events.append(event)
      return function(*arguments)
    return call

  dispatched, get = stalls.StallWatch.dispatched, jax.device_get
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stalls.StallWatch, "dispatched", noted("dispatched", dispatched))
    patch.setattr(loop.jax, "device_get", noted("fetched", get))
    patch.setattr(utilization, "_matmul_rate", lambda device, dtype: PEAK)
    jax.monitoring.register_event_duration_secs_listener(hear)
    config = tiny_config(
        duration="12 steps", log_every="2 steps", eval_every="8 steps", checkpoint_every="100 steps",
        profile="5:3")
    config.model.options.stage_sizes = (1, 1)
    config.model.options.width = 4
    summary = train(config, workdir, say=say, devices=jax.devices()[:1]).summary
    jax.monitoring.unregister_event_duration_listener(hear)
  return workdir, said, summary, events


def test_two_steps_are_in_flight_and_none_is_waited_for(run):
  steps = run[3][:run[3].index("step 8")]
  ahead, most, least = 0, 0, []
  for event in steps:
    ahead += {"dispatched": 1, "fetched": -1}.get(event, 0)
    most = max(most, ahead)
    if event == "fetched":
      least.append(ahead)
  assert most == 3 and len(least) >= 6  # the step that was just dispatched, and two
  # Each is fetched when two newer ones are on their way: but for the first, and around the trace.
  assert sorted(least)[-1] == 2


def test_nothing_is_compiled_between_the_first_step_and_the_evaluation(run):
  events = run[3]
  first, evaluation = events.index("first step"), events.index("step 8")
  assert "compiled" not in events[first:evaluation] and "compiled" in events[:first]
  later = events[len(events) - events[::-1].index("step 8"):]  # behind the last line of step 8
  assert later.count("dispatched") == 4 and "compiled" not in later[:later.index("step 12")]


def test_rates_and_the_start_are_in_the_log(run):
  workdir, said, summary, _ = run
  lines = [line for line in read_metrics(f"{workdir}/metrics.jsonl") if "train/loss" in line]
  assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
  operations = 6 * summary["macs"]
  for line in lines:
    assert line["time/mfu"] == pytest.approx(line["time/images_per_second"] * operations / PEAK)
    assert 0 <= line["time/data_wait"] <= 1
  phases = ("imports", "setup", "initialisation", "first_batch", "compilation", "first_step")
  start = summary["start_seconds"]
  assert start["total"] == pytest.approx(sum(v for k, v in start.items() if k != "total"), abs=0.01)
  assert {f"start/{name}" for name in phases if name != "imports"} <= set(lines[0])
  assert lines[0]["start/total"] == start["total"] and not any(key.startswith("start/") for key in lines[1])
  assert any(f"MFU {100 * lines[1]['time/mfu']:.1f} %" in text for text in said)


def test_the_trace_names_the_layers(run):
  workdir, said, _, _ = run
  with open(f"{workdir}/profile/{profiling.TABLE_FILE}", encoding="utf-8") as file:
    table = file.read()
  assert table.rstrip("\n") in said and "all, in 3 traced steps" in table
  assert re.search(r"\d %  +1\.0  conv\S*  \S*stage\d_block0/\S*conv\d/", table)
  found = profiling.operations(f"{workdir}/profile")
  assert found[0].seconds >= found[-1].seconds > 0 and {"jit_train_step"} <= {o.program for o in found}


# The step's memory ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled():
  """remat -> the compiled step of a batch of 64 of a network of two blocks a stage, and its setup."""
  out = {}
  for remat in ("", "blocks"):
    config = tiny_config(remat=remat, batch_size=64)
    config.model.options.stage_sizes = (3, 1)
    setup = make_setup(config, jax.devices()[:1])
    seed = jax.ShapeDtypeStruct((), np.uint32)
    pending = compile_ahead(config, setup, abstract_state(setup), {}, [seed], one_teacher=True)
    out[remat] = pending[64].result(), setup
  return out


def test_the_state_is_donated_whole(compiled):
  program, setup = compiled[""]
  state = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(abstract_state(setup)))
  assert program.memory_analysis().alias_size_in_bytes >= state
  assert "input_output_alias" in program.as_text().splitlines()[0]


def test_rematerialisation_needs_less_and_computes_more(compiled):
  plain, remat = (memory_need(compiled[key][0]) for key in ("", "blocks"))
  assert remat.temporary < 0.8 * plain.temporary
  # The arguments and results are the same, but for how XLA pads them.
  assert remat.held == pytest.approx(plain.held, rel=0.01)
  plain, remat = (compiled[key][0].cost_analysis()["flops"] for key in ("", "blocks"))
  assert 1.1 * plain < remat < 1.5 * plain


@pytest.mark.parametrize("name", [
    "ic_resnet50_b", "se_resnet18", "resnext29_2x64d", "ic_vgg16", "ic_mobilenet", "keffnet_b0",
    "fp_resnet50"])
def test_rematerialisation_keeps_every_name_and_count(name):
  plain, remat = (tiny_model(name, remat=remat) for remat in ("", "blocks"))
  shapes = [{k: (v.shape, v.dtype) for k, v in flatten_dict(abstract_variables(m, (32, 32, 3))).items()}
            for m in (plain, remat)]
  assert shapes[0] == shapes[1]
  assert bn.count_macs(plain, 32) == bn.count_macs(remat, 32)


@pytest.mark.parametrize("name,options", [
    ("ic_resnet20_cifar", dict(stage_sizes=(1,), width=4)),
    ("fp_resnet20_cifar", dict(stage_sizes=(1, 1), fp_layers="01")),
    ("keffnet_b0", dict(stages=((3, 2, 160, 160, 6, 1),))), ("mobilenet", dict(stage_sizes=(1, 1), width=4)),
    ("vgg16", dict(stage_sizes=(1, 1), width=4))])
def test_rematerialisation_changes_no_statistic_and_no_gradient(name, options):
  """With dropout, from the same key."""
  x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 8, 3)), jnp.float32)
  model = tiny_model(name, **options)
  variables = jax.tree.map(
      lambda a: jnp.asarray(np.random.default_rng(1).uniform(0.5, 1, a.shape), a.dtype),
      abstract_variables(model, (8, 8, 3)))
  state = {key: value for key, value in variables.items() if key != "params"}

  def loss(params, model):
    logits, new = model.apply({"params": params, **state}, x, train=True, mutable=list(state),
                              rngs={"dropout": jax.random.key(2)})
    return jnp.square(logits).mean(), new

  def both(params):  # in one program: XLA compiles what they share once
    return [jax.grad(functools.partial(loss, model=m), has_aux=True)(params)
            for m in (model, model.clone(remat="blocks"))]

  (grads, stats), (again, same) = jax.jit(both)(variables["params"])
  assert jax.tree.structure((grads, stats)) == jax.tree.structure((again, same))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max()),
               (again, same), (grads, stats))
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state, stats)
  assert max(jax.tree.leaves(moved)) > 1e-3


def test_remat_belongs_to_the_config():
  with pytest.raises(ValueError, match="remat='block'"):
    check_values(tiny_config(remat="block"))
  with pytest.raises(ValueError, match=r"config.model.options.remat: leave it out, config.remat"):
    config = tiny_config()
    config.model.options.remat = "blocks"
    check_values(config)
  with pytest.raises(ValueError, match="remat='all'"):
    abstract_variables(bn.create_model("vgg16", remat="all"), (32, 32, 3))


# The largest batch ---------------------------------------------------------------------------


@pytest.mark.parametrize("start,step,most", [
    (1, 1, 1), (32, 8, 800), (800, 8, 800), (3, 7, 70), (4096, 16, 1600)])
def test_the_search_ends_next_to_the_largest_batch_that_fits(start, step, most):
  for limit in {0, 1, step - 1, step, 2 * step, 100, most // 2, most - 1, most, 10 * most}:
    asked = []

    def fits(size, limit=limit, asked=asked):
      asked.append(size)
      return size <= limit

    found = largest_batch.search(fits, start=start, step=step, most=most)
    best = min(limit, most) // step * step
    assert best - max(step, found / 16) < found <= best and found % step == 0
    assert len(asked) == len(set(asked)) <= 2 * math.log2(most / step + 1) + 4
    assert all(step <= size <= most and size % step == 0 for size in asked)


def test_the_largest_batch_is_found_without_a_step(monkeypatch, tmp_path):
  def needed(config, setup, size):
    return 1000 * size if size < 900 else None

  monkeypatch.setattr(largest_batch, "bytes_needed", needed)
  said = []
  config = tiny_config(accumulate=2, batch_norm="groups(3)", batch_size=48)
  found = largest_batch.find_largest_batch(config, limit=300_000, say=said.append)
  assert found["largest"] % 12 == 0 and 300 * 15 / 16 <= found["largest"] + 12 and found["largest"] <= 300
  assert all(t["bytes_needed"] == 1000 * t["batch_size"] for t in found["tried"])
  assert f"largest batch that fits: {found['largest']}" in said[-1]
  found = largest_batch.find_largest_batch(config, limit=10**9, say=said.append)
  assert 840 <= found["largest"] < 900 and None in [t["bytes_needed"] for t in found["tried"]]
  assert "more than XLA can plan" in "\n".join(said)
  found = largest_batch.find_largest_batch(config, limit=1, say=said.append)
  assert found["largest"] == 0 and "no batch fits" in said[-1]
  monkeypatch.setattr(largest_batch, "host_memory", lambda: 500_000)  # what the limit is on a CPU
  study = ml_collections.ConfigDict(dict(title="Two", runs=dict(a=config, b=tiny_config(remat="blocks"))))
  found = experiments.run(study, str(tmp_path), mode="largest_batch", say=said.append)
  assert {name: one["limit"] for name, one in found.items()} == {"a": 500_000, "b": 500_000}
  assert 470 <= found["b"]["largest"] <= 500 and not os.listdir(tmp_path)


def test_what_a_batch_needs_is_what_xla_and_the_data_say(compiled):
  config = tiny_config(batch_size=64)
  config.model.options.stage_sizes = (3, 1)
  program, setup = compiled[""]
  images = 8 * 8 * (1442 + 355)  # on the device, as uint8
  assert largest_batch.bytes_needed(config, setup, 64) == memory_need(program).total + images + 2 * 64 * 8 * 8
  batch = abstract_batch(setup, 12)
  assert batch["image"].shape == (12, 8, 8, 1) and batch["label"].shape == (12,)


# Rates ---------------------------------------------------------------------------------------


def test_operations_are_those_that_xla_counts():
  """XLA counts the taps that fall on padding as nothing; on 96 x 96 pixels they are a few per cent."""
  model = bn.create_model("resnet20_cifar")
  shape = (96, 96, 3)
  task = types.SimpleNamespace(model=model, image_shape=shape)
  variables = abstract_variables(model, shape)
  images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)

  def loss(params, x):
    return model.apply({**variables_of(params)}, x, train=True, mutable=["batch_stats"])[0].sum()

  def variables_of(params):
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), variables["batch_stats"])
    return {"params": params, "batch_stats": zeros}

  with bn.ops.plain_derivatives():
    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(variables["params"], images)
  counted = program.cost_analysis()["flops"]
  assert utilization.step_flops_per_image(task) == pytest.approx(counted, rel=0.1)
  # Under WLD the teacher's forward pass comes to it: a third of its step.
  task.teacher = types.SimpleNamespace(model=model)
  assert utilization.step_flops_per_image(task) == pytest.approx(4 / 3 * counted, rel=0.1)


@pytest.mark.parametrize("kind,dtype,tera", [
    ("NVIDIA H200", "bfloat16", 989.4), ("NVIDIA H100 80GB HBM3", "float16", 989.4),
    ("NVIDIA H100 PCIe", "bfloat16", 756.5), ("NVIDIA A100-SXM4-80GB", "float32", 156.0),
    ("NVIDIA A10", "bfloat16", 125.0), ("NVIDIA L4", "bfloat16", 121.0), ("TPU v5 lite", "bfloat16", 197.0),
    ("TPU v5p", "bfloat16", 459.0), ("TPU v4", "float32", 275.0),
    ("TPU v4 lite", "bfloat16", None), ("NVIDIA L40", "bfloat16", None), ("NVIDIA H2000", "bfloat16", None)])
def test_peaks_of_the_data_sheets(kind, dtype, tera, monkeypatch):
  monkeypatch.setattr(utilization, "_matmul_rate", lambda device, dtype: 7.0)
  platform = "tpu" if kind.startswith("TPU") else "gpu"
  device = types.SimpleNamespace(platform=platform, device_kind=kind)
  mesh = types.SimpleNamespace(local_devices=[device], size=4)
  want = (4e12 * tera, "data sheet") if tera else (28.0, "matmul")
  assert utilization.peak_flops(mesh, dtype) == pytest.approx(want)


def test_only_what_outlasts_the_device_s_work_is_a_stall():
  class Step:
    def __init__(self):
      self.done = threading.Event()

    def block_until_ready(self):
      self.done.wait(10)
      return self

  watch = stalls.StallWatch()
  now = time.perf_counter()
  assert watch.stalled(now - 2, now) == 2  # before the first step there is nothing to compute
  steps = Step(), Step()
  for step in steps:
    watch.dispatched(step)
  steps[0].done.set()
  now = time.perf_counter()
  assert watch.stalled(now - 2, now) == 0  # the second one is under way
  steps[1].done.set()
  while not watch.stalled(now - 2, time.perf_counter()):
    time.sleep(0.001)
  finished = time.perf_counter()
  assert watch.stalled(finished, finished + 3) == 3
  assert 0 < watch.stalled(now - 2, finished) <= finished - now
  watch.close()


def test_the_advice_is_what_the_rates_ask_for():
  """A device of 1,000 img/s and workers of 90 each: twelve of them keep it busy."""
  def rates(workers):
    rate = min(1000.0, 90.0 * workers)
    return {"images_per_second": rate, "data_wait": 1 - rate / 1000, "seconds_per_step": 1.0}

  for workers in (1, 3, 10):
    advice = stalls.WorkerAdvice(workers)
    assert advice.of(rates(workers)) == ""  # the first window has their start in it
    text = advice.of(rates(workers))
    for part in (f"{workers} workers prepare {readable_rate(90 * workers)} ", "of the 1,000 ", "takes 12 "):
      assert part in text
    assert advice.of(rates(workers)) == ""  # once
  enough = stalls.WorkerAdvice(12)
  assert [enough.of(rates(12)) for _ in range(3)] == [""] * 3
  resident = stalls.WorkerAdvice(0)
  assert [resident.of(rates(1)) for _ in range(3)] == [""] * 3


# The start -----------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("ps"), reason="needs ps")
def test_the_age_of_the_process_is_the_system_s():
  command = ["ps", "-o", "etimes=", "-p", str(os.getpid())]
  age = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
  assert age - 1 <= start_up._process_age() <= age + 2


def test_the_imports_count_for_the_first_run_of_a_process(monkeypatch):
  monkeypatch.setattr(start_up, "_seen", False)
  monkeypatch.setattr(start_up, "_process_age", lambda: 5.0)
  first, second = start_up.StartUp(), start_up.StartUp()
  first.done("setup")
  second.done("setup")
  assert first.seconds["imports"] == 5.0 and first.seconds["total"] >= 5.0 and "imports" not in second.seconds
  assert second.seconds["total"] < 5.0
  assert first.describe("").startswith("first step done after 5.0 s: imports 5.0, setup 0.0")
  assert first.describe("/c").endswith("compiled programs: 0 found in /c, 0 new")


@pytest.fixture
def own_cache():
  """Leaves JAX's compilation cache as it was."""
  names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  use_compile_cache("auto")
  from jax.experimental.compilation_cache import compilation_cache
  compilation_cache.reset_cache()


def test_programs_are_found_again(own_cache, tmp_path):
  before = jax.config.jax_compilation_cache_dir
  assert use_compile_cache("auto") == (before or "")
  folder = str(tmp_path / "programs")
  assert use_compile_cache(folder) == folder == jax.config.jax_compilation_cache_dir
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  counts = [cache_counts()]
  for _ in range(2):
    jax.clear_caches()
    jax.jit(lambda x: jnp.sin(x) @ x)(np.eye(3, dtype=np.float32)).block_until_ready()
    counts.append(cache_counts())
  assert (counts[1] - counts[0])["new"] >= 1 and not (counts[1] - counts[0])["found"]
  assert (counts[2] - counts[1])["found"] >= 1 and not (counts[2] - counts[1])["new"]
  assert use_compile_cache("auto") == folder  # what has been chosen stays
  assert use_compile_cache("off") == "" and jax.config.jax_compilation_cache_dir is None


def test_a_cache_that_cannot_be(own_cache, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match=r"config.compile_cache=.*cannot be made \(Not a directory\)"):
    use_compile_cache(str(tmp_path / "file" / "programs"))
  with pytest.raises(ValueError, match="give 'auto', 'off' or a folder"):
    check_values(tiny_config(compile_cache=""))


def test_a_home_that_cannot_be_written_stops_no_run(own_cache, tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  jax.config.update("jax_compilation_cache_dir", None)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert use_compile_cache("auto") == "" and jax.config.jax_compilation_cache_dir is None


# Traces --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["5", "5:", "0:3", "3:0", "a:b", "-1:2", "1:2:3", "1.5:2"])
def test_windows_that_are_none(text):
  with pytest.raises(ValueError, match="START:COUNT"):
    check_values(tiny_config(profile=text))


def test_a_window_that_a_run_goes_on_behind_is_said(tmp_path):
  profiler = profiling.Profiler(profiling.Window(4, 3), str(tmp_path))
  assert profiler.missed(0) == profiler.missed(3) == profiling.Profiler(None, "").missed(9) == ""
  assert "starts with step 4, and this run goes on with step 5" in profiler.missed(4)


def test_an_evaluation_inside_the_window_is_no_part_of_a_step():
  found = [profiling.Operation(program, "x", 1.0, 1) for program in ("jit_train_step", "jit_eval_step", "")]
  assert profiling.of_programs(found, {"jit_train_step"}) == [found[0], found[2]]
  assert profiling.of_programs(found, {"another"}) == found


def test_a_window_ends_with_the_run():
  assert profiling.parse_window("", 10) is None
  assert profiling.parse_window("4:3", 10) == (4, 3) and profiling.parse_window("9:5", 10) == (9, 2)
  with pytest.raises(ValueError, match="the run has 10 steps"):
    profiling.parse_window("11:1", 10)


def test_the_time_of_an_operation_is_its_own():
  """Nested as a loop's body lies in the loop; back to back; and two that only overlap."""
  event = lambda start, end, name: profiling._Event(start, end, ("p", name))  # noqa: E731
  events = [event(0, 10, "while"), event(1, 4, "body"), event(2, 3, "inner"), event(4, 6, "body"),
            event(10, 12, "next"), event(20, 30, "a"), event(25, 35, "b")]
  own = {}
  for (_, name), seconds in profiling._own_times(events[::-1]):
    own[name] = own.get(name, 0) + seconds
  assert own == {"while": 5, "body": 4, "inner": 1, "next": 2, "a": 5, "b": 10}


def test_places_come_from_the_program_s_text():
  """Of a program that XLA itself has compiled."""
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name="outer")(nn.Dense(4, name="inner")(x)).sum()

  params = abstract_variables(Net(), (2,))
  def step(params, x):
    return jax.grad(lambda p: Net().apply(p, x))(params)
  program = jax.jit(step).lower(params, jax.ShapeDtypeStruct((5, 2), jnp.float32)).compile()
  found = profiling.sources(program.as_text())
  assert {name for name, _ in found} == {"jit_step"}
  places = set(found.values())
  assert any("inner" in p and not p.startswith("gradient") for p in places)
  assert any("outer" in p and p.startswith("gradient of ") for p in places)
  rows = [profiling.Operation("jit_step", "dot.1", 0.003, 2), profiling.Operation("other", "copy", 0.001, 4)]
  text = profiling.table(rows, {("jit_step", "dot.1"): "inner/dot"}, steps=2).splitlines()
  assert text[1].split() == ["1.500", "75.0", "%", "1.0", "dot.1", "inner/dot"]
  assert text[2].split() == ["0.500", "25.0", "%", "2.0", "copy", "other"]
  assert text[-1].split()[:3] == ["2.000", "100.0", "%"]
