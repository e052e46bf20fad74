"""The parts of a decoder layer: linear maps with adapters, norms, attention, MLP.

B batch, T time, S cache slots, D model, F mlp, N heads, K kv heads, H head dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dareu_jax.core.matmul import matmul
from dareu_jax.core.sums import add_bias, scale_by
from dareu_jax.models.attention import causal_attention, masked_attention
from dareu_jax.models.config import ModelConfig
from dareu_jax.models.quantization import QuantizedKernel
from dareu_jax.models.rope import rotate
from dareu_jax.parallel.mesh import constrain_cache


class Linear(nnx.Module):
  """x W (+ b) (+ x A B α/r): a linear map with an optional low-rank adapter.

  The adapter is float32 and starts at zero (B = 0), so it has no effect before training. W may be
  quantized.
  """

  def __init__(self, name: str, in_dim: int, out_dim: int, config: ModelConfig, *, rngs: nnx.Rngs,
               use_bias: bool = False, scale: float = 1.0):
    dtype = jnp.dtype(config.dtype)
    self.kernel: nnx.Param | QuantizedKernel
    if config.quantize == "none":
      kernel_init = jax.nn.initializers.normal(scale * in_dim**-0.5)
      self.kernel = nnx.Param(kernel_init(rngs.params(), (in_dim, out_dim), dtype))
    else:
      self.kernel = QuantizedKernel(in_dim, out_dim, config.quantize)
    self.bias = nnx.Param(jnp.zeros((out_dim,), dtype)) if use_bias else None
    self.has_adapter = config.lora.rank > 0 and name in config.lora.targets
    if self.has_adapter:
      rank = config.lora.rank
      self.lora_scale = config.lora.alpha / rank
      lora_init = jax.nn.initializers.he_uniform()
      self.lora_a = nnx.LoRAParam(lora_init(rngs.params(), (in_dim, rank), jnp.float32))
      self.lora_b = nnx.LoRAParam(jnp.zeros((rank, out_dim), jnp.float32))

  def __call__(self, x: Float[Array, "*B In"]) -> Float[Array, "*B Out"]:
    kernel = self.kernel
    y = kernel.product(x) if isinstance(kernel, QuantizedKernel) else matmul(x, kernel[...])
    if self.bias is not None:
      y = add_bias(y, self.bias[...])
    if self.has_adapter:
      low = matmul(x, self.lora_a[...].astype(x.dtype)) * self.lora_scale
      y += matmul(low, self.lora_b[...].astype(x.dtype))
    return y


class RMSNorm(nnx.Module):
  """Root-mean-square norm in float32 (Zhang and Sennrich 2019)."""

  def __init__(self, dim: int, config: ModelConfig):
    self.scale = nnx.Param(jnp.ones((dim,), jnp.dtype(config.dtype)))
    self.eps = config.norm_eps

  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
    # Rounded before the scale is applied, as the reference implementations do.
    return scale_by(normed.astype(x.dtype), self.scale[...])


class KVCache(NamedTuple):
  """Keys and values of one layer, or of all layers stacked, head by head."""

  keys: Float[Array, "*L B K S H"]
  values: Float[Array, "*L B K S H"]

  def written(self, new: "KVCache", slot: Int[Array, ""] | int) -> "KVCache":
    """Adds the keys and values of new tokens from a slot on; for one layer."""
    return KVCache(*(constrain_cache(jax.lax.dynamic_update_slice_in_dim(
      old, part.astype(old.dtype), slot, axis=2)) for old, part in zip(self, new, strict=True)))

  def read(self) -> "KVCache":
    """Keys and values of one layer."""
    return self


class StackedCache(NamedTuple):
  """A layer's part of the stacked cache of all layers, written in place."""

  stack: KVCache  # [L, B, K, S, H]
  layer: Int[Array, ""]

  def written(self, new: KVCache, slot: Int[Array, ""] | int) -> "StackedCache":
    """Adds the keys and values of new tokens from a slot on, in this layer."""
    return StackedCache(KVCache(*(constrain_cache(jax.lax.dynamic_update_slice(
      old, part.astype(old.dtype)[None], (self.layer, 0, 0, slot, 0)))
      for old, part in zip(self.stack, new, strict=True))), self.layer)

  def read(self) -> KVCache:
    """Keys and values of this layer."""
    return KVCache(*(jax.lax.dynamic_index_in_dim(x, self.layer, keepdims=False)
                     for x in self.stack))


