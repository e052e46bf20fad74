"""DPO towards refusals."""

import chex
import jax
from jaxtyping import Array, Bool, Float

from dareu_jax.core.settings import NonNegative, Positive
from dareu_jax.methods.base import Task, register_method
from dareu_jax.methods.idk import refusals
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, Others, Scalar
from dareu_jax.methods.terms import mean_of_rows, sequence_sum


def dpo(chosen_logprobs: Float[Array, "B T"], chosen_ref: Float[Array, "B T"],
        chosen_mask: Bool[Array, "B T"], rejected_logprobs: Float[Array, "B U"],
        rejected_ref: Float[Array, "B U"], rejected_mask: Bool[Array, "B U"], *,
        beta: float) -> Scalar:
  """Direct preference optimization: prefers chosen responses to those to forget, row by row.

      L = - (2/β) mean_b log σ( β [ (S - S_ref)(chosen) - (S - S_ref)(rejected) ] )

  Source: Rafailov et al. 2023, eq. 7, scaled by 2/β as OU does.
  """
  chex.assert_equal_shape([chosen_logprobs, chosen_ref, chosen_mask])
  chex.assert_equal_shape([rejected_logprobs, rejected_ref, rejected_mask])
  margin = (sequence_sum(chosen_logprobs - chosen_ref, chosen_mask)
            - sequence_sum(rejected_logprobs - rejected_ref, rejected_mask))
  return -2 / beta * mean_of_rows(jax.nn.log_sigmoid(beta * margin), rejected_mask)


@register_method("dpo")
class DPO(LossMethod):
  """Prefers a refusal to each forget response (the DPO of TOFU)."""

  retain_nll_coef: NonNegative = 1.0
  beta: Positive = 0.1  # β: smaller values go farther from the original before leveling off

  @property
  def uses_refusals(self) -> bool:
    return True

  def other_responses(self, task: Task) -> Others:
    return refusals(task)

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    chosen, chosen_ref = batch.other_policy, batch.other_original
    return dpo(chosen.logprobs, chosen_ref.logprobs, chosen.mask, batch.policy.logprobs,
               batch.original.logprobs, batch.policy.mask, beta=self.beta)
