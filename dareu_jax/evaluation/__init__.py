"""Metrics (pure functions on arrays and texts) and the evaluator that applies them to a model."""
