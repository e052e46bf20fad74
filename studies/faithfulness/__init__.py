"""Is an owner classifier a good proxy for attribution? Measured by retraining small models."""
