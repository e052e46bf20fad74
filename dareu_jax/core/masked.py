"""Padded arrays: masks, statistics over the valid entries, rows put on end and taken apart."""

import jax.numpy as jnp


def length_mask(lengths, time):
  """lengths [B] int -> [B, T] bool, True at positions < length."""
  return jnp.arange(time) < lengths[:, None]


def masked_sum(x, mask):
  """Sum over the entries where mask is True; what lies elsewhere may be anything, NaN included."""
  return jnp.sum(jnp.where(mask, x, 0.0))


def masked_mean(x, mask):
  """Mean over the entries where mask is True; 0 if there are none."""
  return masked_sum(x, mask) / jnp.maximum(jnp.sum(mask), 1)


def masked_whiten(x, mask, *, epsilon=1e-8):
  """(x - mean) / std over the valid entries, 0 elsewhere (two-pass variance, no Bessel term)."""
  centered = jnp.where(mask, x - masked_mean(x, mask), 0.0)
  return centered / jnp.sqrt(masked_mean(centered**2, mask) + epsilon)


def explained_variance(predictions, targets, mask):
  """1 - Var(target - prediction) / Var(target) over the valid entries; 0 for constant targets."""

  def variance(x):
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)

  total = variance(targets)
  # Constant targets have a variance of rounding errors, not of 0.
  varies = total > 1e-10 * masked_mean(targets**2, mask)
  return jnp.where(varies, 1 - variance(targets - predictions) / jnp.where(varies, total, 1.0), 0.0)


def last_valid(x, lengths):
  """x [B, T, ...] at each row's last valid position: [B, ...]."""
  index = jnp.maximum(lengths - 1, 0).reshape(-1, 1, *[1] * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)[:, 0]


def join(prompt_ids, prompt_lengths, completion_ids):
  """Puts each row's completion right behind its prompt: [B, P], [B], [B, T] -> [B, P+T]."""
  time = completion_ids.shape[1]
  columns = prompt_lengths[:, None] + jnp.arange(time)
  rows = jnp.arange(prompt_ids.shape[0])[:, None]
  return jnp.pad(prompt_ids, ((0, 0), (0, time))).at[rows, columns].set(completion_ids)


def take_from(x, starts, time):
  """Each row's `time` entries from its start on: x [B, S, ...], starts [B] -> [B, time, ...].

  Beyond the end the last entry is repeated.
  """
  index = jnp.minimum(starts[:, None] + jnp.arange(time), x.shape[1] - 1)
  return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
