"""Optimizers, the supervised training loop, checkpoints and metric writers."""
