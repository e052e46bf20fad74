"""Weights rounded to 8 bits or NF4 and back: do small updates survive?

Only linear kernels, as in bitsandbytes: embedding, head and norms are unchanged.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dareu_jax.core.trees import map_named, named_leaves
from dareu_jax.models.handle import Model
from dareu_jax.models.quantization import BLOCK, nf4_levels


def to_int8(kernel: Float[Array, "*L I O"]) -> Float[Array, "*L I O"]:
  """Rounds each output's weights to 255 levels up to its largest."""
  scale = jnp.max(jnp.abs(kernel), axis=-2, keepdims=True) / 127
  return jnp.round(kernel / jnp.where(scale == 0, 1, scale)) * scale


def to_nf4(kernel: Float[Array, "*L I O"]) -> Float[Array, "*L I O"]:
  """Rounds blocks of 64 weights of an output to NF4 times their largest.

  The last block of an output may be shorter.
  """
  rows = jnp.swapaxes(kernel, -1, -2)
  size = rows.shape[-1]
  padded = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -size % BLOCK)])
  blocks = padded.reshape(*padded.shape[:-1], -1, BLOCK)
  scale = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True)
  levels = jnp.asarray(nf4_levels())
  middles = (levels[1:] + levels[:-1]) / 2
  index = jnp.searchsorted(middles, blocks / jnp.where(scale == 0, 1, scale))
  rounded = (levels[index] * scale).reshape(padded.shape)[..., :size]
  return jnp.swapaxes(rounded, -1, -2)


SCHEMES = {"int8": to_int8, "nf4": to_nf4}


def quantized(model: Model, scheme: str, *, merged: bool = True) -> Model:
  """A model with its linear kernels quantized.

  Args:
    model: the model.
    scheme: one of `SCHEMES`.
    merged: quantize kernel and adapter together (the adapter is then 0), or only the kernel.
  """
  round_off = SCHEMES[scheme]
  lora = model.module.config.lora  # of an adapter at hand: its own
  leaves = named_leaves(model.params, model.frozen)

  def quantized_leaf(name, leaf):
    module = name.rpartition("/")[0]
    adapter = leaves.get(f"{module}/lora_a") if merged else None
    if name.endswith("_proj/kernel"):
      kernel = leaf.astype(jnp.float32)
      if adapter is not None:
        kernel += lora.alpha / lora.rank * adapter @ leaves[f"{module}/lora_b"]
      return round_off(kernel).astype(leaf.dtype)
    if name.endswith("lora_b") and merged:
      return jnp.zeros_like(leaf)
    return leaf

  return Model(map_named(quantized_leaf, model.params), map_named(quantized_leaf, model.frozen),
               model.static)
