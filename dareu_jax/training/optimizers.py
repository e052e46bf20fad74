"""AdamW with a clipped global norm; the learning rate comes from outside at each step.

The schedule is not part of the compiled update, so that runs of other lengths share one program.
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
from dareu_jax.parallel.mesh import path_name


@settings
class TrainSettings:
  """Supervised training: of the base, the original and retrained models, and the classifier."""

  learning_rate: Positive = 3e-3  # peak
  batch_size: Count = 32  # examples a step, over all devices
  micro_batch_size: Size = 0  # examples a forward pass; 0: the whole batch at once
  epochs: Size = 40  # passes over the data; of a plateau: at most
  warmup: Fraction = 0.1  # share of the steps
  schedule: Literal["linear", "cosine", "constant", "plateau"] = "linear"  # after the warm-up
  target_loss: NonNegative = 0.0  # nats a token; a plateau cools down once an epoch's mean is there
  weight_decay: NonNegative = 0.1  # of matrices
  clip_norm: Positive = 1.0  # global gradient norm

  def __post_init__(self):
    if self.micro_batch_size and self.batch_size % self.micro_batch_size:
      raise InvalidSetting("micro_batch_size", self.micro_batch_size,
                           f"it must divide batch_size ({self.batch_size}).")


def adamw_direction(weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
  """Optax transformation whose updates are still to be multiplied by minus the learning rate."""

  def matrices(params):
    # By name too: the norms and biases of scanned layers are stacked to two dimensions.
    return jax.tree_util.tree_map_with_path(
      lambda path, p: p.ndim > 1 and not path_name(path).endswith(("scale", "bias")), params)

  return optax.chain(
    optax.clip_by_global_norm(clip_norm),
    optax.scale_by_adam(b1=0.9, b2=0.95, mu_dtype=jnp.float32),
    optax.add_decayed_weights(weight_decay, matrices),
  )


def apply_direction(params: Any, direction: Any, learning_rate: float | Array) -> Any:
  """params - learning_rate (a scalar) · direction, in the parameters' own dtype."""
  return jax.tree.map(
    lambda p, d: (p - learning_rate * d).astype(p.dtype), params, direction)


COOLDOWN = 0.3  # of the steps before it: how long a plateau cools down


@dataclasses.dataclass
class Schedule:
  """The learning rate of each step, and how many steps there are.

  After a linear warm-up 'linear' and 'cosine' fall to 0 at the last step and 'constant' stays.
  'plateau' stays until the mean loss of an epoch is down to `target_loss` (or the epochs run
  short), then falls linearly to 0 over `COOLDOWN` of the steps so far: as long as the data takes.
  """

  settings: TrainSettings
  steps_per_epoch: int
  cooldown_start: int = -1  # of a plateau; -1: not yet
  loss_sum: float = 0.0  # of the epoch under way

  @property
  def limit(self) -> int:
    """Most steps there can be."""
    return self.settings.epochs * self.steps_per_epoch

  @property
  def num_steps(self) -> int:
    """Steps there will be, as far as is known."""
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
    """Takes in what came of the step that made it `done` steps; only a plateau looks at its loss.

    Args:
      metrics: of the step, with "loss".
      params: after it; for schedules that look at the model itself.
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
    """What a checkpoint keeps of it."""
    return {"cooldown_start": self.cooldown_start, "loss_sum": self.loss_sum}

  def load_state_dict(self, state: dict[str, Any]) -> None:
    """Takes back what a checkpoint kept."""
    for name, value in state.items():
      setattr(self, name, value)
