"""The decoder: embeddings, layers (unrolled or scanned), final norm, language-model head.

B batch, T time, S cache slots, D model, V vocab, L layers, K kv heads, H head dim.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from dareu_jax.models.config import ModelConfig
from dareu_jax.models.layers import Layer, RMSNorm
from dareu_jax.parallel.mesh import constrain_batch


class Decoder(nnx.Module):
  """A causal language model. Layers are one stacked module when `config.scan_layers`, else a list;
  either way layer i starts from the same random key, so that both are the same model."""

  def __init__(self, config: ModelConfig, *, rngs):
    self.config = config
    dtype = jnp.dtype(config.dtype)
    shape = (config.vocab_size, config.embed_dim)
    std = config.embed_dim**-0.5
    embed_init = jax.nn.initializers.normal(std)
    self.embedding = nnx.Param(embed_init(rngs.params(), shape, dtype))
    keys = jax.random.split(rngs.params(), config.num_layers)

    def make_layer(key):
      return Layer(config, rngs=nnx.Rngs(params=key))

    self.layers = (
      nnx.vmap(make_layer)(keys) if config.scan_layers else nnx.List(map(make_layer, keys)))
    self.final_norm = RMSNorm(config.embed_dim, config)
    if not config.tie_embeddings:
      self.lm_head = nnx.Param(embed_init(rngs.params(), shape[::-1], dtype))

  @property
  def head(self):
    """The language-model head [D, V]."""
    return self.embedding[...].T if self.config.tie_embeddings else self.lm_head[...]

  def hidden_states(self, token_ids):
    """Final-norm hidden states of right-padded rows; causal, so padding reaches no valid position.

    Args:
      token_ids: [B, T] int.

    Returns: [B, T, D].
    """
    positions = jnp.broadcast_to(jnp.arange(token_ids.shape[1]), token_ids.shape)
    return self(token_ids, positions)[0]

  def logits(self, hidden):
    """[..., D] -> [..., V] float32."""
    return jnp.dot(hidden, self.head, preferred_element_type=jnp.float32)

  def empty_cache(self, batch, slots):
    """A cache of zeros: a layer's (keys, values), each [B, S, K, H]; stacked if scanned."""
    config = self.config
    shape = (batch, slots, config.num_kv_heads, config.head_dim)

    def zeros(*lead):
      return tuple(jnp.zeros(lead + shape, jnp.dtype(config.dtype)) for _ in range(2))

    if config.scan_layers:
      return zeros(config.num_layers)
    return tuple(zeros() for _ in range(config.num_layers))

  def __call__(self, token_ids, positions, mask=None, cache=None, slot=0):
    """Runs the trunk, with or without a key-value cache.

    Args:
      token_ids: [B, T] int.
      positions: [B, T] int, for the rotary embedding.
      mask: [B, T, S] bool, which cache slots each token sees; None without a cache (causal).
      cache: as of `empty_cache`, or None.
      slot: scalar int, the first cache slot that these tokens fill.

    Returns: (hidden states [B, T, D], the updated cache or None).
    """
    x = constrain_batch(jnp.take(self.embedding[...], token_ids, axis=0))

    def apply(layer, x, cache):
      x, cache = layer(x, positions, mask, cache, slot)
      return constrain_batch(x), cache

    if self.config.scan_layers:
      x, cache = self._scan(apply, x, cache)
    else:
      x, cache = self._unroll(apply, x, cache)
    return self.final_norm(x), cache

  def _scan(self, apply, x, cache):
    graphdef, stacked = nnx.split(self.layers)

    def body(x, layer_and_cache):
      state, cache = layer_and_cache
      return apply(nnx.merge(graphdef, state), x, cache)

    return jax.lax.scan(self._rematerialised(body), x, (stacked, cache))

  def _unroll(self, apply, x, cache):
    caches = []
    for index, layer in enumerate(self.layers):
      graphdef, state = nnx.split(layer)

      def body(x, state_and_cache, graphdef=graphdef):
        state, cache = state_and_cache
        return apply(nnx.merge(graphdef, state), x, cache)

      layer_cache = None if cache is None else cache[index]
      x, layer_cache = self._rematerialised(body)(x, (state, layer_cache))
      caches.append(layer_cache)
    return x, None if cache is None else tuple(caches)

  def _rematerialised(self, body):
    if not self.config.remat:
      return body
    return jax.checkpoint(body, policy=jax.checkpoint_policies.nothing_saveable)
