"""AdamW of bitsandbytes: embeddings keep running means of 32 bits, and what was paged is paged again after a resume."""

from typing import Any

from bitsandbytes.optim import AdamW
from torch import Tensor

from harness.optim.eight_bit import is_embedding


class EightBitAdamW(AdamW):
    """Blockwise quantised AdamW; see `harness.optim.adamw_8bit`."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        betas: tuple[float, float],
        eps: float,
        *,
        min_8bit_size: int,
        paged: bool,
    ) -> None:
        """Args: groups with names, Adam's numbers, the least size for 8 bits, and whether large state is paged."""
        super().__init__(groups, betas=betas, eps=eps, optim_bits=8, min_8bit_size=min_8bit_size, is_paged=paged)

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """Returns the settings of one parameter."""
        config = super().get_config(gindex, pindex, group)
        return config | {"optim_bits": 32} if is_embedding(group["param_names"][pindex]) else config

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """Takes what `state_dict` returned; the first step after it pages anew."""
        super().load_state_dict(state_dict, move_to_device)
        self.initialized = False

    def to_gpu(self) -> None:
        """Moves loaded state to where the first step needs it: into memory that may leave the GPU, if paged."""
        super().to_gpu()
        if not self.is_paged:
            return
        for parameter, state in self.state.items():
            for key in ("state1", "state2"):
                value = state.get(key)
                if isinstance(value, Tensor) and parameter.is_cuda and not getattr(value, "is_paged", False):
                    state[key] = self.get_state_buffer(parameter, dtype=value.dtype).copy_(value)
