"""SatImp: gradient ascent weighted by saturation and importance."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dareu_jax.core.masked import masked_mean
from dareu_jax.core.settings import NonNegative
from dareu_jax.methods.base import register_method
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, Scalar


def satimp(logprobs: Float[Array, "B T"], mask: Bool[Array, "B T"], *, beta1: float,
           beta2: float) -> Scalar:
  """Gradient ascent weighted by saturation and importance.

      L = mean_t π(y_t)^β₁ (1 - π(y_t))^β₂ log π(y_t),  no gradient through the weight

  Args:
    logprobs: log-probs under the policy.
    mask: which tokens count.
    beta1, beta2: β₁, β₂ >= 0.

  Source: Yang et al. 2025 (SatImp).
  """
  chex.assert_equal_shape([logprobs, mask])
  probs = jnp.exp(jax.lax.stop_gradient(logprobs))
  weight = probs**beta1 * jnp.maximum(1 - probs, 0.0) ** beta2
  return masked_mean(weight * logprobs, mask)


@register_method("satimp")
class SatImp(LossMethod):
  """Gradient ascent on tokens that are neither unlikely nor certain."""

  forget_coef: NonNegative = 0.1
  retain_nll_coef: NonNegative = 1.0
  beta1: NonNegative = 5.0  # β₁, exponent of saturation
  beta2: NonNegative = 1.0  # β₂, exponent of importance

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    return satimp(batch.policy.logprobs, batch.policy.mask, beta1=self.beta1, beta2=self.beta2)
