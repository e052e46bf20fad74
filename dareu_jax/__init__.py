"""dareu_jax: unlearning for language models by de-attribution (DareU, arXiv 2605.30919)."""

__version__ = "0.1.0"
