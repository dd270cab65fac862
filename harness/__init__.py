"""Hydra-driven research harness for fine-tuning Qwen3-VL with PyTorch Lightning."""
