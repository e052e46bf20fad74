"""Unlearning methods, one file each; `base` defines the interface and the registry `METHODS`."""
