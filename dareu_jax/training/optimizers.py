"""AdamW with a clipped global norm; the learning rate comes from outside at each step.

The schedule is not part of the compiled update, so that runs of other lengths share one program.
"""

import jax
import jax.numpy as jnp
import optax

from dareu_jax.settings import TrainSettings


def adamw_direction(weight_decay, clip_norm):
  """Optax transformation whose updates are still to be multiplied by minus the learning rate."""

  def matrices(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)

  return optax.chain(
    optax.clip_by_global_norm(clip_norm),
    optax.scale_by_adam(b1=0.9, b2=0.95, mu_dtype=jnp.float32),
    optax.add_decayed_weights(weight_decay, matrices),
  )


def apply_direction(params, direction, learning_rate):
  """params - learning_rate · direction, in the parameters' own dtype.

  `learning_rate` is a scalar, or a tree of them that is a prefix of `params`.
  """
  return jax.tree.map(
    lambda p, d: (p - learning_rate * d).astype(p.dtype), params, direction)


def learning_rate_at(settings: TrainSettings, step, num_steps):
  """The scheduled learning rate of a step (float): linear warm-up, then decay to a tenth or none."""
  warmup = max(1, round(settings.warmup * num_steps))
  if step < warmup:
    return settings.learning_rate * (step + 1) / warmup
  done = (step - warmup) / max(1, num_steps - warmup)
  if settings.schedule == "linear":
    return settings.learning_rate * (1 - done)
  if settings.schedule == "cosine":
    return float(settings.learning_rate * optax.cosine_decay_schedule(1.0, 1)(done))
  return settings.learning_rate
