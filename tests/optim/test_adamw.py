import io
import logging
import math

import pytest
import torch
from torch import nn

from harness import registry
from harness.errors import UserError
from harness.optim.adamw import AdamWConfig, choose_kernel
from harness.optim.adamw import build as build_adamw
from harness.optim.group import parameter_groups
from harness.optim.schedule import ScheduleConfig, build_schedule

STEPS = 12


class Model(nn.Module):
    """One matrix and one vector of the language model, and one matrix of the vision tower."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Module()
        self.model.language_model = nn.Linear(6, 6, dtype=torch.float64)
        self.model.visual = nn.Module()
        self.model.visual.blocks = nn.Linear(6, 6, bias=False, dtype=torch.float64)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.language_model(torch.tanh(self.model.visual.blocks(x)))


def build(config: AdamWConfig, model: nn.Module, lr: float) -> torch.optim.AdamW:
    return build_adamw(config, parameter_groups(model, config, lr))


def train(model: Model, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


CONFIG = AdamWConfig(vit_lr=3e-3, weight_decay=0.2, beta1=0.8, beta2=0.9, eps=1e-6)


def test_updates_are_bitwise_those_of_torch_with_the_same_groups() -> None:
    ours, theirs = Model(), Model()
    linear = theirs.model.language_model
    reference = torch.optim.AdamW(
        [
            {"params": [linear.weight], "lr": 1e-2, "weight_decay": 0.2},
            {"params": [linear.bias], "lr": 1e-2, "weight_decay": 0.0},
            {"params": [theirs.model.visual.blocks.weight], "lr": 3e-3, "weight_decay": 0.2},
        ],
        betas=(0.8, 0.9),
        eps=1e-6,
        fused=True,
    )
    train(ours, build(CONFIG, ours, 1e-2), range(STEPS))
    train(theirs, reference, range(STEPS))
    assert equal(weights(ours), weights(theirs))


def test_updates_follow_the_formula_of_the_paper() -> None:
    model, expected = Model(), Model()
    optimizer = build(CONFIG, model, 1e-2)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in expected.parameters()]
    rates, decay = [1e-2, 1e-2, 3e-3], [0.2, 0.0, 0.2]
    for step in range(STEPS):
        train(model, optimizer, range(step, step + 1))
        x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        gradients = torch.autograd.grad(expected(x).square().mean(), list(expected.parameters()))
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(expected.parameters(), gradients, strict=True)):
                m = 0.8 * moments[i][0] + 0.2 * g
                v = 0.9 * moments[i][1] + 0.1 * g * g
                moments[i] = m, v
                m_hat, v_hat = m / (1 - 0.8 ** (step + 1)), v / (1 - 0.9 ** (step + 1))
                p -= rates[i] * (m_hat / (v_hat.sqrt() + 1e-6) + decay[i] * p)
    for got, want in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_two_runs_are_bitwise_equal() -> None:
    results = []
    for _ in range(2):
        model = Model()
        train(model, build(CONFIG, model, 1e-2), range(STEPS))
        results.append(weights(model))
    assert equal(*results)


def test_state_survives_a_checkpoint_bitwise() -> None:
    def make() -> tuple[Model, torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
        model = Model()
        optimizer = build(CONFIG, model, 1e-2)
        return model, optimizer, build_schedule(optimizer, ScheduleConfig(warmup_steps=3), STEPS)

    def run(model: Model, optimizer: torch.optim.AdamW, schedule: object, steps: range) -> None:
        for step in steps:
            train(model, optimizer, range(step, step + 1))
            schedule.step()

    whole = make()
    run(*whole, range(STEPS))

    first, buffer = make(), io.BytesIO()
    run(*first, range(5))
    torch.save([part.state_dict() for part in first], buffer)
    buffer.seek(0)
    second = make()
    for part, state in zip(second, torch.load(buffer, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert [group["name"] for group in second[1].param_groups] == ["llm", "llm_no_decay", "vit"]
    run(*second, range(5, STEPS))
    assert equal(weights(second[0]), weights(whole[0]))


def test_the_kernel_is_fused_where_torch_has_one_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    optimizer = build(AdamWConfig(), Model(), 1e-4)
    assert optimizer.defaults["fused"] is True
    assert "AdamW: fused kernel" in caplog.text


def test_the_kernel_is_foreach_for_a_device_without_a_fused_one() -> None:
    assert choose_kernel([nn.Parameter(torch.ones(2, device="meta"))]) == {"foreach": True}
    assert choose_kernel([nn.Parameter(torch.ones(2, dtype=torch.complex64))]) == {"foreach": True}


def test_a_gradient_scaler_unscales_before_the_step_so_that_clipping_sees_true_norms() -> None:
    plain, scaled = Model().float(), Model().float()
    x = torch.ones(2, 6)
    optimizer = build(AdamWConfig(), plain, 1e-2)
    plain(x).square().mean().backward()
    norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    optimizer.step()

    optimizer = build(AdamWConfig(), scaled, 1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(scaled(x).square().mean()).backward()
    scaler.unscale_(optimizer)
    assert nn.utils.clip_grad_norm_(scaled.parameters(), 0.5) == norm
    scaler.step(optimizer)
    assert equal(weights(scaled), weights(plain))


def test_it_is_registered() -> None:
    entry = registry.get("optim", "adamw")
    assert (entry.config, entry.build) == (AdamWConfig, build_adamw)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, r"optim\.lr=0\.0: must be above 0"),
        ({"lr": math.nan}, r"optim\.lr=nan"),
        ({"vit_lr": -1e-5}, r"optim\.vit_lr=-1e-05: must be above 0"),
        ({"aligner_lr": math.inf}, r"optim\.aligner_lr=inf"),
        ({"beta1": 1.0}, r"optim\.beta1=1\.0: must be in \[0, 1\)"),
        ({"beta2": -0.1}, r"optim\.beta2=-0\.1"),
        ({"weight_decay": -0.1}, r"optim\.weight_decay=-0\.1: must be 0 or more"),
        ({"eps": 0.0}, r"optim\.eps=0\.0: must be above 0"),
        ({"max_grad_norm": -1.0}, r"optim\.max_grad_norm=-1\.0: must be above 0"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdamWConfig(**settings)


def test_no_clipping_can_be_said_in_two_ways() -> None:
    assert [AdamWConfig(max_grad_norm=value).max_grad_norm for value in (None, 0.0)] == [None, 0.0]
