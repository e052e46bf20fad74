"""Terms that several losses share: pure functions of arrays, to be minimized.

Log-probs, logits and labels are those of response tokens: entry t belongs to response token t,
including the end token. B responses, T tokens, V vocabulary. Means over tokens are over all valid
tokens of the batch; means over responses exclude rows without a valid token (padding). Results
have the dtype of the inputs. OU: open-unlearning, whose values are reproduced in the tests.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dareu_jax.core.masked import masked_mean


def nll(logprobs: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, ""]:
  """Mean negative log-likelihood per token: - mean_t log π(y_t)."""
  chex.assert_equal_shape([logprobs, mask])
  return -masked_mean(logprobs, mask)


def kl_tokens(logits: Float[Array, "*tokens V"],
              ref_logits: Float[Array, "*tokens V"]) -> Float[Array, "*tokens"]:
  """KL(π_ref ‖ π) at each token."""
  ref = jax.nn.log_softmax(ref_logits, axis=-1)
  return jnp.sum(jnp.exp(ref) * (ref - jax.nn.log_softmax(logits, axis=-1)), axis=-1)


def sequence_sum(x: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, " B"]:
  """Sum over the valid tokens of each response."""
  return jnp.sum(jnp.where(mask, x, 0.0), axis=1)


def mean_of_rows(x: Float[Array, " B"], mask: Bool[Array, "B T"]) -> Float[Array, ""]:
  """Mean over the responses that have a valid token."""
  return masked_mean(x, jnp.any(mask, axis=1))
