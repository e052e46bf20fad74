"""Fine-tuning on retained data only: passive forgetting, the weakest baseline."""

from dareu_jax.core.settings import NonNegative
from dareu_jax.methods.base import register_method
from dareu_jax.methods.loss_based import LossMethod


@register_method("finetune")
class FineTune(LossMethod):
  """Continues training on the retained data."""

  forget_coef: NonNegative = 0.0
  retain_nll_coef: NonNegative = 1.0
