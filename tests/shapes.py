"""Shapes and types of annotations, checked while the tests run."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# An int where a float is asked for is fine, as everywhere in Python.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

# Where formulas live. (What is jitted is checked once for each shape, when it is traced.)
MODULES = (
  "dareu_jax.core.masked", "dareu_jax.core.logprobs", "dareu_jax.core.sums",
  "dareu_jax.methods.terms", "dareu_jax.rl.rewards",
  "dareu_jax.rl.advantages", "dareu_jax.rl.losses", "dareu_jax.generation.strategies",
  "dareu_jax.attribution.classifier", "dareu_jax.attribution.influence",
  "dareu_jax.evaluation.metrics.text", "dareu_jax.evaluation.metrics.likelihood",
  "dareu_jax.evaluation.metrics.membership", "dareu_jax.evaluation.metrics.closeness",
  "dareu_jax.evaluation.metrics.intervals", "dareu_jax.models.rope", "dareu_jax.models.attention")


def check_from_now_on():
  """To be called before the library is imported."""
  install_import_hook(MODULES, "tests.shapes.checked")
