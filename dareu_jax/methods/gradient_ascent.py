"""Gradient ascent on the forget data."""

from jaxtyping import Array, Bool, Float

from dareu_jax.methods.base import register_method
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, Scalar
from dareu_jax.methods.terms import nll


def gradient_ascent(logprobs: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Scalar:
  """mean_t log π(y_t): pushes the likelihood down, without bound.

  Source: Jang et al. 2023; the forget term of GradDiff (Liu et al. 2022) and of KL minimization.
  """
  return -nll(logprobs, mask)


@register_method("gradient_ascent")
class GradientAscent(LossMethod):
  """Pushes the likelihood of forget responses down, without a retain term."""

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    return gradient_ascent(batch.policy.logprobs, batch.policy.mask)
