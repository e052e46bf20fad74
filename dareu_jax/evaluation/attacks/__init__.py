"""Attacks on an unlearned model: quantization, other questions, probes of layers, relearning."""
