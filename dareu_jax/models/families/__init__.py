"""Model families: one file each, found by the registry of `families.base`."""
