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
