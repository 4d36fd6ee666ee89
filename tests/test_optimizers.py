"""Schedules and optimisers against torch's and Keras' own (tests/fixtures/make_optimizer_fixtures.py)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import tiny_config

from bionets_jax.training.optimizers import make_optimizer, make_schedule

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
NAMES = ("kernel", "bias", "alpha", "head")
# case: (file, optimizer keys, schedule keys)
CASES = {
    "sgd": ("torch", dict(), dict(kind="step", lr=0.1, boundaries=(4, 7.5), factor=0.1)),
    "rmsprop": ("torch", dict(kind="rmsprop", momentum=0.9, weight_decay=0.0),
                dict(kind="constant", lr=0.003)),
    "exponential": ("keras", dict(kind="rmsprop", momentum=0.0, weight_decay=0.0),
                    dict(kind="exponential", lr=0.003, factor=0.99)),
    "cyclical25": ("keras", dict(kind="rmsprop", momentum=0.0, weight_decay=0.0),
                   dict(kind="cyclical25", lr=0.001)),
    "momentum": ("keras", dict(kind="rmsprop", momentum=0.9, weight_decay=0.0, epsilon=1e-60),
                 dict(kind="cyclical25", lr=0.001)),
}


def configs(optimizer=None, schedule=None):
  changes = {f"optimizer__{k}": v for k, v in (optimizer or {}).items()}
  changes |= {f"schedule__{k}": v for k, v in (schedule or {}).items()}
  config = tiny_config(**changes)
  return config.optimizer, config.schedule


def follow(case, dtype):
  """(losses, {name: after each step}, the references) of the fixtures' problem in `dtype`."""
  file, optimizer_keys, schedule_keys = CASES[case]
  with np.load(FIXTURES / f"optimizers_{file}.npz") as data:
    given = dict(data)
  pick = lambda kind: {n: jnp.asarray(given[f"{kind}/{n}"], dtype) for n in NAMES}  # noqa: E731
  optimizer_config, schedule_config = configs(optimizer_keys, schedule_keys)
  schedule = make_schedule(schedule_config, batch_size=1, steps_per_epoch=2, total_steps=20)
  optimizer = make_optimizer(optimizer_config, schedule)
  curvature, params = pick("curvature"), pick("start")

  def loss(params, target):
    return sum(jnp.sum(curvature[n] * (params[n] - target[n]) ** 2) / 2 for n in NAMES)

  def step(carry, target):
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params, target)
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), (value, params)

  _, (losses, path) = jax.jit(lambda c, t: jax.lax.scan(step, c, t))(
      (params, optimizer.init(params)), pick("target"))
  return losses, path, {n: given[f"{case}/{n}"] for n in (*NAMES, "loss")}


