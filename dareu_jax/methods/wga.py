"""WGA: weighted gradient ascent."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dareu_jax.core.masked import masked_mean
from dareu_jax.core.settings import NonNegative
from dareu_jax.methods.base import register_method
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, Scalar


def wga(logprobs: Float[Array, "B T"], mask: Bool[Array, "B T"], *, beta: float) -> Scalar:
  """Weighted gradient ascent: tokens that are already unlikely get little weight.

      L = mean_t π(y_t)^β log π(y_t),  no gradient through the weight

  Args:
    logprobs: log-probs under the policy.
    mask: which tokens count.
    beta: β >= 0; 0 is gradient ascent.

  Source: Wang et al. 2025 (G-effect).
  """
  chex.assert_equal_shape([logprobs, mask])
  weight = jax.lax.stop_gradient(jnp.exp(beta * logprobs))
  return masked_mean(weight * logprobs, mask)


@register_method("wga")
class WGA(LossMethod):
  """Gradient ascent weighted by the tokens' own probabilities."""

  retain_nll_coef: NonNegative = 1.0
  beta: NonNegative = 1.0  # β: 0 is gradient ascent

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    return wga(batch.policy.logprobs, batch.policy.mask, beta=self.beta)
