"""KL minimization: gradient ascent, plus a KL to the original on retained data."""

import chex
from jaxtyping import Array, Bool, Float

from dareu_jax.core.masked import masked_mean
from dareu_jax.core.settings import NonNegative
from dareu_jax.methods.base import register_method
from dareu_jax.methods.gradient_ascent import GradientAscent
from dareu_jax.methods.loss_based import Scalar
from dareu_jax.methods.terms import kl_tokens


def kl_minimization(logits: Float[Array, "B T V"], ref_logits: Float[Array, "B T V"],
                    mask: Bool[Array, "B T"]) -> Scalar:
  """mean_t KL(π_ref ‖ π), the retain term.

  Only over response tokens; OU's mean includes prompt and padding.

  Source: Maini et al. 2024 (TOFU).
  """
  chex.assert_equal_shape([logits, ref_logits])
  return masked_mean(kl_tokens(logits, ref_logits), mask)


@register_method("kl_minimization")
class KLMinimization(GradientAscent):
  """Gradient ascent plus KL(π_N ‖ π) on retained responses."""

  retain_kl_coef: NonNegative = 1.0
