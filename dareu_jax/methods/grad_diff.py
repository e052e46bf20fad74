"""GradDiff: gradient ascent on forget data, descent on retained data (Liu et al. 2022)."""

from dareu_jax.core.settings import NonNegative
from dareu_jax.methods.base import register_method
from dareu_jax.methods.gradient_ascent import GradientAscent


@register_method("grad_diff")
class GradDiff(GradientAscent):
  """Gradient ascent plus the NLL of retained responses."""

  retain_nll_coef: NonNegative = 1.0
