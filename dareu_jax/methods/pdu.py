"""PDU: primal-dual unlearning."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dareu_jax.core.masked import masked_mean
from dareu_jax.core.settings import NonNegative, Positive, Size
from dareu_jax.methods.base import register_method
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, Scalar


def pdu_tokens(logits: Float[Array, "*tokens V"]) -> Float[Array, "*tokens"]:
  """The terms of `pdu_forget`."""
  return (jnp.max(logits, axis=-1) - jnp.mean(logits, axis=-1)) ** 2


def pdu_forget(logits: Float[Array, "B T V"], mask: Bool[Array, "B T"]) -> Scalar:
  """Flattens the logits: mean_t ( max_v z_v - mean_v z_v )².

  Source: PDU, primal-dual unlearning (2506.05314), as in OU; `dual_step` updates its multiplier.
  """
  return masked_mean(pdu_tokens(logits), mask)


def dual_step(multiplier: float, retain_nll: float, *, step_size: float, target: float) -> float:
  """λ ← max(0, λ + η (NLL_retain - ε)): the multiplier of PDU's constraint NLL_retain <= ε."""
  return max(0.0, multiplier + step_size * (retain_nll - target))


@register_method("pdu")
class PDU(LossMethod):
  """Flattens the logits while a multiplier keeps NLL_retain below a target: w_r = λ.

  The published multiplier of 100 is for rates of 1e-5; here it starts at 1 and is first updated
  after an epoch.
  """

  retain_nll_coef: Positive = 1.0  # weight of the constrained NLL, times λ
  multiplier: NonNegative = 1.0  # λ at the start
  step_size: NonNegative = 1.0  # η
  target: NonNegative = 0.3  # ε, nats per token
  warmup_epochs: Size = 1  # epochs before λ is updated

  def initial_state(self) -> dict[str, float]:
    return {"multiplier": self.multiplier}

  def weights(self, epoch: int, state: dict[str, float]) -> tuple[float, float]:
    return 1.0, state["multiplier"]

  def after_update(self, state: dict[str, float], epoch: int, metrics: dict) -> dict[str, float]:
    if epoch < self.warmup_epochs:
      return state
    return {"multiplier": dual_step(state["multiplier"], float(metrics["retain_nll"]),
                                    step_size=self.step_size, target=self.target)}

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    return batch.policy.mean(pdu_tokens)
