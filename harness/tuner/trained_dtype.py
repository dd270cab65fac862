"""In what type trained weights are held, adapters and full fine-tuning alike."""

from enum import Enum


class TrainedDtype(Enum):
    """Storage type of what trains."""

    float32 = "float32"
    bfloat16 = "bfloat16"
