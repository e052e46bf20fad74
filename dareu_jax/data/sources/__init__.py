"""Data sources, one file each; `base` says what a source is and `SOURCES` knows them all."""
