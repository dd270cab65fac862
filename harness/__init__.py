"""Hydra-driven research harness for fine-tuning Qwen3-VL with PyTorch Lightning."""

import time

STARTED = time.monotonic()
"""Clock reading at the start of this process, as near to it as the package's code can come.

Of the monotonic clock, which the processes of a machine share and nobody sets: times of day jump.
"""
