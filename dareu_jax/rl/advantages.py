"""Advantage estimation."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dareu_jax.core.masked import Array, length_mask


def generalized_advantage_estimation(
    rewards: Float[Array, "B T"], values: Float[Array, "B T"], lengths: Int[Array, " B"], *,
    discount: float, gae_lambda: float) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Advantages and returns of padded episodes.

      δ_t = r_t + γ v_{t+1} - v_t        A_t = δ_t + γ λ A_{t+1}        v_{n+1} = A_{n+1} = 0

  Args:
    rewards: r_t, anything beyond a row's length is ignored.
    values: v_t by the critic at sampling time.
    lengths: n, the number of valid steps of each row.
    discount: γ in [0, 1].
    gae_lambda: λ in [0, 1].

  Returns:
    (advantages, returns), float32 and 0 beyond the length; returns = advantages + values.

  Source: Schulman et al. 2016, eq. 16.
  """
  chex.assert_rank([rewards, values, lengths], [2, 2, 1])
  chex.assert_equal_shape([rewards, values])
  chex.assert_type([rewards, values], float)
  mask = length_mask(lengths, rewards.shape[1])
  rewards = jnp.where(mask, rewards, 0.0).astype(jnp.float32)
  values = jnp.where(mask, values, 0.0).astype(jnp.float32)
  next_values = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
  deltas = rewards + discount * next_values - values

  def backward(later, delta):
    advantage = delta + discount * gae_lambda * later
    return advantage, advantage

  start = jnp.zeros(rewards.shape[0], jnp.float32)
  _, advantages = jax.lax.scan(backward, start, deltas.T, reverse=True)
  advantages = jnp.where(mask, advantages.T, 0.0)
  return advantages, advantages + values


def regression_values(
    rewards: Float[Array, "B T"], transformed: Float[Array, "B T"], lengths: Int[Array, " B"], *,
    group_size: int, segment_length: int, discount: float) -> Float[Array, "B T"]:
  """Values by least squares on what each response has shown so far; nothing is trained.

      v_t = w · (1, M, A_{t-1}, T_{t-1}) ⊗ (1, τ, τ²),    τ = t / T
      w = argmin Σ_t (v_t - Σ_{s≥t} γ^{s-t} r_s)²    over the valid tokens

  A_{t-1} is the sum of the rewards before t, T_{t-1} the transformed score at the end of the last
  segment before t (in the first segment the batch's mean after a token), and M the mean return of
  the other responses to the same query. Of a response's own rewards only what lies before t enters
  v_t, except through w, which has 12 numbers for a whole rollout.

  Args:
    rewards: r_t, 0 beyond the length.
    transformed: T(b(y_≤t)), `rewards.LogTransform` of the scores.
    lengths: the number of valid steps of each row.
    group_size: G >= 2, divides B; rows come query by query.
    segment_length: κ. A reward of whole responses has one segment, and so nothing is known before
      its end.
    discount: γ in [0, 1].

  Returns: float32, 0 beyond the length.
  """
  chex.assert_equal_shape([rewards, transformed])
  batch, time = rewards.shape
  mask = length_mask(lengths, time)
  returns = jnp.sum(rewards, axis=1, keepdims=True)
  earned = jnp.cumsum(rewards, axis=1) - rewards
  groups = returns.reshape(-1, group_size)
  others = (jnp.sum(groups, axis=1, keepdims=True) - groups) / (group_size - 1)
  scored = jnp.arange(time) // segment_length * segment_length  # tokens in whole segments before t
  known = jnp.where(scored > 0, transformed[:, scored - 1], jnp.mean(transformed[:, 0]))
  _, to_come = generalized_advantage_estimation(
    rewards, jnp.zeros_like(rewards), lengths, discount=discount, gae_lambda=1.0)
  seen = jnp.stack([jnp.ones_like(rewards), jnp.broadcast_to(others.reshape(-1, 1), rewards.shape),
                    earned, known], axis=-1)
  powers = (jnp.arange(1, time + 1) / time)[:, None] ** jnp.arange(3)
  features = (seen[..., None] * powers[:, None, :]).reshape(batch, time, -1)
  features = jnp.where(mask[..., None], features, 0.0)
  moments = jnp.einsum("btf,btg->fg", features, features, precision="highest")
  targets = jnp.einsum("btf,bt->f", features, to_come, precision="highest")
  ridge = 1e-6 * jnp.trace(moments) / len(targets) * jnp.eye(len(targets))
  return features @ jnp.linalg.solve(moments + ridge, targets)


def group_advantages(returns: Float[Array, " B"], *, group_size: int,
                     normalize: bool) -> Float[Array, " B"]:
  """Advantages of whole responses relative to the others to the same query; needs no critic.

      RLOO    A_i = R_i - mean_{j≠i} R_j
      GRPO    A_i = (R_i - mean_j R_j) / (std_j R_j + 1e-6)

  Args:
    returns: R_i, the sum of a response's rewards. Rows come group by group.
    group_size: G >= 2, divides B.
    normalize: False for RLOO, True for GRPO.

  Returns: float32; the sum over each group is 0.

  Source: Ahmadian et al. 2024 (RLOO, after Kool et al. 2019); Shao et al. 2024 (GRPO, outcome
    supervision; the population's standard deviation).
  """
  chex.assert_rank(returns, 1)
  groups = returns.astype(jnp.float32).reshape(-1, group_size)
  centered = groups - jnp.mean(groups, axis=1, keepdims=True)
  if normalize:
    advantages = centered / (jnp.std(groups, axis=1, keepdims=True) + 1e-6)
  else:
    advantages = centered * group_size / (group_size - 1)
  return advantages.reshape(-1)
