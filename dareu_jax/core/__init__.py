"""Shared by all other packages: errors, settings, registries, log-probabilities, masks."""
