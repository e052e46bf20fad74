"""Loss-based unlearning objectives: pure functions on arrays, to be minimised.

Log-probs, logits and labels are those of response tokens: entry t is about response token t, the
end token included. B responses, T tokens, V vocabulary. Means over tokens are over all valid tokens
of the batch; means over responses leave out rows without a valid token (padding). Everything is
computed in the dtype that comes in. OU: open-unlearning, whose defaults and values the tests hold.
"""

import chex
import jax
import jax.numpy as jnp

from dareu_jax.masked import masked_mean


def nll(logprobs, mask):
  """Mean negative log-likelihood a token: - mean_t log π(y_t).

  Args:
    logprobs: [B, T] float.
    mask: [B, T] bool.
  """
  chex.assert_equal_shape([logprobs, mask])
  return -masked_mean(logprobs, mask)


def gradient_ascent(logprobs, mask):
  """mean_t log π(y_t): the likelihood is pushed down, without bound.

  Args:
    logprobs: [B, T] float; of the responses to forget.
    mask: [B, T] bool.

  Source: Jang et al. 2023; the forget term of GradDiff (Liu et al. 2022) and of KL minimisation.
  """
  return -nll(logprobs, mask)


def npo(logprobs, ref_logprobs, mask, *, beta):
  """Negative preference optimisation.

      L = - (2/β) mean_b log σ( -β (S_b - S_ref,b) ),    S_b = Σ_t log π(y_t)

  Args:
    logprobs, ref_logprobs: [B, T] float; of the policy and of the original.
    mask: [B, T] bool.
    beta: β > 0; towards 0 it becomes gradient ascent.

  Source: Zhang et al. 2024, eq. 3 (with the sum over tokens, as its public code and OU).
  """
  chex.assert_equal_shape([logprobs, ref_logprobs, mask])
  ratio = _sequence_sum(logprobs - ref_logprobs, mask)
  return -2 / beta * _mean_of_rows(jax.nn.log_sigmoid(-beta * ratio), mask)


def simnpo(logprobs, mask, *, beta, delta):
  """NPO without a reference, with the mean over tokens in place of the sum.

      L = - (2/β) mean_b log σ( β ( -S_b / |y_b| - δ ) )

  Args:
    logprobs: [B, T] float.
    mask: [B, T] bool.
    beta: β > 0.
    delta: δ; the margin, within the product with β (OU; the paper puts γ outside of it).

  Source: Fan et al. 2024.
  """
  chex.assert_equal_shape([logprobs, mask])
  mean = _sequence_sum(logprobs, mask) / jnp.maximum(jnp.sum(mask, axis=1), 1)
  return -2 / beta * _mean_of_rows(jax.nn.log_sigmoid(beta * (-mean - delta)), mask)


def dpo(chosen_logprobs, chosen_ref, chosen_mask, rejected_logprobs, rejected_ref, rejected_mask, *,
        beta):
  """Direct preference optimisation: what is chosen above what is to be forgotten.

      L = - (2/β) mean_b log σ( β [ (S - S_ref)(chosen) - (S - S_ref)(rejected) ] )

  With refusals chosen this is DPO of TOFU, with other answers it is AltPO (Mekala et al. 2024).

  Args:
    chosen_logprobs, chosen_ref, chosen_mask: [B, T]; of the responses to prefer.
    rejected_logprobs, rejected_ref, rejected_mask: [B, T']; of those to forget, row by row.
    beta: β > 0.

  Source: Rafailov et al. 2023, eq. 7, scaled by 2/β as OU does.
  """
  chex.assert_equal_shape([chosen_logprobs, chosen_ref, chosen_mask])
  chex.assert_equal_shape([rejected_logprobs, rejected_ref, rejected_mask])
  margin = (_sequence_sum(chosen_logprobs - chosen_ref, chosen_mask)
            - _sequence_sum(rejected_logprobs - rejected_ref, rejected_mask))
  return -2 / beta * _mean_of_rows(jax.nn.log_sigmoid(beta * margin), rejected_mask)


def wga(logprobs, mask, *, beta):
  """Weighted gradient ascent: tokens that are unlikely already are left alone.

      L = mean_t π(y_t)^β log π(y_t),  no gradient through the weight

  Args:
    logprobs: [B, T] float.
    mask: [B, T] bool.
    beta: β >= 0; 0 is gradient ascent.

  Source: Wang et al. 2025 (G-effect).
  """
  chex.assert_equal_shape([logprobs, mask])
  weight = jax.lax.stop_gradient(jnp.exp(beta * logprobs))
  return masked_mean(weight * logprobs, mask)


def satimp(logprobs, mask, *, beta1, beta2):
  """Gradient ascent weighted by saturation and importance.

      L = mean_t π(y_t)^β₁ (1 - π(y_t))^β₂ log π(y_t),  no gradient through the weight

  Args:
    logprobs: [B, T] float.
    mask: [B, T] bool.
    beta1, beta2: β₁, β₂ >= 0.

  Source: Yang et al. 2025 (SatImp).
  """
  chex.assert_equal_shape([logprobs, mask])
  probs = jnp.exp(jax.lax.stop_gradient(logprobs))
  weight = probs**beta1 * jnp.maximum(1 - probs, 0.0) ** beta2
  return masked_mean(weight * logprobs, mask)


def kl_tokens(logits, ref_logits):
  """KL(π_ref ‖ π) at each token: [..., V], [..., V] -> [...]."""
  ref = jax.nn.log_softmax(ref_logits, axis=-1)
  return jnp.sum(jnp.exp(ref) * (ref - jax.nn.log_softmax(logits, axis=-1)), axis=-1)


