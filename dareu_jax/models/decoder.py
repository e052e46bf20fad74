"""The decoder: embeddings, layers (unrolled or scanned), final norm, language-model head.

B batch, T time, S cache slots, D model, V vocab, L layers, K kv heads, H head dim.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from dareu_jax.core.logprobs import Head, logits
from dareu_jax.core.masked import length_mask
from dareu_jax.core.sums import lookup
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.layers import Context, KVCache, Layer, RMSNorm, StackedCache
from dareu_jax.models.rope import rotation
from dareu_jax.parallel.mesh import (
  REPLICATED,
  constrain_batch,
  constrain_cache,
  constrain_gathered,
  constrain_lookup,
  register_shardings,
)

# Shardings of the parameters. Columns of up-projections and rows of down-projections are split
# over `tensor`, so that tensor-parallel attention and MLPs need one reduction each.
SHARDINGS = {
  r"embedding": ("vocab", "embed"),
  r"lm_head": ("embed", "vocab"),
  r"(q|k|v)_proj/kernel": ("embed", "heads"),
  r"o_proj/kernel": ("heads", "embed"),
  r"(gate|up)_proj/kernel": ("embed", "mlp"),
  r"down_proj/kernel": ("mlp", "embed"),
  r"(q|k|v|gate|up)_proj/lora_a": ("embed", "rank"),
  r"(q|k|v)_proj/lora_b": ("rank", "heads"),
  r"(gate|up)_proj/lora_b": ("rank", "mlp"),
  r"o_proj/lora_a": ("heads", "rank"),
  r"down_proj/lora_a": ("mlp", "rank"),
  r"(o|down)_proj/lora_b": ("rank", "embed"),
  r"(attention|mlp|final|q|k)_norm/scale": REPLICATED,
  r"(q|k|v|o|gate|up|down)_proj/bias": REPLICATED,
}
# A quantized kernel is split by blocks of its inputs.
SHARDINGS |= {f"{path}/values": (axes[0], "within_block", axes[1])
              for path, axes in SHARDINGS.items() if path.endswith("kernel")}
SHARDINGS |= {f"{path}/scales": axes
              for path, axes in SHARDINGS.items() if path.endswith("kernel")}
register_shardings(SHARDINGS)

Cache = KVCache | tuple[KVCache, ...]  # of all layers: stacked if scanned, else one per layer
TokenIds = Int[Array | np.ndarray, "B T"]
Lengths = Int[Array | np.ndarray, " B"]


def abstract_decoder(config: ModelConfig) -> "Decoder":
  """A decoder with shapes only."""
  return nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(params=jax.random.key(0))))


class Decoder(nnx.Module):
  """A causal language model. Layers are one stacked module when `config.scan_layers`, else a list;
  either way layer i starts from the same random key, so that both are the same model."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
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
  def head(self) -> Head:
    """The language-model head, for probabilities of the tokenizer's tokens."""
    weights = self.embedding[...].T if self.config.tie_embeddings else self.lm_head[...]
    return Head(weights, self.config.num_tokens or self.config.vocab_size)

  def hidden_states(
    self, token_ids: TokenIds, lengths: Lengths | None = None) -> Float[Array, "B T D"]:
    """Final-norm hidden states of right-padded rows; causal, so padding affects no valid position.

    Args:
      token_ids: right-padded.
      lengths: valid tokens of each row; all if not given. (Only 'dynamic' rotary embeddings beyond
        their original length depend on it.)

    Returns: the states, arbitrary beyond a row's length.
    """
    positions = jnp.broadcast_to(jnp.arange(token_ids.shape[1]), token_ids.shape)
    return self(token_ids, positions, lengths)[0]

  def logits(
    self, token_ids: TokenIds, lengths: Lengths | None = None) -> Float[Array, "B T V"]:
    """Logits of the token after each position.

    Args:
      token_ids: right-padded.
      lengths: valid tokens of each row; all if not given.

    Returns: float32, 0 beyond a row's length.
    """
    every = self.unembed(self.hidden_states(token_ids, lengths))
    if lengths is None:
      return every
    mask = length_mask(jnp.asarray(lengths), token_ids.shape[1])
    return jnp.where(mask[..., None], every, 0.0)

  def unembed(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Logits of hidden states for every row of the embedding, in float32."""
    return logits(hidden, self.head.weights)

  def gathered(self) -> "Decoder":
    """The decoder for a loop over tokens: weights split by `fsdp` are gathered once, not at each
    token, if those of a device are at most `config.gather_gib`."""
    graphdef, state = nnx.split(self)
    return nnx.merge(graphdef, constrain_gathered(state, self.config.gather_gib * 2**30))

  def empty_cache(self, batch: int, slots: int) -> Cache:
    """A cache of zeros."""
    config = self.config
    shape = (batch, config.num_kv_heads, slots, config.head_dim)

    def zeros(*lead):
      return KVCache(*(constrain_cache(jnp.zeros(lead + shape, jnp.dtype(config.dtype)))
                       for _ in range(2)))

    if config.scan_layers:
      return zeros(config.num_layers)
    return tuple(zeros() for _ in range(config.num_layers))

  def __call__(
    self, token_ids: TokenIds, positions: Int[Array, "B T"], lengths: Lengths | None = None, *,
    cache: Cache | None = None, key_positions: Int[Array, "B S"] | None = None,
    slot: Int[Array, ""] | int = 0) -> tuple[Float[Array, "B T D"], Cache | None]:
    """Runs the trunk, with or without a key-value cache.

    Args:
      token_ids: right-padded rows, or their next tokens.
      positions: positions of the tokens.
      lengths: valid tokens of each row so far; up to its last position if not given.
      cache: from `empty_cache`.
      key_positions: the position of the token in each cache slot, now or later. A token sees the
        slots up to its own position, so a slot that stays empty gets a large position.
      slot: the first cache slot that these tokens fill.

    Returns: (hidden states, the updated cache).
    """
    context = self._context(positions, lengths, key_positions, slot)
    x, cache = self._run(self.embed(token_ids), context, cache)
    return self.final_norm(x), cache

  def embed(self, token_ids: TokenIds) -> Float[Array, "B T D"]:
    """The input of the first layer."""
    return constrain_batch(lookup(constrain_lookup(self.embedding[...]), token_ids))

  def layers_between(
    self, x: Float[Array, "B T D"], start: int, stop: int) -> Float[Array, "B T D"]:
    """Runs layers start..stop-1 on the residual stream of whole rows (no cache).

    `layers_between(embed(ids), 0, L)`, normed by `final_norm`, is `hidden_states(ids)`.

    Args:
      x: input of layer `start`.
      start, stop: 0 <= start <= stop <= L.

    Returns: the input of layer `stop`.
    """
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    return self._run(x, self._context(positions, None, None, 0), None, start, stop)[0]

  def _context(self, positions, lengths, key_positions, slot):
    lengths = positions[:, -1] + 1 if lengths is None else lengths
    return Context(*rotation(self.config.rope, self.config.head_dim, positions, lengths), positions,
                   key_positions, slot)

  def _run(self, x, context, cache, start=0, stop=None):
    stop = self.config.num_layers if stop is None else stop
    run = self._scan if self.config.scan_layers else self._unroll
    return run(x, context, cache, start, stop)

  def _scan(self, x, context, cache, start, stop):
    graphdef, stacked = nnx.split(self.layers)
    if (start, stop) != (0, self.config.num_layers):
      stacked = jax.tree.map(lambda leaf: leaf[start:stop], stacked)
    sizes, windows = self.config.layer_windows[start:stop], None
    if any(sizes):  # one program: a window covering the whole sequence means no window
      windows = jnp.array([size or jnp.iinfo(jnp.int32).max for size in sizes])

    # The whole cache is carried along and written in place: passing it in and out layer by
    # layer would copy all of it at each token.
    def body(carry, inputs):
      state, window, index = inputs
      x, stack = carry
      cache = None if stack is None else StackedCache(stack, index)
      x, cache = _apply(nnx.merge(graphdef, state), x, context, window, cache)
      return (x, None if cache is None else cache.stack), None

    inputs = stacked, windows, jnp.arange(stop - start)
    return jax.lax.scan(_rematerialized(body, self.config.remat), (x, cache), inputs)[0]

  def _unroll(self, x, context, cache, start, stop):
    caches = []
    for index in range(start, stop):
      graphdef, state = nnx.split(self.layers[index])
      x, layer_cache = _run_layer(
        x, state, context, None if cache is None else cache[index], graphdef=graphdef,
        window=self.config.layer_windows[index], remat=self.config.remat)
      caches.append(layer_cache)
    return x, None if cache is None else tuple(caches)


# Jitted, so that layers of equal shapes are traced and differentiated once; XLA sees no calls.
@functools.partial(jax.jit, static_argnames=("graphdef", "window", "remat"))
def _run_layer(x, state, context, cache, *, graphdef, window, remat):
  def body(x, state, cache):
    return _apply(nnx.merge(graphdef, state), x, context, window, cache)

  return _rematerialized(body, remat)(x, state, cache)


def _apply(layer, x, context, window, cache):
  x, cache = layer(x, context, window, cache)
  return constrain_batch(x), cache


def _rematerialized(body, remat):
  return jax.checkpoint(
    body, policy=jax.checkpoint_policies.nothing_saveable) if remat else body
