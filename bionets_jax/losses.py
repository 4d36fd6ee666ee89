"""Losses in optax's style: logits in, one loss per example out, the caller takes the mean.

Weak logit distillation (WLD) trains an IC network from the pretrained network it grew out of. Source:
IC networks, Eqs. 8 to 10.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

DISTILLATIONS = ("kl", "soft_cross_entropy", "printed")
HINGES = ("batch", "example")


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
  """Softmax cross-entropy.

  Args:
    logits: (..., K).
    labels: (...) integers, or (..., K) probabilities.
    label_smoothing: mass spread evenly over all classes.

  Returns:
    (...) float32.
  """
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  if labels.ndim == logits.ndim - 1 and not label_smoothing:
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
  if labels.ndim == logits.ndim - 1:
    labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
  return optax.losses.softmax_cross_entropy(
      logits, optax.losses.smooth_labels(labels, label_smoothing))


def distillation(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float, kind: str = "kl"
) -> jax.Array:
  """Temperature-scaled distance of the student from the teacher, tau^2 D(p_t, p_s).

  With p = softmax(logits / tau) (Eq. 8). 'kl': D = KL(p_t || p_s), 0 where the two agree.
  'soft_cross_entropy': D = -sum p_t log p_s (Eq. 9), which is KL plus the teacher's entropy: the
  same gradient, but never below tau^2 H(p_t).

  Args:
    student_logits: (..., K).
    teacher_logits: (..., K). No gradient flows into them.
    temperature: tau.
    kind: 'kl' or 'soft_cross_entropy'.

  Returns:
    (...) float32.
  """
  wide = jnp.promote_types(student_logits.dtype, jnp.float32)
  log_s = jax.nn.log_softmax(student_logits.astype(wide) / temperature)
  log_t = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits).astype(wide) / temperature)
  if kind == "kl":
    return temperature**2 * jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1)
  if kind == "soft_cross_entropy":
    return -(temperature**2) * jnp.sum(jnp.exp(log_t) * log_s, axis=-1)
  raise ValueError(f"kind={kind!r}: give 'kl' or 'soft_cross_entropy'")


def wld_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    *,
    distill_weight: jax.Array | float,
    temperature: float = 4.0,
    tolerance: float = 0.005,
    distill: str = "kl",
    hinge: str = "batch",
    label_smoothing: float = 0.0,
    axis_name: str | None = None,
) -> jax.Array:
  """Weak logit distillation: `(1 - lambda) L_ce + lambda max(L_kd - e, 0)` (Eq. 10).

  Eq. 10 as printed puts L_ce into the max term too, where the text speaks of the distance between
  student and teacher; the options are the readings:

    'kl' (default): L_kd = tau^2 KL(p_t || p_s). The only one in which the tolerance does anything: to
      second order it lets the logits differ from the teacher's by sqrt(2 e) = 0.1 standard deviations.
    'soft_cross_entropy': L_kd = -tau^2 sum p_t log p_s, as Eq. 9 has it. It never falls below
      tau^2 H(p_t), far above e, so the hinge is always open and the gradient is that of 'kl' at e = 0.
    'printed': L_ce in both terms. The teacher plays no part: plain cross-entropy, flat below e.

  Args:
    student_logits: (N, K).
    teacher_logits: (N, K), constants: no gradient flows into them.
    labels: (N,) integers or (N, K) probabilities.
    distill_weight: lambda, see `distill_weight_schedule`.
    temperature: tau. Not given in the paper.
    tolerance: e.
    distill: 'kl', 'soft_cross_entropy' or 'printed'.
    hinge: 'batch': the max is taken of the batch mean; 'example': of each example.
    label_smoothing: for the cross-entropy with the labels.
    axis_name: mapped axis (`vmap`, `shard_map`) over which the batch mean of the hinge extends. Under
      `jit` over a mesh the batch is already the global one and none is needed.

  Returns:
    (N,) float32. Its mean is the loss of Eq. 10 with either hinge, gradient included: above the
    tolerance the batch hinge subtracts e from every example, below it every example has 0.

  Raises:
    ValueError: for an unknown option or logits of different shapes.
  """
  if student_logits.shape != teacher_logits.shape:
    raise ValueError(f"student logits have shape {student_logits.shape}, "
                     f"teacher logits {teacher_logits.shape}")
  if distill not in DISTILLATIONS:
    raise ValueError(f"distill={distill!r}: give one of {', '.join(DISTILLATIONS)}")
  if not temperature > 0:
    raise ValueError(f"temperature={temperature}: give a number above 0")
  if hinge not in HINGES:
    raise ValueError(f"hinge={hinge!r}: give one of {', '.join(HINGES)}")
  hard = cross_entropy(student_logits, labels, label_smoothing)
  soft = hard if distill == "printed" else distillation(
      student_logits, teacher_logits, temperature=temperature, kind=distill)
  if hinge == "batch":
    level = soft.mean()
    if axis_name is not None:
      level = jax.lax.pmean(level, axis_name)
    weak = jnp.where(level > tolerance, soft - tolerance, 0.0)
  else:
    weak = jax.nn.relu(soft - tolerance)
  return (1.0 - distill_weight) * hard + distill_weight * weak


def distill_weight_schedule(
    total_steps: int, start: float = 0.9, end: float = 0.1, shape: str = "linear"
) -> Callable[[jax.Array | int], jax.Array]:
  """lambda over training: the paper goes from 0.9 to 0.1 and does not say how.

  Args:
    total_steps: steps from `start` to `end`; constant afterwards.
    start: lambda at step 0.
    end: lambda at `total_steps`.
    shape: 'linear' or 'cosine'.

  Returns:
    An optax schedule: step -> lambda.
  """
  if shape == "linear":
    return optax.schedules.linear_schedule(start, end, total_steps)
  if shape == "cosine":
    def schedule(step):
      t = jnp.clip(jnp.asarray(step) / max(total_steps, 1), 0.0, 1.0)
      return end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * t))
    return schedule
  raise ValueError(f"shape={shape!r}: give 'linear' or 'cosine'")
