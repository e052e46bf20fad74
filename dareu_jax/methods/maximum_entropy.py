"""Maximum entropy on the forget data."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dareu_jax.core.masked import masked_mean
from dareu_jax.core.settings import NonNegative
from dareu_jax.methods.base import register_method
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, Scalar


def maximum_entropy_tokens(logits: Float[Array, "*tokens V"]) -> Float[Array, "*tokens"]:
  """The terms of `maximum_entropy`."""
  logprobs = jax.nn.log_softmax(logits, axis=-1)
  return jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1) + jnp.log(logits.shape[-1])


def maximum_entropy(logits: Float[Array, "B T V"], mask: Bool[Array, "B T"]) -> Scalar:
  """mean_t KL(π ‖ uniform).

  Source: Yuan et al. 2024 (ME), as in the paper: log V minus the entropy. Public copies of its code
  call `kl_div(log π, uniform)`, which is KL(uniform ‖ π). Only response tokens count, not prompts.
  """
  return masked_mean(maximum_entropy_tokens(logits), mask)


@register_method("maximum_entropy")
class MaximumEntropy(LossMethod):
  """Makes the distribution over next tokens uniform on forget responses."""

  forget_coef: NonNegative = 0.1
  retain_nll_coef: NonNegative = 1.0

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    return batch.policy.mean(maximum_entropy_tokens)
