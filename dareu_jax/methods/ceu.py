"""CE-U: cross-entropy unlearning."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dareu_jax.core.masked import masked_mean
from dareu_jax.core.settings import Size
from dareu_jax.methods.base import register_method
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, Scalar


def ceu_tokens(logits: Float[Array, "*tokens V"],
               labels: Int[Array, "*tokens"]) -> Float[Array, "*tokens"]:
  """The terms of `ceu`."""
  true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  target = jax.lax.stop_gradient(jax.nn.softmax(jnp.where(true, -jnp.inf, logits), axis=-1))
  return -jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def ceu(logits: Float[Array, "B T V"], labels: Int[Array, "B T"], mask: Bool[Array, "B T"], *,
        ignore_first: int) -> Scalar:
  """Cross-entropy to the policy's own distribution without the true token.

      L = mean_t CE( softmax(z with z_{y_t} = -∞), π ),  no gradient through the target

  Args:
    logits: logits of the policy.
    labels: y_t.
    mask: which tokens count.
    ignore_first: response tokens to ignore at the start of each row.

  Source: CE-U (2503.01224).
  """
  chex.assert_equal_shape([labels, mask])
  return masked_mean(ceu_tokens(logits, labels), without_first(mask, ignore_first))


def without_first(mask: Bool[Array, "B T"], count: int) -> Bool[Array, "B T"]:
  """The mask without its first `count` columns."""
  return mask & (jnp.arange(mask.shape[1]) >= count)


@register_method("ceu")
class CEU(LossMethod):
  """Learns the policy's own distribution without the true tokens."""

  ignore_first: Size = 1  # response tokens to ignore

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    mask = without_first(batch.policy.mask, self.ignore_first)
    return batch.policy.mean_of_labels(ceu_tokens, mask=mask)
