"""Unlearning methods, one file each; `base` says what a method is, `METHODS` knows them all."""
