"""RMU: representation misdirection."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dareu_jax.core.masked import masked_mean
from dareu_jax.core.settings import Fraction, NonNegative, Positive
from dareu_jax.methods.base import register_method
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, Scalar, View


def rmu_forget(hidden: Float[Array, "B T D"], direction: Float[Array, " D"],
               mask: Bool[Array, "B T"], *, scale: float) -> Scalar:
  """Steers the states of one layer to a random direction: mean_t mean_d ( h - c u/‖u‖ )².

  Args:
    hidden: states of the layer at response tokens.
    direction: u, drawn once, uniform in [0, 1).
    mask: which tokens count.
    scale: c.

  Source: Li et al. 2024 (WMDP), with the mean over features as in OU.
  """
  goal = scale * direction / jnp.linalg.norm(direction)
  return masked_mean(jnp.mean((hidden - goal) ** 2, axis=-1), mask)


def rmu_retain(hidden: Float[Array, "B T D"], ref_hidden: Float[Array, "B T D"],
               mask: Bool[Array, "B T"]) -> Scalar:
  """Keeps the states on retained data unchanged: mean_t mean_d ( h - h_ref )²."""
  chex.assert_equal_shape([hidden, ref_hidden])
  return masked_mean(jnp.mean((hidden - ref_hidden) ** 2, axis=-1), mask)


@register_method("rmu")
class RMU(LossMethod):
  """Steers the states of one layer; a separate term keeps the retained states."""

  depth: Fraction = 0.25  # depth of the layer, as a share of all layers
  scale: Positive = 2.0  # c: length of the random direction
  retain_states_coef: NonNegative = 1.0  # weight of the squared distance of retained states

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    hidden = batch.policy.layer(self.depth)
    direction = jax.random.uniform(jax.random.key(batch.seed), hidden.shape[-1:])
    return rmu_forget(hidden, direction, batch.policy.mask, scale=self.scale)

  def retain_terms(self, policy: View, original: View) -> dict[str, tuple[float, Callable]]:
    def distance():
      return rmu_retain(policy.layer(self.depth), original.layer(self.depth), policy.mask)

    return super().retain_terms(policy, original) | {
      "retain_states": (self.retain_states_coef, distance)}
