"""NPO: negative preference optimization."""

import chex
import jax
from jaxtyping import Array, Bool, Float

from dareu_jax.core.settings import NonNegative, Positive
from dareu_jax.methods.base import register_method
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, Scalar
from dareu_jax.methods.terms import mean_of_rows, sequence_sum


def npo(logprobs: Float[Array, "B T"], ref_logprobs: Float[Array, "B T"],
        mask: Bool[Array, "B T"], *, beta: float) -> Scalar:
  """Negative preference optimization.

      L = - (2/β) mean_b log σ( -β (S_b - S_ref,b) ),    S_b = Σ_t log π(y_t)

  Args:
    logprobs, ref_logprobs: log-probs under the policy and under the original.
    mask: which tokens count.
    beta: β > 0; towards 0 it becomes gradient ascent.

  Source: Zhang et al. 2024, eq. 3 (with the sum over tokens, as in its public code and OU).
  """
  chex.assert_equal_shape([logprobs, ref_logprobs, mask])
  ratio = sequence_sum(logprobs - ref_logprobs, mask)
  return -2 / beta * mean_of_rows(jax.nn.log_sigmoid(-beta * ratio), mask)


@register_method("npo")
class NPO(LossMethod):
  """Makes forget responses less likely than under the original, leveling off far from it."""

  retain_nll_coef: NonNegative = 1.0
  beta: Positive = 0.1  # β: smaller values go farther from the original before leveling off

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    return npo(batch.policy.logprobs, batch.original.logprobs, batch.policy.mask, beta=self.beta)
