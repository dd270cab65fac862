"""Hydra-driven research harness for fine-tuning Qwen3-VL with PyTorch Lightning."""

import time

STARTED = time.time()
"""Clock reading at the start of this process, as near to it as the package's code can come."""
