"""Sampling from a decoder: prefill and decode with a key-value cache, in one compiled program."""
