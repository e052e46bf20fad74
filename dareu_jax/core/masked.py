"""Padded arrays: masks, statistics over the valid entries, concatenating and slicing rows."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

if TYPE_CHECKING:
  from jax import Array
else:  # formulas take arrays of NumPy as well
  Array = jax.Array | np.ndarray


def length_mask(lengths: Int[Array, " B"], time: int) -> Bool[Array, "B {time}"]:
  """True at positions < length."""
  return jnp.arange(time) < lengths[:, None]


def masked_sum(x: Shaped[Array, "*shape"], mask: Bool[Array, "*#shape"]) -> Shaped[Array, ""]:
  """Sum over the entries where mask is True; other entries may be anything, even NaN."""
  return jnp.sum(jnp.where(mask, x, 0.0))


def masked_mean(x: Shaped[Array, "*shape"], mask: Bool[Array, "*#shape"]) -> Float[Array, ""]:
  """Mean over the entries where mask is True; 0 if there are none."""
  return masked_sum(x, mask) / jnp.maximum(jnp.sum(mask), 1)


def masked_whiten(x: Float[Array, "*shape"], mask: Bool[Array, "*shape"], *,
                  epsilon: float = 1e-8) -> Float[Array, "*shape"]:
  """(x - mean) / std over the valid entries, 0 elsewhere (two-pass variance, no Bessel term)."""
  centered = jnp.where(mask, x - masked_mean(x, mask), 0.0)
  return centered / jnp.sqrt(masked_mean(centered**2, mask) + epsilon)


def explained_variance(predictions: Float[Array, "*shape"], targets: Float[Array, "*shape"],
                       mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
  """1 - Var(target - prediction) / Var(target) over the valid entries; 0 for constant targets."""

  def variance(x):
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)

  total = variance(targets)
  # The variance of constant targets is not exactly 0, because of rounding.
  varies = total > 1e-10 * masked_mean(targets**2, mask)
  return jnp.where(varies, 1 - variance(targets - predictions) / jnp.where(varies, total, 1.0), 0.0)


def last_valid(x: Shaped[Array, "B T ..."],
               lengths: Int[Array, " B"]) -> Shaped[Array, "B ..."]:
  """Each row's entry at its last valid position."""
  index = jnp.maximum(lengths - 1, 0).reshape(-1, 1, *[1] * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)[:, 0]


def join(prompt_ids: Int[Array, "B P"], prompt_lengths: Int[Array, " B"],
         completion_ids: Int[Array, "B T"]) -> Int[Array, "B P+T"]:
  """Puts each row's completion right after its prompt."""
  time = completion_ids.shape[1]
  columns = prompt_lengths[:, None] + jnp.arange(time)
  rows = jnp.arange(prompt_ids.shape[0])[:, None]
  return jnp.pad(prompt_ids, ((0, 0), (0, time))).at[rows, columns].set(completion_ids)


def take_from(x: Shaped[Array, "B S ..."], starts: Int[Array, " B"],
              time: int) -> Shaped[Array, "B {time} ..."]:
  """Each row's `time` entries from its start on.

  Beyond the end the last entry is repeated.
  """
  index = jnp.minimum(starts[:, None] + jnp.arange(time), x.shape[1] - 1)
  return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
