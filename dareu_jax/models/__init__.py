"""One decoder for Llama, Qwen2/2.5 and Qwen3, its adapters and heads, and checkpoint formats."""
