"""Fine-tuning on retained data only: passive forgetting, the weakest baseline."""

from dareu_jax.core.errors import InvalidSetting
from dareu_jax.core.settings import NonNegative
from dareu_jax.methods.base import register_method
from dareu_jax.methods.loss_based import LossMethod


@register_method("finetune")
class FineTune(LossMethod):
  """Continues training on the retained data."""

  forget_coef: NonNegative = 0.0  # always 0: there is no forget term
  retain_nll_coef: NonNegative = 1.0

  def __post_init__(self):
    super().__post_init__()
    if self.forget_coef:
      raise InvalidSetting("forget_coef", self.forget_coef, "fine-tuning on retained data has no "
                           "forget term, so it must be 0. grad_diff has one.")
