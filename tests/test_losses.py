"""WLD and what is around it, against NumPy in float64 and the properties that define it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bionets_jax.losses import cross_entropy, distill_weight_schedule, distillation, wld_loss

pytestmark = pytest.mark.usefixtures("float64")


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  return 3 * rng.standard_normal((16, 10)), 3 * rng.standard_normal((16, 10)), rng.integers(0, 10, 16)


def parts(student, teacher, labels, tau):
  ce = -np.log(softmax(student)[np.arange(len(labels)), labels])
  pt, ps = softmax(teacher / tau), softmax(student / tau)
  kl = tau**2 * (pt * (np.log(pt) - np.log(ps))).sum(-1)
  soft = -(tau**2) * (pt * np.log(ps)).sum(-1)
  return ce, kl, soft


@pytest.mark.parametrize("tau", [1.0, 4.0])
@pytest.mark.parametrize("lam", [0.9, 0.1])
def test_the_three_readings_of_eq_10(batch, tau, lam):
  student, teacher, labels = batch
  ce, kl, soft = parts(student, teacher, labels, tau)
  e = 0.3
  def loss(**options):
    return np.asarray(wld_loss(*map(jnp.asarray, batch), distill_weight=lam, temperature=tau,
                               tolerance=e, **options))
  np.testing.assert_allclose(
      loss(hinge="example"), (1 - lam) * ce + lam * np.maximum(kl - e, 0), rtol=1e-9)
  np.testing.assert_allclose(
      loss().mean(), (1 - lam) * ce.mean() + lam * max(kl.mean() - e, 0), rtol=1e-9)
  np.testing.assert_allclose(
      loss(distill="soft_cross_entropy").mean(),
      (1 - lam) * ce.mean() + lam * max(soft.mean() - e, 0), rtol=1e-9)
  np.testing.assert_allclose(
      loss(distill="printed").mean(), (1 - lam) * ce.mean() + lam * max(ce.mean() - e, 0), rtol=1e-9)


def test_batch_hinge_has_the_gradient_of_the_batch_mean(batch):
  student, teacher, labels = map(jnp.asarray, batch)
  near = teacher + 0.01 * student
  for logits, tolerance in ((student, 0.3), (near, 0.3), (near, 0.0)):
    def by_example(z, tolerance=tolerance):
      return wld_loss(z, teacher, labels, distill_weight=.7, tolerance=tolerance).mean()
    def as_written(z, tolerance=tolerance):
      kd = distillation(z, teacher, temperature=4.0).mean()
      return .3 * cross_entropy(z, labels).mean() + .7 * jnp.maximum(kd - tolerance, 0)
    np.testing.assert_allclose(by_example(logits), as_written(logits), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(by_example)(logits), jax.grad(as_written)(logits), atol=1e-12)


def test_a_student_that_equals_its_teacher_pays_for_the_labels_only(batch):
  _, teacher, labels = map(jnp.asarray, batch)
  want = 0.1 * cross_entropy(teacher, labels)
  for hinge in ("batch", "example"):
    got = wld_loss(teacher, teacher, labels, distill_weight=0.9, hinge=hinge)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_the_teacher_gets_no_gradient(batch):
  student, teacher, labels = map(jnp.asarray, batch)
  grad = jax.grad(lambda t: wld_loss(student, t, labels, distill_weight=.5).sum())(teacher)
  assert not np.any(grad)


def test_soft_cross_entropy_never_comes_down_to_the_tolerance(batch):
  """L >= tau^2 H(p_t): the hinge is always open and its gradient that of KL."""
  student, teacher, _ = map(jnp.asarray, batch)
  tau = 4.0
  p = softmax(np.asarray(teacher) / tau)
  entropy = -(p * np.log(p)).sum(-1)
  soft = distillation(student, teacher, temperature=tau, kind="soft_cross_entropy")
  kl = distillation(student, teacher, temperature=tau)
  assert np.all(soft >= tau**2 * entropy) and np.all(tau**2 * entropy > 0.005 * 100)
  np.testing.assert_allclose(soft - kl, tau**2 * entropy, rtol=1e-9)


@pytest.mark.parametrize("tau", [1.0, 2.0, 4.0])
def test_kl_is_half_the_variance_of_the_logits_difference(batch, tau):
  """The meaning of the tolerance: tau^2 KL = Var_p(delta) / 2 to second order, whatever tau."""
  _, teacher, _ = batch
  delta = 1e-3 * np.random.default_rng(1).standard_normal(teacher.shape)
  kl = distillation(jnp.asarray(teacher + delta), jnp.asarray(teacher), temperature=tau)
  p = softmax(teacher / tau)
  variance = (p * delta**2).sum(-1) - (p * delta).sum(-1) ** 2
  np.testing.assert_allclose(kl, variance / 2, rtol=5e-3)


def test_mapped_axis_gives_the_hinge_of_the_whole_batch(batch):
  student, teacher, labels = map(jnp.asarray, batch)
  # Half the examples far from the teacher, half on it: local and global means fall apart.
  logits = jnp.where(jnp.arange(16)[:, None] < 8, student, teacher)
  split = lambda x: x.reshape(2, 8, *x.shape[1:])  # noqa: E731
  options = dict(distill_weight=.5, tolerance=.3)
  whole = wld_loss(logits, teacher, labels, **options)
  mapped = jax.vmap(lambda s, t, y: wld_loss(s, t, y, axis_name="i", **options), axis_name="i")
  np.testing.assert_allclose(mapped(*map(split, (logits, teacher, labels))).ravel(), whole, rtol=1e-12)


def test_labels_may_be_probabilities(batch):
  student, teacher, labels = map(jnp.asarray, batch)
  hot = jax.nn.one_hot(labels, 10, dtype=student.dtype)
  np.testing.assert_allclose(cross_entropy(student, hot), cross_entropy(student, labels), rtol=1e-12)
  smooth = cross_entropy(student, labels, 0.1)
  want = -(np.asarray(0.9 * hot + 0.01) * np.log(softmax(np.asarray(student)))).sum(-1)
  np.testing.assert_allclose(smooth, want, rtol=1e-12)


def test_half_precision_logits_give_a_float32_loss(batch):
  student, teacher, labels = batch
  loss = wld_loss(jnp.asarray(student, jnp.bfloat16), jnp.asarray(teacher, jnp.bfloat16),
                  jnp.asarray(labels), distill_weight=.5)
  assert loss.dtype == jnp.float32


@pytest.mark.parametrize("shape,middle", [("linear", .5), ("cosine", .5)])
def test_distill_weight_goes_from_0_9_to_0_1(shape, middle):
  schedule = distill_weight_schedule(100, shape=shape)
  np.testing.assert_allclose([schedule(s) for s in (0, 50, 100, 150)], [.9, middle, .1, .1], atol=1e-6)


@pytest.mark.parametrize("options,match", [
    (dict(distill="kd"), "soft_cross_entropy"), (dict(hinge="mean"), "batch, example")])
def test_unknown_options(batch, options, match):
  with pytest.raises(ValueError, match=match):
    wld_loss(*map(jnp.asarray, batch), distill_weight=.5, **options)
  with pytest.raises(ValueError, match="teacher logits"):
    wld_loss(jnp.zeros((2, 3)), jnp.zeros((2, 4)), jnp.zeros(2, int), distill_weight=.5)
  with pytest.raises(ValueError, match="cosine"):
    distill_weight_schedule(3, shape="cubic")
