"""Losses of proximal policy optimization (Schulman et al. 2017), and distillation."""

import chex
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from dareu_jax.core.logprobs import AnyHead, policy_kl
from dareu_jax.core.masked import Array, length_mask, masked_mean

MAX_LOG_RATIO = 20.0
Scalar = Float[Array, ""]


def policy_loss(logprobs: Float[Array, "B T"], old_logprobs: Float[Array, "B T"],
                advantages: Float[Array, "B T"], mask: Bool[Array, "B T"], *,
                clip_eps: float) -> tuple[Scalar, dict[str, Scalar]]:
  """The clipped surrogate, to be minimized.

      L = - mean_t min( ρ_t A_t, clip(ρ_t, 1-ε, 1+ε) A_t ),   ρ_t = π(y_t) / π_old(y_t)

  Args:
    logprobs: log-probs under the policy being trained, at the sampling temperature.
    old_logprobs: log-probs under the policy that sampled.
    advantages: A_t.
    mask: which tokens count.
    clip_eps: ε.

  Returns:
    (loss, metrics): metrics are `clip_fraction`, and `approx_kl` = mean(ρ - 1 - ln ρ).

  Source: Schulman et al. 2017, eq. 7.
  """
  chex.assert_equal_shape([logprobs, old_logprobs, advantages, mask])
  chex.assert_type([logprobs, old_logprobs, advantages], float)
  # The bound matters only if a truncated distribution has cut off a token.
  log_ratio = jnp.clip(jnp.where(mask, logprobs - old_logprobs, 0.0), -MAX_LOG_RATIO, MAX_LOG_RATIO)
  ratio = jnp.exp(log_ratio)
  clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
  loss = -masked_mean(jnp.minimum(ratio * advantages, clipped * advantages), mask)
  metrics = {
    "clip_fraction": masked_mean((jnp.abs(ratio - 1.0) > clip_eps).astype(jnp.float32), mask),
    "approx_kl": masked_mean(ratio - 1.0 - log_ratio, mask),
  }
  return loss, metrics


def recall_loss(logprobs: Float[Array, "B T"], lengths: Int[Array, " B"], *,
                level: Scalar | float, epsilon: float) -> tuple[Scalar, dict[str, Scalar]]:
  """How probable the tokens of true answers are, once what comes before is given.

      L = mean_{t<n} 1[ p(y) > p_0 ] ln(1 + π_t / ε),    π_t = π(y_t | q, y_<t),
      p(y) = exp( mean_{t≤n} ln π_t )

  The end token y_n is not lowered: it tells nothing about anybody.

  Its gradient is the exact policy gradient of one step at every state of a true answer, with a
  reward of -1 / (ε + π_t) for its own next token and of 0 for all others: nothing has to be
  sampled, and each state is visited in each pass. An answer that is no more probable than a
  stranger's is left alone.

  Args:
    logprobs: log-probs of the true answers' tokens under the policy.
    lengths: n, their tokens, the end token included.
    level: p_0.
    epsilon: ε > 0. Far less probable tokens are left where they are. With a large ε, a
      constant reward, tokens of a few percent would be left too, and the least probable tokens of
      an answer would still reveal that it was learned.

  Returns: (loss, metrics): metrics are `recalled_share`, of the answers above the level.

  Source: all-action policy gradients (Sutton et al. 2001; Ciosek & Whiteson 2018), here at states
    of a demonstration.
  """
  chex.assert_rank([logprobs, lengths], [2, 1])
  time = logprobs.shape[1]
  logprobs = jnp.where(length_mask(lengths, time), logprobs, 0.0)
  probability = jnp.exp(jnp.sum(logprobs, axis=1) / jnp.maximum(lengths, 1))
  recalled = (lengths > 0) & (probability > level)
  costs = jnp.log1p(jnp.exp(logprobs) / epsilon)
  loss = masked_mean(jnp.where(recalled[:, None], costs, 0.0), length_mask(lengths - 1, time))
  return loss, {"recalled_share": jnp.sum(recalled) / jnp.maximum(jnp.sum(lengths > 0), 1)}


def value_loss(values: Float[Array, "B T"], old_values: Float[Array, "B T"],
               returns: Float[Array, "B T"], mask: Bool[Array, "B T"], *,
               clip_eps: float) -> tuple[Scalar, dict[str, Scalar]]:
  """Half the squared error of the value, the larger of unclipped and clipped.

      L = ½ mean_t max( (v_t - R_t)², (v_old,t + clip(v_t - v_old,t, -ε, ε) - R_t)² )

  Args:
    values: values by the value head being trained.
    old_values: values at sampling time.
    returns: R_t.
    mask: which tokens count.
    clip_eps: ε.

  Returns:
    (loss, metrics): metrics is `value_clip_fraction`.

  Source: the clipped value loss of the PPO reference implementation (OpenAI baselines).
  """
  chex.assert_equal_shape([values, old_values, returns, mask])
  chex.assert_type([values, old_values, returns], float)
  clipped = old_values + jnp.clip(values - old_values, -clip_eps, clip_eps)
  error, clipped_error = (values - returns) ** 2, (clipped - returns) ** 2
  loss = 0.5 * masked_mean(jnp.maximum(error, clipped_error), mask)
  active = (clipped_error > error).astype(jnp.float32)
  return loss, {"value_clip_fraction": masked_mean(active, mask)}


def kl_to_teacher(hidden: Float[Array, "B T D"], head: AnyHead,
                  teacher_hidden: Float[Array, "B T D"], teacher_head: AnyHead,
                  mask: Bool[Array, "B T"]) -> Scalar:
  """Mean KL from the teacher to the student over the valid tokens, over the whole vocabulary.

      L = mean_t KL( π_N(·|x_<t) ‖ π(·|x_<t) ),    π = softmax(hidden · head)

  The logits are computed in chunks of the time axis; [B, T, V] is never stored.

  Args:
    hidden, teacher_hidden: the states that predict each token.
    head, teacher_head: the language-model heads.
    mask: which tokens count.

  Returns: float32, exactly 0 if student and teacher are identical.

  Source: DareU, distillation on the retain set.
  """
  chex.assert_rank([hidden, mask], [3, 2])
  chex.assert_equal_shape([hidden, teacher_hidden])
  chex.assert_equal_shape_prefix([hidden, mask], 2)
  return masked_mean(policy_kl(teacher_hidden, teacher_head, hidden, head), mask)
