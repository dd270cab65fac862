"""AdamW that leaves some parameters, its targets, to a rule of their own: the frame of GaLore, Q-GaLore and APOLLO.

Within the backward pass (`in_backward`) the rule runs on a target as soon as its gradient is complete, and the gradient
is freed. The weight is then of no more use to the backward pass: the node that made its gradient has made that of its
input too. The learning rate is the group's at that moment, which the schedule moves between steps only, so that the
weights equal bit for bit those of an update after the backward pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.optim.adam_kernel import State, adamw_, init_moments
from harness.optim.projected import ProjectedConfig
from harness.optim.projected_target import choose_targets
from harness.optim.restored import restored

Rule = Callable[[str, nn.Parameter, State, dict[str, Any]], None]
"""Updates one target with a gradient in place: takes its name, the target, its state and its group."""


class TargetedAdamW(Optimizer):
    """AdamW for all parameters but the targets."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        targets: dict[nn.Parameter, str],
        rule: Rule,
        *,
        betas: tuple[float, float],
        eps: float,
        in_backward: bool = False,
    ) -> None:
        """Args: what `parameter_groups` returned, the targets with their names and what updates one of them."""
        super().__init__(groups, {"betas": betas, "eps": eps})
        self.targets = targets
        self.rule = rule
        self.freed: dict[nn.Parameter, Tensor] = {}
        """Norms (scalars, on the device) of the gradients that this step used and freed in its backward pass."""
        if in_backward:
            for index, group in enumerate(self.param_groups):
                for parameter in filter(targets.__contains__, group["params"]):
                    parameter.register_post_accumulate_grad_hook(partial(self._use_and_free, index))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Updates every parameter that has a gradient; returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            ready = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in filter(self.targets.__contains__, ready):
                self.rule(self.targets[parameter], parameter, self.state[parameter], group)
            self._step_others([parameter for parameter in ready if parameter not in self.targets], group)
        self.freed = {}
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a saved state as it was saved: torch alone would cast all of it to the dtype of the parameters."""
        super().load_state_dict(state_dict)
        for parameter, stored in restored(self, state_dict):
            self.state[parameter] = _copied(stored, parameter.device)

    def _step_others(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                init_moments(self.state[parameter], parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        adamw_(parameters, gradients, [self.state[parameter] for parameter in parameters], group)

    @torch.no_grad()
    def _use_and_free(self, index: int, parameter: nn.Parameter) -> None:
        # By number: a loaded state brings new groups.
        assert parameter.grad is not None
        self.freed[parameter] = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
        self.rule(self.targets[parameter], parameter, self.state[parameter], self.param_groups[index])
        parameter.grad = None


def _copied(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        return {key: _copied(item, device) for key, item in value.items()}
    return list(value) if isinstance(value, list) else value


def projected(config: ProjectedConfig, groups: list[dict[str, Any]], rule: Rule) -> TargetedAdamW:
    """Returns the optimiser of a method that projects gradients, whose rule updates the targets.

    Raises:
        UserError: A target matches nothing that trains, or is smaller than the rank.
    """
    return TargetedAdamW(
        groups,
        choose_targets(groups, config),
        rule,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        in_backward=config.per_parameter,
    )
