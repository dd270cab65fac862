"""DeepSpeed's strategies on the CPU, which Lightning refuses though DeepSpeed runs there: for tests and benchmarks."""

from typing import Any


def deepspeed_without_gpu() -> None:
    """Makes the strategies of this process start without a GPU."""
    import deepspeed
    from lightning.pytorch.strategies import DDPStrategy

    from harness.memory.strategy import engine

    class OnCpu(engine.Zero):
        def setup_environment(self) -> None:
            DDPStrategy.setup_environment(self)

        def setup_distributed(self) -> None:
            self.set_world_ranks()
            self._init_deepspeed_distributed()

        def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
            made = deepspeed.initialize(
                config=self.config,
                model=model,
                model_parameters=[parameter for parameter in model.parameters() if parameter.requires_grad],
                optimizer=optimizer,
                lr_scheduler=lr_scheduler,
                dist_init_required=False,
            )
            return made[0], made[1]

    engine.Zero = OnCpu  # type: ignore[misc]
