"""One step: accumulation, averages, the optimiser, schedules, metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from bionets_jax.training.optimizers import make_optimizer, make_schedule
from bionets_jax.training.setup import make_setup
from bionets_jax.training.state import make_train_step
from bionets_jax.training.tasks import topk_correct


def step_of(config, **options):
  setup = make_setup(config, jax.devices()[:1])
  state = jax.jit(setup.init)(jax.random.key(0), {})
  arguments = dict(seed=0, accumulate=1, ema_decay=0.0, unroll=True) | options
  batches = setup.pipeline.train_batches(0)
  batch = next(batches)
  batches.close()
  return setup, state, batch, jax.jit(make_train_step(setup.task, setup.optimizer, **arguments))


@pytest.mark.parametrize("unroll", [True, False])
def test_accumulation_is_the_mean_over_interleaved_parts(unroll):
  config = tiny_config(optimizer__momentum=0.0, optimizer__weight_decay=0.0)
  setup, state, batch, step = step_of(config, accumulate=2, unroll=unroll)
  after, metrics = step(state, {}, batch)

  def gradient(part, model_state):
    def loss(params):
      values, model_state_, _ = setup.task.train_losses(
          params, model_state, {}, part, 0, jax.random.key(0))
      return values.mean(), (model_state_, values.sum())
    return jax.jit(jax.grad(loss, has_aux=True))(state.params)

  even, odd = ({k: v[i::2] for k, v in batch.items()} for i in (0, 1))
  first, (stats, one) = gradient(even, state.model_state)
  second, (stats, two) = gradient(odd, stats)
  want = jax.tree.map(lambda p, a, b: p - 0.1 * (a + b) / 2, state.params, first, second)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), after.params, want)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.model_state, stats)
  assert metrics["loss"] == pytest.approx(float(one + two), rel=1e-5) and metrics["count"] == 32


def test_ema_averages_parameters_and_statistics():
  _, state, batch, step = step_of(tiny_config(ema_decay=0.75), ema_decay=0.75)
  after, _ = step(state, {}, batch)
  for name in ("params", "model_state"):
    want = jax.tree.map(lambda a, b: .75 * a + .25 * b, getattr(state, name), getattr(after, name))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.ema[name], want)
  assert after.evaluated[0] is after.ema["params"] and state.params is not state.evaluated[0]


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_pytorch_s(nesterov):
  """g += wd p; v = m v + g; p -= lr (g + m v if nesterov else v), written out in float64."""
  config = tiny_config(optimizer__nesterov=nesterov, optimizer__weight_decay=0.01).optimizer
  rng = np.random.default_rng(0)
  p = {"a": {"kernel": rng.standard_normal(5), "bias": rng.standard_normal(5), "alpha": np.array(1.0)}}
  rates = [0.1, 0.1, 0.01]
  optimizer = make_optimizer(config, lambda s: jnp.asarray(rates)[s])
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), p)
  state = optimizer.init(params)
  velocity = jax.tree.map(np.zeros_like, p)
  for i in range(3):
    grads = jax.tree.map(lambda x: rng.standard_normal(np.shape(x)), p)
    updates, state = optimizer.update(jax.tree.map(jnp.asarray, grads), state, params)
    params = jax.tree.map(lambda a, b: a + b, params, updates)
    for k in p["a"]:
      g = grads["a"][k] + (0.01 if k != "alpha" else 0.0) * p["a"][k]
      velocity["a"][k] = 0.9 * velocity["a"][k] + g
      p["a"][k] = p["a"][k] - rates[i] * (g + 0.9 * velocity["a"][k] if nesterov else velocity["a"][k])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, p)


def test_decay_of_kernels_only():
  config = tiny_config(optimizer__decay="kernels", optimizer__momentum=0.0).optimizer
  optimizer = make_optimizer(config, lambda s: 1.0)
  names = ("kernel", "adjust", "bias", "inner_bias", "scale", "alpha")
  params = {"layer": {name: jnp.ones(()) for name in names}}
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
  assert {k for k, v in updates["layer"].items() if v != 0} == {"kernel", "adjust"}


def test_schedules():
  def rates(steps, **changes):
    config = tiny_config(**{f"schedule__{k}": v for k, v in changes.items()}).schedule
    schedule = make_schedule(config, batch_size=512, steps_per_epoch=10, total_steps=100)
    return [float(schedule(s)) for s in steps]
  np.testing.assert_allclose(rates((0, 299, 300, 599, 600, 900), boundaries=(30, 60)),
                             [.1, .1, .01, .01, .001, .001], rtol=1e-6)
  # Two boundaries on one step: both count.
  np.testing.assert_allclose(rates((0, 1), boundaries=(0.08, 0.12)), [.1, .001], rtol=1e-6)
  np.testing.assert_allclose(rates((0, 50, 100), kind="cosine"), [.1, .05, 0], atol=1e-7)
  np.testing.assert_allclose(rates((0,), kind="constant", reference_batch=256), [.2], rtol=1e-6)
  np.testing.assert_allclose(rates((0, 4, 9, 20), kind="constant", warmup="1 epochs"),
                             [.01, .05, .1, .1], rtol=1e-6)


def test_equal_scores_are_not_all_correct():
  """As argmax has it; else a network that says the same of every class would be right always."""
  labels = jnp.array([0, 5, 9])
  np.testing.assert_array_equal(topk_correct(jnp.zeros((3, 10)), labels, 1), [1, 0, 0])
  np.testing.assert_array_equal(topk_correct(jnp.zeros((3, 10)), labels, 6), [1, 1, 0])
  np.testing.assert_array_equal(topk_correct(jnp.full((3, 10), jnp.nan), labels, 1), [0, 0, 0])
  logits = np.random.default_rng(0).standard_normal((200, 10))
  want = [y in np.argsort(-z)[:3] for z, y in zip(logits, np.arange(200) % 10, strict=True)]
  np.testing.assert_array_equal(topk_correct(jnp.asarray(logits), jnp.arange(200) % 10, 3), want)
