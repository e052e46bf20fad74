"""Attacks: what quantizing, other questions, a look into the layers and relearning bring back."""
