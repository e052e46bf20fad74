"""Rotary position embeddings: the frequencies of every published scaling, and the rotation.

B batch, T time, N heads, H head dim.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """θ, and how positions beyond the length of pretraining are scaled.

  'linear' divides every frequency by `factor` (Chen et al. 2023); 'dynamic' raises θ with the row's
  length once that passes `original_max_length` (NTK-aware scaling); 'llama3' divides the long
  wavelengths, keeps the short ones and blends between (Llama 3.1); 'yarn' does so by the number of
  turns within the original length and sharpens attention (Peng et al. 2023).
  """

  theta: float = 10000.0
  kind: str = "default"
  factor: float = 1.0
  original_max_length: int = 8192  # length of pretraining; 'dynamic': where scaling begins
  low_freq_factor: float = 1.0  # llama3
  high_freq_factor: float = 4.0  # llama3
  beta_fast: float = 32.0  # yarn: turns from which a frequency is kept
  beta_slow: float = 1.0  # yarn: turns below which it is divided
  truncate: bool = True  # yarn: whether the border dimensions are rounded outwards
  attention_factor: float = 1.0  # yarn: scales sin and cos, and with them the logits by its square


def rope_frequencies(rope: RopeConfig, head_dim: int) -> Float[np.ndarray, " Half"]:
  """Angular frequencies [H/2] in float32, as the reference implementations round them.

  For 'dynamic', those of rows within the original length; see `rotation`.
  """
  # Rounded to float32 where the references round: at position 1000 one unit in the last place of a
  # frequency is 6e-5 of a turn, and sharp attention multiplies that.
  exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  freqs = np.float32(1.0) / (rope.theta ** exponents.astype(np.float64)).astype(np.float32)
  if rope.kind == "linear":
    freqs = freqs / np.float32(rope.factor)
  elif rope.kind == "llama3":
    turns = np.float32(rope.original_max_length) / (np.float32(2 * math.pi) / freqs)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    freqs = _blend(freqs, rope.factor, kept)
  elif rope.kind == "yarn":
    low, high = (_dimension_of_turns(rope, head_dim, beta)
                 for beta in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001
    freqs = _blend(freqs, rope.factor, 1 - (np.arange(head_dim // 2) - low) / width)
  return freqs.astype(np.float32)


def _dimension_of_turns(rope, head_dim, turns):
  """The (fractional) frequency index that makes `turns` turns within the original length."""
  length = rope.original_max_length / (turns * 2 * math.pi)
  return head_dim * math.log(length) / (2 * math.log(rope.theta))


def _blend(freqs, factor, kept):
  """Frequencies with the share `kept` (clipped to [0, 1]) unchanged and the rest divided."""
  kept = np.clip(kept, 0.0, 1.0).astype(np.float32)
  return kept * freqs + (1 - kept) * freqs / np.float32(factor)


def rotation(
  rope: RopeConfig, head_dim: int, positions: Int[Array, "B T"],
  lengths: Int[Array | np.ndarray, " B"],
) -> tuple[Float[Array, "B T 1 Half"], Float[Array, "B T 1 Half"]]:
  """Sine and cosine of each position's angles: float32 [B, T, 1, H/2].

  Args:
    rope: the RopeConfig.
    head_dim: H.
    positions: positions of the tokens.
    lengths: valid tokens of each row, on which the scaling of 'dynamic' depends.
  """
  freqs = jnp.asarray(rope_frequencies(rope, head_dim))
  if rope.kind == "dynamic":
    longest = rope.original_max_length
    stretch = rope.factor * jnp.maximum(lengths, longest) / longest - (rope.factor - 1)
    # θ' = θ · stretch^(H/(H-2)), so that the slowest frequency is divided by `stretch` exactly.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / max(head_dim - 2, 1)
    freqs = (freqs / stretch[:, None] ** exponents)[:, None]
  angles = positions[..., None].astype(jnp.float32) * freqs
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  return (sin * rope.attention_factor)[:, :, None], (cos * rope.attention_factor)[:, :, None]


def rotate(
  x: Float[Array, "B T N H"], sin: Float[Array, "B T 1 H//2"], cos: Float[Array, "B T 1 H//2"],
) -> Float[Array, "B T N H"]:
  """Rotates the halves of each head (the Hugging Face layout), with the output of `rotation`."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x.dtype)
