"""SCRUB: a student that diverges from its teacher on forget data (Kurmanji et al. 2023)."""

from dareu_jax.core.settings import NonNegative
from dareu_jax.methods.base import register_method
from dareu_jax.methods.loss_based import ForgetBatch, LossMethod, Scalar
from dareu_jax.methods.terms import kl_tokens


@register_method("scrub")
class SCRUB(LossMethod):
  """Alternates epochs that maximize KL(π_N ‖ π) on forget data with epochs on retained data."""

  retain_nll_coef: NonNegative = 0.99
  retain_kl_coef: NonNegative = 0.001

  def weights(self, epoch: int, state: dict[str, float]) -> tuple[float, float]:
    return (1.0, 0.0) if epoch % 2 == 0 else (0.0, 1.0)

  def forget_loss(self, batch: ForgetBatch) -> Scalar:
    return -batch.policy.mean(kl_tokens, batch.original)
