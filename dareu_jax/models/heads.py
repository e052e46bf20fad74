"""Heads on the trunk: a value per position, and a distribution over owners per position."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from dareu_jax.models.config import ModelConfig
from dareu_jax.models.decoder import Decoder
from dareu_jax.parallel.mesh import REPLICATED, register_shardings

register_shardings({
  r"owner_kernel": ("embed", "owners"),
  r"owner_bias": REPLICATED,
  # A value head, on its own and as `head` of a critic.
  r"^(kernel|bias)|head/(kernel|bias)": REPLICATED,
})


class ValueHead(nnx.Module):
  """V(q, y_<t) from the policy's own hidden states; starts at zero, in float32."""

  def __init__(self, embed_dim: int):
    self.kernel = nnx.Param(jnp.zeros((embed_dim,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((), jnp.float32))

  def __call__(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """The value of each position, in float32."""
    return hidden.astype(jnp.float32) @ self.kernel[...] + self.bias[...]


class OwnerClassifier(nnx.Module):
  """A decoder trunk with an owner head on every position: p(owner | y_≤t) for all t in one pass."""

  def __init__(self, config: ModelConfig, num_owners: int, *, rngs: nnx.Rngs):
    self.decoder = Decoder(config, rngs=rngs)
    if not config.tie_embeddings:
      del self.decoder.lm_head  # it predicts owners, not tokens
    head_init = jax.nn.initializers.normal(config.embed_dim**-0.5)
    shape = (config.embed_dim, num_owners)
    self.owner_kernel = nnx.LoRAParam(head_init(rngs.params(), shape, jnp.float32))
    self.owner_bias = nnx.LoRAParam(jnp.zeros((num_owners,), jnp.float32))

  def __call__(self, token_ids: Int[Array | np.ndarray, "B T"]) -> Float[Array, "B T O"]:
    """Owner logits in float32; position t has read y_≤t."""
    hidden = self.decoder.hidden_states(token_ids).astype(jnp.float32)
    return hidden @ self.owner_kernel[...] + self.owner_bias[...]
