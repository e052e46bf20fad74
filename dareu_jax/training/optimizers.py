"""AdamW with global-norm clipping; the learning rate is an argument of each step.

The schedule is not part of the compiled update, so that runs of different lengths share a program.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array

from dareu_jax.core.errors import InvalidSetting
from dareu_jax.core.settings import Count, Fraction, NonNegative, Positive, Size, settings
from dareu_jax.core.trees import map_named


@settings
class TrainSettings:
  """Supervised training: of the base, the original and retrained models, and the classifier."""

  learning_rate: Positive = 3e-3  # peak
  batch_size: Count = 32  # examples per step, over all devices
  micro_batch_size: Size = 0  # examples per forward pass; 0: the whole batch at once
  epochs: Size = 40  # passes over the data; for 'plateau', the maximum
  warmup: Fraction = 0.1  # share of the steps
  schedule: Literal["linear", "cosine", "constant", "plateau"] = "linear"  # after the warm-up
  target_loss: NonNegative = 0.0  # nats per token; mean loss of an epoch at which 'plateau' decays
  weight_decay: NonNegative = 0.1  # on matrices only
  clip_norm: Positive = 1.0  # global gradient norm

  def __post_init__(self):
    if self.micro_batch_size and self.batch_size % self.micro_batch_size:
      raise InvalidSetting("micro_batch_size", self.micro_batch_size,
                           f"it must divide batch_size ({self.batch_size}).")


def adamw_direction(weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
  """An Optax transformation; its updates must be multiplied by minus the learning rate."""

  def matrices(params):
    # By name too: the norms and biases of scanned layers are stacked into two dimensions.
    return map_named(
      lambda name, p: p.ndim > 1 and not name.endswith(("scale", "bias")), params)

  return optax.chain(
    optax.clip_by_global_norm(clip_norm),
    optax.scale_by_adam(b1=0.9, b2=0.95, mu_dtype=jnp.float32),
    optax.add_decayed_weights(weight_decay, matrices),
  )


def apply_direction(params: Any, direction: Any, learning_rate: float | Array) -> Any:
  """params - learning_rate (a scalar) · direction, in the parameters' own dtype."""
  return jax.tree.map(
    lambda p, d: (p - learning_rate * d).astype(p.dtype), params, direction)


COOLDOWN = 0.3  # length of the decay after a plateau, as a share of the steps before it


@dataclasses.dataclass
class Schedule:
  """The learning rate of each step, and how many steps there are.

  After a linear warm-up, 'linear' and 'cosine' decay to 0 at the last step, and 'constant' stays.
  'plateau' stays until the mean loss of an epoch reaches `target_loss` (or few epochs are left),
  then decays linearly to 0 over `COOLDOWN` times the steps so far: the data decides how long.
  It therefore has state, unlike `optax.schedules`, and is evaluated on the host.
  """

  settings: TrainSettings
  steps_per_epoch: int
  cooldown_start: int = -1  # the step at which a plateau ended; -1: not yet
  loss_sum: float = 0.0  # of the current epoch

  @property
  def limit(self) -> int:
    """The maximum number of steps."""
    return self.settings.epochs * self.steps_per_epoch

  @property
  def num_steps(self) -> int:
    """The number of steps, as far as known."""
    if self.cooldown_start < 0:
      return self.limit
    return min(self.limit, self.cooldown_start + round(COOLDOWN * self.cooldown_start))

  def rate(self, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    s = self.settings
    warmup = max(1, round(s.warmup * self.limit))
    rising = min(1.0, (step + 1) / warmup)
    if s.schedule == "plateau" and self.cooldown_start >= 0:
      peak = s.learning_rate * min(1.0, self.cooldown_start / warmup)
      return peak * (self.num_steps - step) / (self.num_steps - self.cooldown_start)
    if step < warmup or s.schedule == "plateau":
      return s.learning_rate * rising
    done = (step - warmup) / max(1, self.limit - warmup)
    if s.schedule == "linear":
      return s.learning_rate * (1 - done)
    if s.schedule == "cosine":
      return s.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return s.learning_rate

  def observe(self, done: int, metrics: dict, params: Any) -> None:
    """Records the result of a step; only 'plateau' uses its loss.

    Args:
      done: the number of steps so far, including this one.
      metrics: metrics of the step, including "loss".
      params: params after the step, for schedules that depend on the model.
    """
    del params
    if self.settings.schedule != "plateau" or self.cooldown_start >= 0:
      return
    self.loss_sum += float(metrics["loss"])
    if done % self.steps_per_epoch == 0:
      mean, self.loss_sum = self.loss_sum / self.steps_per_epoch, 0.0
      last_call = self.limit / (1 + COOLDOWN) - self.steps_per_epoch
      if mean <= self.settings.target_loss or done > last_call:
        self.cooldown_start = done

  def state_dict(self) -> dict[str, Any]:
    """The state to store in a checkpoint."""
    return {"cooldown_start": self.cooldown_start, "loss_sum": self.loss_sum}

  def load_state_dict(self, state: dict[str, Any]) -> None:
    """Restores the state of a checkpoint."""
    for name, value in state.items():
      setattr(self, name, value)
