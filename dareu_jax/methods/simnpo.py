"""SimNPO: NPO without a reference model."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dareu_jax.core.settings import NonNegative, Positive
from dareu_jax.methods.base import register_method
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, Scalar
from dareu_jax.methods.terms import mean_of_rows, sequence_sum


def simnpo(logprobs: Float[Array, "B T"], mask: Bool[Array, "B T"], *, beta: float,
           delta: float) -> Scalar:
  """NPO without a reference, with the mean over tokens in place of the sum.

      L = - (2/β) mean_b log σ( β ( -S_b / |y_b| - δ ) )

  Args:
    logprobs: log-probs under the policy.
    mask: which tokens count.
    beta: β > 0.
    delta: δ, the margin, inside the product with β (as in OU; the paper has γ outside).

  Source: Fan et al. 2024.
  """
  chex.assert_equal_shape([logprobs, mask])
  mean = sequence_sum(logprobs, mask) / jnp.maximum(jnp.sum(mask, axis=1), 1)
  return -2 / beta * mean_of_rows(jax.nn.log_sigmoid(beta * (-mean - delta)), mask)


@register_method("simnpo")
class SimNPO(LossMethod):
  """Pushes the mean NLL of forget responses beyond a margin."""

  forget_coef: NonNegative = 0.125
  retain_nll_coef: NonNegative = 1.0
  beta: Positive = 4.5  # β: smaller values go farther
  delta: float = 0.0  # δ: margin of the mean NLL, nats

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    return simnpo(batch.policy.logprobs, batch.policy.mask, beta=self.beta, delta=self.delta)
