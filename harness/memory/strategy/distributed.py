"""Lightning's DDPStrategy, with gradients on the stream of the backward pass."""

from lightning.pytorch.strategies import DDPStrategy
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel


class Distributed(DDPStrategy):
    """Builds torch's module where Lightning does, but for the stream.

    Lightning takes a stream of its own for that, which CUDA graphs ask for. The nodes that take up gradients then
    belong to it, and for each parameter the backward pass waits between the two streams, of which torch warns.
    """

    def _setup_model(self, model: Module) -> DistributedDataParallel:
        return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)
