"""What every other room may use: errors, settings, registries, log-probabilities, masks."""
