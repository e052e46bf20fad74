"""Frozen kernels in few bits: int8 or NF4 values, one float32 scale per 64 inputs of an output.

An adapter is trained on top of them in float32, as in QLoRA (Dettmers et al. 2023).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from scipy import special

from dareu_jax.core.matmul import matmul

BLOCK = 64  # inputs that share a scale
Scheme = Literal["none", "int8", "nf4"]


def nf4_levels() -> Float[np.ndarray, "16"]:
  """The 16 values of NormalFloat4 in [-1, 1]: quantiles of a normal distribution, including 0.

  Source: QLoRA, appendix E.
  """
  offset = 0.9677083
  positive = special.ndtri(np.linspace(offset, 0.5, 9)[:-1])
  negative = -special.ndtri(np.linspace(offset, 0.5, 8)[:-1])
  levels = np.sort(np.concatenate([positive, negative, [0.0]]))
  return (levels / levels.max()).astype(np.float32)


_LEVELS = nf4_levels()


def num_blocks(inputs: int) -> int:
  """Blocks of a kernel; the last one may be partly empty."""
  return -(-inputs // BLOCK)


def quantize(
    kernel: Float[np.ndarray, "In Out"], scheme: Scheme,
) -> tuple[Int[np.ndarray, "Blocks Stored Out"], Float[np.ndarray, "Blocks Out"]]:
  """Rounds a kernel to the nearest level times the largest of its block.

  Args:
    kernel: weights.
    scheme: 'int8', 255 levels, or 'nf4', `nf4_levels`.

  Returns: (values, scales). Stored = 64 for int8; 32 for NF4, where byte i has value i in its lower
    half and value i + 32 in its upper half.
  """
  inputs, outputs = kernel.shape
  padded = np.zeros((num_blocks(inputs) * BLOCK, outputs), np.float32)
  padded[:inputs] = kernel
  blocks = padded.reshape(-1, BLOCK, outputs)
  scales = np.abs(blocks).max(axis=1)
  unit = blocks / np.where(scales == 0, 1, scales)[:, None]
  if scheme == "int8":
    return np.rint(unit * 127).astype(np.int8), scales / 127
  levels = np.searchsorted((_LEVELS[1:] + _LEVELS[:-1]) / 2, unit).astype(np.uint8)
  low, high = np.split(levels, 2, axis=1)
  return low | high << 4, scales


def dequantize(
    values: Int[Array | np.ndarray, "*L Blocks Stored Out"],
    scales: Float[Array | np.ndarray, "*L Blocks Out"], inputs: int,
) -> Float[Array, "*L In Out"]:
  """The rounded weights, float32; the inverse of `quantize` on its results."""
  if values.dtype == jnp.uint8:
    units = _nf4(jnp.concatenate([values & 15, values >> 4], axis=-2))
  else:
    units = values.astype(jnp.float32)
  weights = units * scales[..., None, :]
  return weights.reshape(*scales.shape[:-2], -1, scales.shape[-1])[..., :inputs, :]


def _nf4(codes):
  """The levels of codes 0 to 15, by selections: a lookup in a table is slow on TPUs."""
  levels: list[Any] = list(_LEVELS)
  for bit in range(4):
    is_set = (codes >> bit & 1) == 1
    levels = [jnp.where(is_set, high, low)
              for low, high in zip(levels[::2], levels[1::2], strict=True)]
  return levels[0]


class Quantized(nnx.Variable):
  """A frozen part of a quantized kernel."""


class QuantizedKernel(nnx.Module):
  """A kernel [In, Out] as values and scales, of zeros until it is filled from a checkpoint."""

  def __init__(self, inputs: int, outputs: int, scheme: Scheme):
    blocks = num_blocks(inputs)
    stored, dtype = (BLOCK, jnp.int8) if scheme == "int8" else (BLOCK // 2, jnp.uint8)
    self.inputs = inputs
    self.values = Quantized(jnp.zeros((blocks, stored, outputs), dtype))
    self.scales = Quantized(jnp.zeros((blocks, outputs), jnp.float32))

  def product(self, x: Float[Array, "*B In"]) -> Float[Array, "*B Out"]:
    """x W in the dtype of x. The backward pass dequantizes again, so that no W is kept for it."""

    @jax.checkpoint
    def product(x, values, scales):
      return matmul(x, dequantize(values, scales, self.inputs).astype(x.dtype))

    return product(x, self.values[...], self.scales[...])
