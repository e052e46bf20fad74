"""Data sources, one file each; `base` defines what a source is and registers them in `SOURCES`."""