@pytest.mark.parametrize("case", [c for c in CASES if c != "momentum"])
def test_twenty_steps_in_float32(case):
  losses, path, want = follow(case, jnp.float32)
  np.testing.assert_allclose(losses, want["loss"], rtol=1e-6)
  for name in NAMES:
    assert path[name].dtype == jnp.float32
    np.testing.assert_allclose(path[name], want[name], rtol=2e-6, atol=2e-7, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_in_float64(case, float64):
  """Tight enough to see where epsilon stands and how the rate enters the momentum."""
  losses, path, want = follow(case, jnp.float64)
  np.testing.assert_allclose(losses, want["loss"], rtol=1e-13)
  for name in NAMES:
    np.testing.assert_allclose(path[name], want[name], rtol=1e-12, atol=1e-14, err_msg=name)


def test_rmsprop_decays_as_sgd_does():
  """g += wd p comes first, and alpha and, with 'kernels', norms and biases are left alone."""
  config, _ = configs(dict(kind="rmsprop", momentum=0.0, weight_decay=0.5, decay="kernels"))
  optimizer = make_optimizer(config, lambda step: 1.0)
  params = {"layer": {name: jnp.full((), 2.0) for name in ("kernel", "bias", "scale", "alpha")}}
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
  # g = 1, s = 0.1: the step is 1 / sqrt(0.1).
  assert updates["layer"].pop("kernel") == pytest.approx(-(0.1**-0.5), rel=1e-6)
  assert not any(updates["layer"].values())


def test_what_rmsprop_sees_of_a_first_step():
  """From a slot of 0 every first step is lr / sqrt(1 - rho), however small the gradient is above epsilon."""
  config, _ = configs(dict(kind="rmsprop", momentum=0.0, weight_decay=0.0))
  optimizer = make_optimizer(config, lambda step: 0.01)
  grads = {"kernel": jnp.array([1e3, 1.0, 1e-3, 1e-7, 0.0])}
  updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
  g = np.array([1e3, 1.0, 1e-3, 1e-7, 0.0])
  np.testing.assert_allclose(updates["kernel"], -0.01 * g / (np.sqrt(0.1) * g + 1e-7), rtol=1e-6)


@pytest.mark.parametrize("kind, want", [
    ("exponential", lambda e: 0.003 * 0.99**e),
    ("cyclical25", lambda e: 0.003 * (1 + 0.5 * (e % 25)) if e % 25 < 7 else 0.012 * 0.85 ** (e % 25 - 7)),
])
@pytest.mark.parametrize("steps_per_epoch", [1, 7, 5005, 200_003])
def test_rates_of_an_epoch_change_with_its_first_step(kind, want, steps_per_epoch):
  """Where a float32 quotient is a step off: 7 and 5005 divide into no power of two, 2**24 is passed."""
  _, config = configs(schedule=dict(kind=kind, lr=0.003, factor=0.99))
  total = 120 * steps_per_epoch
  schedule = jax.jit(jax.vmap(make_schedule(
      config, batch_size=1, steps_per_epoch=steps_per_epoch, total_steps=total)))
  first = np.arange(120, dtype=np.int64) * steps_per_epoch
  np.testing.assert_array_equal(schedule(first), np.float32([want(e) for e in range(120)]))
  np.testing.assert_array_equal(schedule(first + steps_per_epoch - 1), schedule(first))


def test_a_million_steps():
  _, config = configs(schedule=dict(kind="exponential", lr=0.01, factor=0.97))
  schedule = make_schedule(config, batch_size=1, steps_per_epoch=3, total_steps=1_000_000)
  steps = np.arange(999_000, 1_000_000)
  want = np.float32([0.01 * 0.97 ** (int(s) // 3) for s in steps])
  np.testing.assert_array_equal(jax.vmap(schedule)(steps), want)
  _, config = configs(schedule=dict(kind="cyclical25", lr=0.001))
  schedule = make_schedule(config, batch_size=1, steps_per_epoch=3, total_steps=1_000_000)
  epochs = steps // 3 % 25
  want = np.where(epochs < 7, 0.001 * (1 + 0.5 * epochs), 0.004 * 0.85 ** (epochs - 7.0))
  np.testing.assert_array_equal(jax.vmap(schedule)(steps), np.float32(want))
  assert float(schedule(0)) == np.float32(0.001) and float(schedule(6 * 3)) == np.float32(0.004)


def test_rates_by_the_epoch_with_warmup_and_by_the_batch():
  _, config = configs(schedule=dict(kind="exponential", lr=0.1, factor=0.5, warmup="1 epochs",
                                    reference_batch=256))
  schedule = make_schedule(config, batch_size=512, steps_per_epoch=4, total_steps=12)
  np.testing.assert_allclose([float(schedule(s)) for s in (0, 3, 4, 8, 11, 50)],
                             [.05, .2, .1, .05, .05, .05], rtol=1e-6)


@pytest.mark.parametrize("changes, message", [
    (dict(kind="rmsprob"), r"optimizer\.kind='rmsprob' \(did you mean 'rmsprop'\?\)"),
    (dict(kind="rmsprop", rho=1.0), r"optimizer\.rho=1\.0: give a number from 0 to below 1"),
    (dict(kind="rmsprop", rho=-0.1), r"optimizer\.rho=-0\.1"),
    (dict(kind="rmsprop", epsilon=0.0), r"optimizer\.epsilon=0\.0: give a number above 0"),
    (dict(kind="rmsprop", epsilon=float("nan")), r"optimizer\.epsilon=nan"),
    (dict(kind="rmsprop", momentum=1.0), r"optimizer\.momentum=1\.0"),
    (dict(momentum=-0.5), r"optimizer\.momentum=-0\.5"),
    (dict(kind="rmsprop", nesterov=True), r"optimizer\.nesterov=True belongs to kind='sgd'"),
    (dict(nesterov=True, momentum=0.0), r"optimizer\.nesterov=True needs a config\.optimizer\.momentum"),
    (dict(weight_decay=-1e-4), r"optimizer\.weight_decay=-0\.0001"),
    (dict(decay="some"), r"optimizer\.decay='some'"),
])
def test_what_cannot_be_meant_of_an_optimizer(changes, message):
  with pytest.raises(ValueError, match=message):
    make_optimizer(configs(changes)[0], lambda step: 0.1)


@pytest.mark.parametrize("changes, message", [
    (dict(kind="exponential", factor=0.0), r"schedule\.factor=0\.0: .*above 0 and up to 1"),
    (dict(kind="exponential", factor=1.01), r"schedule\.factor=1\.01"),
    (dict(kind="cyclical"), r"schedule\.kind='cyclical' \(did you mean 'cyclical25'\?\)"),
])
def test_what_cannot_be_meant_of_a_schedule(changes, message):
  with pytest.raises(ValueError, match=message):
    make_schedule(configs(schedule=changes)[1], batch_size=1, steps_per_epoch=10, total_steps=100)
