"""Adafactor of transformers, resumed bit for bit."""

from typing import Any

import transformers
from torch import Tensor
from torch.optim import Optimizer

from harness.optim.restored import restored


class Adafactor(transformers.Adafactor):
    """Keeps the float32 state of bfloat16 weights when it is loaded; torch would round it to the weights' type."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` returned."""
        Optimizer.load_state_dict(self, state_dict)
        for parameter, stored in restored(self, state_dict):
            for key, value in stored.items():
                if isinstance(value, Tensor):
                    self.state[parameter][key] = value.to(parameter.device, copy=True)
