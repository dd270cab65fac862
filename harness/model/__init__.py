"""Loads Qwen3-VL checkpoints and runs their training forward pass."""