AnyCache = KVCache | StackedCache  # the cache of one layer


class Context(NamedTuple):
  """Inputs that all layers share.

  Attributes:
    sin, cos: from `rope.rotation`.
    positions: positions of the tokens.
    key_positions: positions of the cache's slots, larger than any query's if a slot is empty; None
      without a cache.
    slot: the first cache slot that these tokens fill.
  """

  sin: Float[Array, "B T 1 Half"]
  cos: Float[Array, "B T 1 Half"]
  positions: Int[Array, "B T"]
  key_positions: Int[Array, "B S"] | None
  slot: Int[Array, ""] | int


class Attention(nnx.Module):
  """Grouped-query attention with rotary embeddings and optional QK norm."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.config = config
    n, k, h, d = config.num_heads, config.num_kv_heads, config.head_dim, config.embed_dim
    bias = config.qkv_bias
    self.q_proj = Linear("q_proj", d, n * h, config, rngs=rngs, use_bias=bias)
    self.k_proj = Linear("k_proj", d, k * h, config, rngs=rngs, use_bias=bias)
    self.v_proj = Linear("v_proj", d, k * h, config, rngs=rngs, use_bias=bias)
    self.o_proj = Linear("o_proj", n * h, d, config, rngs=rngs, use_bias=config.out_bias,
                         scale=(2 * config.num_layers) ** -0.5)
    if config.qk_norm:
      self.q_norm, self.k_norm = RMSNorm(h, config), RMSNorm(h, config)

  def __call__(
    self, x: Float[Array, "B T D"], context: Context, window: Int[Array, ""] | int | None,
    cache: AnyCache | None) -> tuple[Float[Array, "B T D"], AnyCache | None]:
    """Attends to the tokens themselves or, with a cache, to its slots.

    Args:
      x: input of the layer, after its norm.
      context: shared inputs of the layers.
      window: number of positions that a query sees, including its own; None: all.
      cache: cache of this layer.

    Returns: (output of attention, the cache with these tokens).
    """
    config = self.config
    batch, time, _ = x.shape
    q = self.q_proj(x).reshape(batch, time, config.num_heads, config.head_dim)
    k = self.k_proj(x).reshape(batch, time, config.num_kv_heads, config.head_dim)
    v = self.v_proj(x).reshape(batch, time, config.num_kv_heads, config.head_dim)
    if config.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    q, k = rotate(q, context.sin, context.cos), rotate(k, context.sin, context.cos)
    by_head = KVCache(jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2))
    if cache is not None:
      assert context.key_positions is not None
      cache = cache.written(by_head, context.slot)
      y = masked_attention(q, *cache.read(), context.positions, context.key_positions, window)
    elif window is not None:
      y = masked_attention(q, *by_head, context.positions, context.positions, window)
    else:
      y = causal_attention(q, k, v, implementation=config.attention)
    return self.o_proj(y.reshape(batch, time, -1)), cache


class MLP(nnx.Module):
  """SwiGLU (Shazeer 2020)."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    d, f, bias = config.embed_dim, config.mlp_dim, config.mlp_bias
    self.gate_proj = Linear("gate_proj", d, f, config, rngs=rngs, use_bias=bias)
    self.up_proj = Linear("up_proj", d, f, config, rngs=rngs, use_bias=bias)
    self.down_proj = Linear("down_proj", f, d, config, rngs=rngs, use_bias=bias,
                            scale=(2 * config.num_layers) ** -0.5)

  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
  """Pre-norm attention and MLP, each with a residual connection."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.attention_norm = RMSNorm(config.embed_dim, config)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = RMSNorm(config.embed_dim, config)
    self.mlp = MLP(config, rngs=rngs)

  def __call__(
    self, x: Float[Array, "B T D"], context: Context, window: Int[Array, ""] | int | None = None,
    cache: AnyCache | None = None) -> tuple[Float[Array, "B T D"], AnyCache | None]:
    """The residual stream after the layer, and its cache; see `Attention`."""
    y, cache = self.attention(self.attention_norm(x), context, window, cache)
    x = x + y
    return x + self.mlp(self.mlp_norm(x)), cache
