"""UNDIAL: self-distillation on adjusted logits."""

import functools

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dareu_jax.core.masked import masked_mean
from dareu_jax.core.settings import Positive
from dareu_jax.methods.base import register_method
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, Scalar


def undial_tokens(logits: Float[Array, "*tokens V"], ref_logits: Float[Array, "*tokens V"],
                  labels: Int[Array, "*tokens"], *, strength: float) -> Float[Array, "*tokens"]:
  """The terms of `undial`."""
  vocab = logits.shape[-1]
  target = jax.nn.softmax(
    ref_logits - strength * jax.nn.one_hot(labels, vocab, dtype=ref_logits.dtype), axis=-1)
  return -jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def undial(logits: Float[Array, "B T V"], ref_logits: Float[Array, "B T V"],
           labels: Int[Array, "B T"], mask: Bool[Array, "B T"], *, strength: float) -> Scalar:
  """Self-distillation on the original's logits, with the true token's logit lowered.

      L = mean_t CE( softmax(z_ref - s · onehot(y_t)), π )

  Only over response tokens; OU's mean includes prompt and padding, whose label it uses as an index.

  Source: Dong et al. 2024, eq. 4.
  """
  chex.assert_equal_shape([logits, ref_logits])
  chex.assert_equal_shape([labels, mask])
  return masked_mean(undial_tokens(logits, ref_logits, labels, strength=strength), mask)


@register_method("undial")
class UNDIAL(LossMethod):
  """Distills the original with the true tokens' logits lowered."""

  strength: Positive = 10.0  # s: subtracted from the logit of the true token

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    tokens = functools.partial(undial_tokens, strength=self.strength)
    return batch.policy.mean_of_labels(tokens, batch.original)
