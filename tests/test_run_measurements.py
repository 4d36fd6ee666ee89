"""What a run says of itself: its rates and stalls, its start, its traces."""

import os
import shutil
import subprocess
import threading
import time
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

import bionets_jax as bn
from bionets_jax.counting import abstract_variables
from bionets_jax.training import profiling, stalls, start_up, utilization
from bionets_jax.training.clock import readable_rate
from bionets_jax.training.compile_cache import cache_counts, use_compile_cache
from bionets_jax.training.setup import check_values

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
