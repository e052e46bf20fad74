"""The parts of a decoder layer: linear maps with adapters, norms, rotary embeddings, attention.

B batch, T time, S cache slots, D model, F mlp, N heads, K kv heads, H head dim.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dareu_jax.models.config import ModelConfig, RopeConfig


class Linear(nnx.Module):
  """x W (+ b) (+ x A B α/r): a linear map with an optional low-rank adapter.

  The adapter is float32 and starts at zero (B = 0), so that it changes nothing until trained.
  """

  def __init__(
    self, name, in_dim, out_dim, config: ModelConfig, *, rngs, use_bias=False, scale=1.0):
    dtype = jnp.dtype(config.dtype)
    kernel_init = jax.nn.initializers.normal(scale * in_dim**-0.5)
    self.kernel = nnx.Param(kernel_init(rngs.params(), (in_dim, out_dim), dtype))
    self.bias = nnx.Param(jnp.zeros((out_dim,), dtype)) if use_bias else None
    self.has_adapter = config.lora.rank > 0 and name in config.lora.targets
    if self.has_adapter:
      rank = config.lora.rank
      self.lora_scale = config.lora.alpha / rank
      lora_init = jax.nn.initializers.he_uniform()
      self.lora_a = nnx.LoRAParam(lora_init(rngs.params(), (in_dim, rank), jnp.float32))
      self.lora_b = nnx.LoRAParam(jnp.zeros((rank, out_dim), jnp.float32))

  def __call__(self, x):
    y = x @ self.kernel[...]
    if self.bias is not None:
      y += self.bias[...]
    if self.has_adapter:
      low = (x @ self.lora_a[...].astype(x.dtype)) * self.lora_scale
      y += low @ self.lora_b[...].astype(x.dtype)
    return y


class RMSNorm(nnx.Module):
  """Root-mean-square norm in float32 (Zhang and Sennrich 2019)."""

  def __init__(self, dim, config: ModelConfig):
    self.scale = nnx.Param(jnp.ones((dim,), jnp.dtype(config.dtype)))
    self.eps = config.norm_eps

  def __call__(self, x):
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
    # Rounded before the scale is applied, as the reference implementations do.
    return normed.astype(x.dtype) * self.scale[...]


def rope_frequencies(rope: RopeConfig, head_dim):
  """Angular frequencies [H/2] float32 of the rotary embedding.

  'linear' divides all by `factor` (Chen et al. 2023); 'llama3' divides the long wavelengths, keeps
  the short ones and blends between (Llama 3.1's config).
  """
  freqs = rope.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
  if rope.kind == "linear":
    freqs = freqs / rope.factor
  elif rope.kind == "llama3":
    turns = rope.original_max_length * freqs / (2 * np.pi)
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    freqs = blend * freqs + (1 - blend) * freqs / rope.factor
  return freqs.astype(np.float32)


def apply_rope(x, positions, freqs):
  """Rotates the halves of each head (the Hugging Face layout).

  Args:
    x: [B, T, N, H].
    positions: [B, T] int.
    freqs: [H/2] float32.

  Returns: [B, T, N, H] of x's dtype.
  """
  angles = positions[..., None, None].astype(jnp.float32) * freqs
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x.dtype)


class Attention(nnx.Module):
  """Grouped-query attention with rotary embeddings and optional QK norm."""

  def __init__(self, config: ModelConfig, *, rngs):
    self.config = config
    n, k, h, d = config.num_heads, config.num_kv_heads, config.head_dim, config.embed_dim
    bias = config.qkv_bias
    self.q_proj = Linear("q_proj", d, n * h, config, rngs=rngs, use_bias=bias)
    self.k_proj = Linear("k_proj", d, k * h, config, rngs=rngs, use_bias=bias)
    self.v_proj = Linear("v_proj", d, k * h, config, rngs=rngs, use_bias=bias)
    self.o_proj = Linear(
      "o_proj", n * h, d, config, rngs=rngs, scale=(2 * config.num_layers) ** -0.5)
    if config.qk_norm:
      self.q_norm, self.k_norm = RMSNorm(h, config), RMSNorm(h, config)

  def __call__(self, x, positions, mask, cache, slot):
    """x [B, T, D]; without a cache causal over x itself, else over the cache's slots under `mask`.

    Args:
      positions: [B, T] int, for the rotary embedding.
      mask: [B, T, S] bool over cache slots, or None without a cache.
      cache: (keys, values), each [B, S, K, H], or None.
      slot: scalar int, the first cache slot that these T tokens fill.

    Returns: (y [B, T, D], the cache with these tokens in it or None).
    """
    config = self.config
    batch, time, _ = x.shape
    q = self.q_proj(x).reshape(batch, time, config.num_heads, config.head_dim)
    k = self.k_proj(x).reshape(batch, time, config.num_kv_heads, config.head_dim)
    v = self.v_proj(x).reshape(batch, time, config.num_kv_heads, config.head_dim)
    if config.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    freqs = rope_frequencies(config.rope, config.head_dim)
    q, k = apply_rope(q, positions, freqs), apply_rope(k, positions, freqs)
    if cache is None:
      y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    else:
      keys, values = (
        jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis=1)
        for old, new in zip(cache, (k, v), strict=True))
      cache = (keys, values)
      y = jax.nn.dot_product_attention(q, keys, values, mask=mask[:, None])
    return self.o_proj(y.reshape(batch, time, -1)), cache


class MLP(nnx.Module):
  """SwiGLU (Shazeer 2020)."""

  def __init__(self, config: ModelConfig, *, rngs):
    d, f = config.embed_dim, config.mlp_dim
    self.gate_proj = Linear("gate_proj", d, f, config, rngs=rngs)
    self.up_proj = Linear("up_proj", d, f, config, rngs=rngs)
    self.down_proj = Linear(
      "down_proj", f, d, config, rngs=rngs, scale=(2 * config.num_layers) ** -0.5)

  def __call__(self, x):
    return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
  """Pre-norm attention and MLP, each with a residual connection."""

  def __init__(self, config: ModelConfig, *, rngs):
    self.attention_norm = RMSNorm(config.embed_dim, config)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = RMSNorm(config.embed_dim, config)
    self.mlp = MLP(config, rngs=rngs)

  def __call__(self, x, positions, mask=None, cache=None, slot=0):
    y, cache = self.attention(self.attention_norm(x), positions, mask, cache, slot)
    x = x + y
    return x + self.mlp(self.mlp_norm(x)), cache
