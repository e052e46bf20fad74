"""Is an owner classifier a fair stand-in for attribution? Measured by retraining small models."""
