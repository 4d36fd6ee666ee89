"""What surrounds a step: no wait, no compilation, no copy of the state; its memory, and the largest batch."""

import functools
import math
import os
import re

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
from bionets_jax.training import largest_batch, loop, profiling, stalls, utilization
from bionets_jax.training.device_memory import memory_need
from bionets_jax.training.loop import train
from bionets_jax.training.program import abstract_batches, abstract_state, compile_ahead
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
    out[remat] = pending[64, 8, 8, 1].result(), setup
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
  (batch,) = abstract_batches(setup)
  assert batch["image"].shape == (64, 8, 8, 1) and batch["label"].shape == (64,)