def kl_minimisation(logits, ref_logits, mask):
  """mean_t KL(π_ref ‖ π): the retain term of KL minimisation; SCRUB maximises it on forget data.

  Over response tokens alone: OU's mean is over prompt and padding too.

  Args:
    logits, ref_logits: [B, T, V] float; of the policy and of the original.
    mask: [B, T] bool.

  Source: Maini et al. 2024 (TOFU).
  """
  chex.assert_equal_shape([logits, ref_logits])
  return masked_mean(kl_tokens(logits, ref_logits), mask)


def undial_tokens(logits, ref_logits, labels, *, strength):
  """The terms of `undial`: [..., V], [..., V], [...] -> [...]."""
  vocab = logits.shape[-1]
  target = jax.nn.softmax(
    ref_logits - strength * jax.nn.one_hot(labels, vocab, dtype=ref_logits.dtype), axis=-1)
  return -jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def undial(logits, ref_logits, labels, mask, *, strength):
  """Self-distillation on the original's logits with that of the true token lowered.

      L = mean_t CE( softmax(z_ref - s · onehot(y_t)), π )

  Over response tokens alone: OU's mean takes in prompt and padding, whose label it reads as a row.

  Args:
    logits, ref_logits: [B, T, V] float.
    labels: [B, T] int.
    mask: [B, T] bool.
    strength: s > 0.

  Source: Dong et al. 2024, eq. 4.
  """
  chex.assert_equal_shape([logits, ref_logits])
  chex.assert_equal_shape([labels, mask])
  return masked_mean(undial_tokens(logits, ref_logits, labels, strength=strength), mask)


def ceu_tokens(logits, labels):
  """The terms of `ceu`: [..., V], [...] -> [...]."""
  true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  target = jax.lax.stop_gradient(jax.nn.softmax(jnp.where(true, -jnp.inf, logits), axis=-1))
  return -jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def ceu(logits, labels, mask, *, ignore_first):
  """Cross-entropy to the policy's own distribution without the true token.

      L = mean_t CE( softmax(z with z_{y_t} = -∞), π ),  no gradient through the target

  Args:
    logits: [B, T, V] float.
    labels: [B, T] int.
    mask: [B, T] bool.
    ignore_first: response tokens that are left out at the start of each row.

  Source: CE-U (2503.01224).
  """
  chex.assert_equal_shape([labels, mask])
  return masked_mean(ceu_tokens(logits, labels), without_first(mask, ignore_first))


def without_first(mask, count):
  """mask [B, T] (of tokens from the left) without the first `count` columns."""
  return mask & (jnp.arange(mask.shape[1]) >= count)


def pdu_tokens(logits):
  """The terms of `pdu_forget`: [..., V] -> [...]."""
  return (jnp.max(logits, axis=-1) - jnp.mean(logits, axis=-1)) ** 2


def pdu_forget(logits, mask):
  """Flattens the logits: mean_t ( max_v z_v - mean_v z_v )².

  Args:
    logits: [B, T, V] float.
    mask: [B, T] bool.

  Source: PDU, primal-dual unlearning (2506.05314), as OU has it; `dual_step` moves its multiplier.
  """
  return masked_mean(pdu_tokens(logits), mask)


def dual_step(multiplier, retain_nll, *, step_size, target):
  """λ ← max(0, λ + η (NLL_retain - ε)): the multiplier of PDU's constraint NLL_retain <= ε."""
  return max(0.0, multiplier + step_size * (retain_nll - target))


def maximum_entropy_tokens(logits):
  """The terms of `maximum_entropy`: [..., V] -> [...]."""
  logprobs = jax.nn.log_softmax(logits, axis=-1)
  return jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1) + jnp.log(logits.shape[-1])


def maximum_entropy(logits, mask):
  """mean_t KL(π ‖ uniform): the policy is to know nothing.

  Args:
    logits: [B, T, V] float.
    mask: [B, T] bool.

  Source: Yuan et al. 2024 (ME), as the paper writes it: log V less the entropy. Public copies of
  its code call `kl_div(log π, uniform)`, which is KL(uniform ‖ π). On responses alone, prompts are
  not ours to flatten.
  """
  return masked_mean(maximum_entropy_tokens(logits), mask)


def rmu_forget(hidden, direction, mask, *, scale):
  """Steers the states of one layer to a random direction: mean_t mean_d ( h - c u/‖u‖ )².

  Args:
    hidden: [B, T, D] float; of the layer, at response tokens.
    direction: [D] float; u, drawn once, uniform in [0, 1).
    mask: [B, T] bool.
    scale: c.

  Source: Li et al. 2024 (WMDP), mean over features as OU.
  """
  goal = scale * direction / jnp.linalg.norm(direction)
  return masked_mean(jnp.mean((hidden - goal) ** 2, axis=-1), mask)


def rmu_retain(hidden, ref_hidden, mask):
  """Keeps them where they were on retained data: mean_t mean_d ( h - h_ref )²."""
  chex.assert_equal_shape([hidden, ref_hidden])
  return masked_mean(jnp.mean((hidden - ref_hidden) ** 2, axis=-1), mask)


def task_vector(params, reinforced, *, alpha):
  """θ - α (θ_reinforced - θ): away from a model that learnt the forget data once more.

  Args:
    params, reinforced: trees of arrays; the original, and it fine-tuned on the forget data. Of
      adapters with the same factor A: the weights W + BA are linear in B, not in both.
    alpha: α > 0.

  Source: Ilharco et al. 2023.
  """
  return jax.tree.map(lambda x, more: x - alpha * (more - x), params, reinforced)


def _sequence_sum(x, mask):
  return jnp.sum(jnp.where(mask, x, 0.0), axis=1)


def _mean_of_rows(x, mask):
  return masked_mean(x, jnp.any(mask, axis=1))
