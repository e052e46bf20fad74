"""Data sources, one file each; `base` defines the interface and the registry `SOURCES`."""
