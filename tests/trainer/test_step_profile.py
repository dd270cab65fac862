import json
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from harness.errors import UserError
from harness.trainer.meter import Meter
from harness.trainer.step_profile import StepProfile, group, kernels, write

_BOTH = (torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA)


@pytest.mark.parametrize(
    ("name", "operator", "shapes", "expected"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "aten::mm", [[8192, 2560], [2560, 9728]], "products"),
        ("nvjet_tst_64x8_64x16_4x1_v_bz_TNN", "aten::mm", [[8192, 2560], [2560, 8]], "small products (adapters)"),
        (
            "void cublasLt::splitKreduce_kernel<32, 16>",
            "aten::mm",
            [[8, 8192], [8192, 2560]],
            "small products (adapters)",
        ),
        ("void pytorch_flash::flash_fwd_kernel<>", "harness::varlen_attention", [[8192, 32, 128]], "attention"),
        ("triton_poi_fused_mul_silu_3", "", [], "pointwise"),
        ("triton_red_fused_mean_pow_1", "", [], "norms and sums"),
        ("void at::native::vectorized_elementwise_kernel<4>", "aten::mul", [[8192, 8]], "pointwise"),
        ("Memcpy HtoD (Pinned -> Device)", "aten::copy_", [[8]], "memory"),
        ("void at::native::multi_tensor_apply_kernel<>", "aten::_fused_adamw_", [], "optimiser"),
        ("something_else", "", [], "other"),
    ],
)
def test_kernels_are_grouped_by_what_they_are_for(name, operator, shapes, expected):
    assert group(name, operator, shapes) == expected


def test_the_tables_are_milliseconds_a_step(tmp_path):
    write({("products", "aten::mm"): (0.3, 20), ("attention", "flash"): (0.1, 4)}, 2, tmp_path)
    content = json.loads((tmp_path / "kernels.json").read_text())
    assert content["groups"] == {"products": 150.0, "attention": 50.0}
    assert content["kernels"][0] == {"group": "products", "name": "aten::mm", "ms": 150.0, "calls": 10.0}
    assert "| products | 150.00 | 75.0% |" in (tmp_path / "kernels.md").read_text()


def test_it_covers_the_steps_asked_for_and_no_others(tmp_path):
    trainer = SimpleNamespace(global_step=0, is_global_zero=True, lightning_module=SimpleNamespace(meter=Meter()))
    callback = StepProfile(2, 3, tmp_path / "profile")
    for step in range(4):
        callback.on_train_batch_start(trainer)
        torch.ones(8, 8) @ torch.ones(8, 8)
        trainer.global_step = step + 1
        callback.on_train_batch_end(trainer)
    content = json.loads((tmp_path / "profile/kernels.json").read_text())
    products = [item for item in content["kernels"] if item["name"] == "aten::mm"]
    assert [item["calls"] for item in products] == [1.0]
    assert (tmp_path / "profile/trace.json.gz").stat().st_size > 0


def recorded(name, *, number=0, by=0, on_gpu=True, shapes=(), annotates=False):
    """An event as kineto hands it out."""
    answers = {
        "name": name,
        "correlation_id": number,
        "linked_correlation_id": by,
        "device_type": DeviceType.CUDA if on_gpu else DeviceType.CPU,
        "duration_ns": 1_000_000,
        "shapes": shapes,
        "is_user_annotation": annotates,
    }
    return SimpleNamespace(**{key: lambda value=value: value for key, value in answers.items()})


def test_kernels_on_a_gpu_go_by_the_operator_that_started_them():
    events = [
        recorded("aten::mm", number=7, on_gpu=False, shapes=[[8192, 2560], [2560, 8]]),
        recorded("nvjet", number=40, by=7),
        recorded("splitKreduce_kernel", number=41, by=7),
        recorded("aten::_fused_adamw_", number=8, on_gpu=False),
        *(recorded("multi_tensor_apply_kernel", number=50 + i, by=8) for i in range(3)),
        # The runtime's own number is that of an operator by chance.
        recorded("cudaLaunchKernel", number=7, on_gpu=False),
        recorded("nvjet", number=60),
        recorded("Optimizer.step#AdamW.step", number=8, annotates=True),
    ]
    profiler = SimpleNamespace(profiler=SimpleNamespace(kineto_results=SimpleNamespace(events=lambda: events)))
    assert kernels(profiler) == {
        ("small products (adapters)", "nvjet"): (1e-3, 1),
        ("small products (adapters)", "splitKreduce_kernel"): (1e-3, 1),
        ("optimiser", "multi_tensor_apply_kernel"): (pytest.approx(3e-3), 3),
        ("products", "nvjet"): (1e-3, 1),
    }


@pytest.mark.gpu
def test_an_operator_that_starts_many_kernels_counts_each_once():
    weights = [torch.nn.Parameter(torch.zeros(2**24, device="cuda")) for _ in range(32)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW(weights, fused=True)
    optimizer.step()
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.profiler.profile(activities=_BOTH, record_shapes=True, acc_events=True) as profiler:
        begin.record()
        optimizer.step()
        weights[0][:4096].view(64, 64) @ weights[1][: 64 * 512].view(64, 512)
        end.record()
        torch.cuda.synchronize()
    found = kernels(profiler)
    seconds = {kind: sum(s for (group, _), (s, _) in found.items() if group == kind) for kind, _ in found}
    assert 0 < sum(seconds.values()) < 1.05 * begin.elapsed_time(end) / 1e3
    # 65,536 values a block, 320 blocks a kernel.
    calls = sum(calls for (kind, _), (_, calls) in found.items() if kind == "optimiser")
    fewest = 32 * 2**24 / 65536 / 320
    assert fewest <= calls < 3 * fewest
    assert seconds["small products (adapters)"] > 0


@pytest.mark.parametrize("span", ["[3]", "[0,2]", "[4,2]"])
def test_a_span_that_is_none_is_refused(make_config, span):
    with pytest.raises(UserError, match=r"trainer\.profile_steps=.*must be two steps"):
        make_config(f"trainer.profile_steps={span}")
