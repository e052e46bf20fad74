"""Attention: one function, three implementations.

B batch, T time, S key slots, N heads, K kv heads, H head dim.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from dareu_jax.core.errors import InputError
from dareu_jax.parallel.mesh import BATCH, on_one_device

Implementation = Literal["auto", "xla", "cudnn", "splash"]
SPLASH_BLOCK = 128  # lengths and head dims must be multiples of this


def causal_attention(
  q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], *,
  implementation: Implementation) -> Float[Array, "B T N H"]:
  """Self-attention of right-padded rows: a query sees the keys up to its own position.

  Padding comes after all valid positions, so the causal mask alone excludes it.

  Args:
    q, k, v: queries, keys and values, rotated.
    implementation: 'xla'; 'cudnn' (flash attention on NVIDIA GPUs); 'splash' (on TPUs); 'auto'
      uses 'cudnn' if possible, else 'xla'.

  Raises:
    InputError: if the shapes do not allow the requested implementation.
  """
  if implementation == "splash":
    return _splash(q, k, v)
  kernel: Literal["xla", "cudnn"] = "xla"
  if implementation in ("auto", "cudnn"):
    reason = _why_not_cudnn(q)
    if reason and implementation == "cudnn":
      raise InputError(f"config.model.attention is 'cudnn', {reason}: set it to 'auto'.")
    kernel = "xla" if reason else "cudnn"
  return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=kernel)


def masked_attention(
  q: Float[Array, "B T N H"], k: Float[Array, "B K S H"], v: Float[Array, "B K S H"],
  q_positions: Int[Array, "B T"], k_positions: Int[Array, "B S"],
  window: Int[Array, ""] | int | None = None) -> Float[Array, "B T N H"]:
  """Attention by positions: a query sees keys at its own position or before, within its window.

  Args:
    q: queries, rotated.
    k, v: keys, rotated, and values, head by head, so that both products read them as they lie.
    q_positions: positions of the queries.
    k_positions: positions of the keys; for an empty slot, anything larger than every query's.
    window: number of positions that a query sees, including its own; None: all.
  """
  distance = q_positions[:, :, None] - k_positions[:, None]  # [B, T, S]
  mask = distance >= 0
  if window is not None:
    mask &= distance < window
  batch, time, heads, head_dim = q.shape
  # The queries that share a key head are one matrix: [B, K, G T, H].
  grouped = jnp.moveaxis(q.reshape(batch, time, k.shape[1], -1, head_dim), 1, 3)
  rows = grouped.reshape(batch, k.shape[1], -1, head_dim)
  scores = jnp.einsum("bkrh,bksh->bkrs", rows, k, preferred_element_type=jnp.float32)
  scores = scores.reshape(*grouped.shape[:-1], -1) * head_dim**-0.5  # [B, K, G, T, S]
  scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(*rows.shape[:-1], -1)
  y = jnp.einsum("bkrs,bksh->bkrh", weights, v).reshape(grouped.shape)
  return jnp.moveaxis(y, 3, 1).reshape(q.shape)


def _why_not_cudnn(q):
  """Why cuDNN's flash attention cannot be used on a query [B, T, N, H], or None if it can."""
  device = jax.devices()[0]
  if device.platform != "gpu" or "cuda" not in device.client.platform_version:
    return "but there is no NVIDIA GPU"
  if float(device.compute_capability) < 8.0:
    return f"but it needs compute capability 8.0, and the GPU has {device.compute_capability}"
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    return f"but it has no {q.dtype} kernel"
  widest = 256 if float(device.compute_capability) >= 9.0 else 128
  if q.shape[-1] % 8 or q.shape[-1] > widest:
    return f"but head_dim {q.shape[-1]} is not a multiple of 8 up to {widest}"
  if q.shape[1] % 2:  # jax 0.11.2: "Unsupported sequence length Q 77, KV 77", from the gradient
    return f"but {q.shape[1]} positions are an odd number"
  return None


def _splash(q, k, v):
  """Splash attention, split over batch and heads on several devices."""
  time, head_dim = q.shape[1], q.shape[-1]
  if time % SPLASH_BLOCK or head_dim % SPLASH_BLOCK:
    raise InputError(
      f"config.model.attention is 'splash', but a batch has {time} positions and heads of "
      f"{head_dim}: both must be multiples of {SPLASH_BLOCK}. Set config.length_multiple to "
      f"{SPLASH_BLOCK}, or config.model.attention to 'auto'.")
  mesh = jax.sharding.get_abstract_mesh()
  split = not on_one_device(mesh)
  ways = mesh.shape["tensor"] if split and k.shape[2] % mesh.shape["tensor"] == 0 else 1
  kernel = jax.vmap(_splash_kernel(q.shape[2] // ways, time))
  if split:  # the compiler cannot split a kernel by itself
    rows = BATCH if q.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
    spec = P(rows, "tensor" if ways > 1 else None)
    kernel = jax.shard_map(kernel, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False)
  # It does not scale the logits, and takes [B, N, T, H].
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * head_dim**-0.5, k, v))
  return jnp.swapaxes(kernel(q, k, v), 1, 2)


def _splash_kernel(num_heads, time):
  # Imported on demand: only TPUs use it, and it takes long to load.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  block = next(size for size in (512, 256, SPLASH_BLOCK) if time % size == 0)
  sizes = splash.BlockSizes(
    block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
    block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block)
  mask = masks.MultiHeadMask([masks.CausalMask((time, time))] * num_heads)
  return splash.make_splash_mha_single_device(
    mask, block_sizes=sizes, interpret=jax.default_backend() == "cpu")
